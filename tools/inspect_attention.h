// `tinyserve inspect --attention`: a picture of the pages that each layer and KV head reads.
#ifndef TINYSERVE_TOOLS_INSPECT_ATTENTION_H_
#define TINYSERVE_TOOLS_INSPECT_ATTENTION_H_

#include <CLI/App.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "tinyserve/status.h"

namespace tinyserve {

struct AttentionFlags {
  bool wanted = false;
  std::string prompt, file, output = "attention.html", selector = "default";
  std::vector<std::string> plugins;
  uint32_t tokens = 64;
};

void AddAttentionOptions(CLI::App* app, AttentionFlags* flags);
// Writes the picture, and figures where `json` names a file. Errors: kInvalidArgument (a selector,
// a prompt that does not fit), kIo, kNotFound.
Result<int> InspectAttention(const std::string& model, const AttentionFlags& flags,
                             const std::string& json);

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_INSPECT_ATTENTION_H_
