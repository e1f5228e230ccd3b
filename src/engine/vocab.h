// Reads a model file's tokenizer and chat template.
#ifndef TINYSERVE_ENGINE_VOCAB_H_
#define TINYSERVE_ENGINE_VOCAB_H_

#include <string>

#include "tensor/gguf.h"
#include "text/tokenizer.h"
#include "tinyserve/status.h"

namespace tinyserve {

// The tokenizer.ggml.* keys. Errors: kNotFound and kCorrupt, naming the key.
Result<VocabSpec> ReadVocab(const GgufFile& file);
// tokenizer.chat_template, or "" where the file has none.
std::string ReadChatTemplate(const GgufFile& file);

}  // namespace tinyserve

#endif  // TINYSERVE_ENGINE_VOCAB_H_
