#include "engine/vocab.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

namespace tinyserve {
namespace {

// An array of T under `key`; leaves `out` alone where the key is absent and not required.
template <class T>
Status ReadArray(const GgufFile& file, const std::string& key, bool required, std::vector<T>* out) {
  const MetaValue* value = file.Find(key);
  if (value == nullptr) {
    return required ? Status(Code::kNotFound, fmt::format("the model file has no '{}'", key))
                    : Status();
  }
  const auto* array = std::get_if<std::vector<T>>(value);
  if (array == nullptr)
    return Status(Code::kCorrupt, fmt::format("'{}' is not an array of the expected type", key));
  *out = *array;
  return Status();
}

Status ReadId(const GgufFile& file, const std::string& key, size_t vocab, int64_t* out) {
  if (file.Find(key) == nullptr) return Status();
  TS_ASSIGN_OR_RETURN(const uint64_t id, file.GetUint(key));
  if (id >= vocab) {
    return Status(Code::kCorrupt,
                  fmt::format("'{}' is {}: the vocabulary has {} tokens", key, id, vocab));
  }
  *out = static_cast<int64_t>(id);
  return Status();
}

Status ReadFlag(const GgufFile& file, const std::string& key, bool* out) {
  if (file.Find(key) == nullptr) return Status();
  TS_ASSIGN_OR_RETURN(*out, file.GetBool(key));
  return Status();
}

// Whether texts begin with bos where the file does not say: so do the SentencePiece vocabularies
// and, among the BPE ones, Llama 3's and Mistral's Tekken.
bool BeginsWithBos(const VocabSpec& spec) {
  constexpr std::string_view kPreTokenizers[] = {"llama3", "llama-v3", "llama-v3.1", "llama-bpe",
                                                 "tekken"};
  return spec.model == "llama" || std::find(std::begin(kPreTokenizers), std::end(kPreTokenizers),
                                            spec.pre) != std::end(kPreTokenizers);
}

}  // namespace

Result<VocabSpec> ReadVocab(const GgufFile& file) {
  const std::string prefix = "tokenizer.ggml.";
  VocabSpec spec;
  TS_ASSIGN_OR_RETURN(spec.model, file.GetString(prefix + "model"));
  spec.pre = "default";
  if (file.Find(prefix + "pre") != nullptr) {
    TS_ASSIGN_OR_RETURN(spec.pre, file.GetString(prefix + "pre"));
  }
  TS_RETURN_IF_ERROR(ReadArray(file, prefix + "tokens", true, &spec.tokens));
  TS_RETURN_IF_ERROR(ReadArray(file, prefix + "scores", false, &spec.scores));
  TS_RETURN_IF_ERROR(ReadArray(file, prefix + "token_type", false, &spec.types));
  TS_RETURN_IF_ERROR(ReadArray(file, prefix + "merges", false, &spec.merges));
  spec.add_bos = BeginsWithBos(spec);
  TS_RETURN_IF_ERROR(ReadId(file, prefix + "bos_token_id", spec.tokens.size(), &spec.bos));
  TS_RETURN_IF_ERROR(ReadId(file, prefix + "eos_token_id", spec.tokens.size(), &spec.eos));
  TS_RETURN_IF_ERROR(ReadId(file, prefix + "unknown_token_id", spec.tokens.size(), &spec.unknown));
  TS_RETURN_IF_ERROR(ReadFlag(file, prefix + "add_bos_token", &spec.add_bos));
  TS_RETURN_IF_ERROR(ReadFlag(file, prefix + "add_eos_token", &spec.add_eos));
  TS_RETURN_IF_ERROR(ReadFlag(file, prefix + "add_space_prefix", &spec.add_space_prefix));
  return spec;
}

std::string ReadChatTemplate(const GgufFile& file) {
  const Result<std::string> source = file.GetString("tokenizer.chat_template");
  return source.ok() ? *source : "";
}

}  // namespace tinyserve
