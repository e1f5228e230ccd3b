// How keys and values are stored. A codec names its open form and its sealed form.
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
  KvType sealed_type;     // the open type where nothing is coded
  uint32_t group_tokens;  // a window: tokens that are sealed together, at multiples of it
  uint32_t hot_tokens;    // newest tokens that stay open
  uint32_t metadata;      // MetaKinds that sealed pages cannot be read without

  // Sealed pages keep the open form: sealing makes a block immutable and nothing else.
  bool identity() const { return open_type == sealed_type; }
  // Where the window begins that position or length `tokens` lies in.
  uint32_t WindowBegin(uint32_t tokens) const { return tokens / group_tokens * group_tokens; }
};

// "f32", "f16", "bf16", "planes", "int8", "k8v4" or "int4". Errors: kInvalidArgument with the list.
Result<const Codec*> FindCodec(const std::string& name);

// Whether a codec stores pages and heads of these sizes. Errors: kInvalidArgument, naming what is
// wrong and what is allowed.
Status CheckCodec(const Codec& codec, uint32_t page_tokens, uint32_t head_dim);

}  // namespace tinyserve

#endif  // TINYSERVE_KV_CODEC_H_
