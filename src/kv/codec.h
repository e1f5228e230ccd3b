// How keys and values are stored. A codec names its open form and, where it encodes, its sealed
// form.
#ifndef TINYSERVE_KV_CODEC_H_
#define TINYSERVE_KV_CODEC_H_

#include <cstdint>
#include <string>

#include "page/page.h"
#include "tinyserve/status.h"

namespace tinyserve {

struct Codec {
  const char* name;
  KvType open_type;       // of tokens that are not sealed yet
  uint32_t group_tokens;  // tokens that are encoded together
  uint32_t hot_tokens;    // newest tokens that stay open
  bool identity;  // sealed pages keep the open form: sealing makes a block immutable and nothing
                  // else
};

// "f32", "f16" or "bf16". Errors: kInvalidArgument with the list.
Result<const Codec*> FindCodec(const std::string& name);

}  // namespace tinyserve

#endif  // TINYSERVE_KV_CODEC_H_
