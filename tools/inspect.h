// What a model file holds, gathered from its metadata alone: works for architectures and
// tokenizers that this build cannot run, too.
#ifndef TINYSERVE_TOOLS_INSPECT_H_
#define TINYSERVE_TOOLS_INSPECT_H_

#include <boost/json/object.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "tensor/gguf.h"

namespace tinyserve {

struct TypeShare {
  DType type;
  uint64_t tensors, elements, bytes;
};

struct SpecialToken {
  std::string role;  // "bos", "eos" ...
  int64_t id;
  std::string text;
};

struct FileReport {
  std::string architecture, name, unsupported;  // unsupported: why it cannot be run, or ""
  uint32_t version = 0;
  uint64_t file_bytes = 0, tensor_bytes = 0, parameters = 0;
  std::vector<TypeShare> types;                                      // most bytes first
  std::vector<std::pair<std::string, std::string>> hyperparameters;  // <architecture>.* scalars
  std::string tokenizer, pre_tokenizer, chat_template;
  uint64_t vocab = 0;
  std::vector<SpecialToken> special;
  uint64_t context_tokens = 0;
  // Keys and values of a token, in elements over all layers; 0: unknown.
  uint64_t kv_elements_per_token = 0;
};

FileReport InspectFile(const GgufFile& file);
std::string FormatReport(const FileReport& report);
std::string FormatTensors(const GgufFile& file);
boost::json::object ReportJson(const FileReport& report, const GgufFile& file, bool tensors,
                               bool with_template);

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_INSPECT_H_
