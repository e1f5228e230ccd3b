#include "text/rust_text.h"

#include "base/check.h"
#include "textffi.h"

namespace tinyserve {
namespace {

textffi_slice Slice(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

std::vector<textffi_slice> Slices(std::span<const std::string> strings) {
  std::vector<textffi_slice> slices;
  slices.reserve(strings.size());
  for (const std::string& s : strings) slices.push_back(Slice(s));
  return slices;
}

// Takes the buffer's content and gives the buffer back.
std::string Take(textffi_buffer buffer) {
  std::string text(reinterpret_cast<const char*>(buffer.data), buffer.size);
  textffi_buffer_free(buffer);
  return text;
}

Status Failure(int32_t code, textffi_buffer error) {
  std::string message = Take(error);
  switch (code) {
    case TEXTFFI_INVALID_ARGUMENT:
      return Status(Code::kInvalidArgument, std::move(message));
    case TEXTFFI_UNSUPPORTED:
      return Status(Code::kUnsupported, std::move(message));
    case TEXTFFI_CORRUPT:
      return Status(Code::kCorrupt, std::move(message));
    case TEXTFFI_EXHAUSTED:
      return Status(Code::kResourceExhausted, std::move(message));
    default:
      return Status(Code::kInternal, std::move(message));
  }
}

}  // namespace

void RustDeleter::operator()(textffi_tokenizer* tokenizer) const {
  textffi_tokenizer_free(tokenizer);
}
void RustDeleter::operator()(textffi_template* tmpl) const { textffi_template_free(tmpl); }
void RustDeleter::operator()(textffi_grammar_vocab* vocab) const {
  textffi_grammar_vocab_free(vocab);
}
void RustDeleter::operator()(textffi_grammar* grammar) const { textffi_grammar_free(grammar); }
void RustDeleter::operator()(textffi_grammar_state* state) const {
  textffi_grammar_state_free(state);
}

Result<RustTokenizer> NewRustTokenizer(const RustVocab& vocab) {
  TS_CHECK(vocab.kinds.size() == vocab.tokens.size());
  TS_CHECK(!vocab.sentence_piece || vocab.scores.size() == vocab.tokens.size());
  const std::vector<textffi_slice> tokens = Slices(vocab.tokens);
  const std::vector<textffi_slice> merges = Slices(vocab.merges);
  textffi_vocab spec = {};
  spec.sentence_piece = vocab.sentence_piece;
  spec.add_space_prefix = vocab.add_space_prefix;
  spec.unknown = vocab.unknown;
  spec.pre = Slice(vocab.pre);
  spec.tokens_count = tokens.size();
  spec.tokens = tokens.data();
  spec.kinds = vocab.kinds.data();
  spec.scores = vocab.sentence_piece ? vocab.scores.data() : nullptr;
  spec.merges_count = merges.size();
  spec.merges = merges.data();
  textffi_tokenizer* made = nullptr;
  textffi_buffer error = {};
  const int32_t code = textffi_tokenizer_new(&spec, &made, &error);
  if (code != TEXTFFI_OK) return Failure(code, error);
  return RustTokenizer(made);
}

Result<std::vector<int32_t>> RustEncode(const textffi_tokenizer& tokenizer, std::string_view text,
                                        bool parse_special) {
  textffi_ids ids = {};
  textffi_buffer error = {};
  const int32_t code =
      textffi_tokenizer_encode(&tokenizer, Slice(text), parse_special, &ids, &error);
  if (code != TEXTFFI_OK) return Failure(code, error);
  std::vector<int32_t> copy(ids.data, ids.data + ids.size);
  textffi_ids_free(ids);
  return copy;
}

Result<RustTemplate> NewRustTemplate(std::string_view source, std::string_view bos_token,
                                     std::string_view eos_token, uint64_t steps_max,
                                     uint64_t output_bytes_max) {
  const textffi_template_spec spec = {Slice(source), Slice(bos_token), Slice(eos_token), steps_max,
                                      output_bytes_max};
  textffi_template* made = nullptr;
  textffi_buffer error = {};
  const int32_t code = textffi_template_new(&spec, &made, &error);
  if (code != TEXTFFI_OK) return Failure(code, error);
  return RustTemplate(made);
}

Result<std::string> RustRender(const textffi_template& tmpl, std::string_view messages_json,
                               std::string_view extra_json, bool add_generation_prompt,
                               const std::tm& now) {
  const textffi_time time = {now.tm_year + 1900, now.tm_mon + 1, now.tm_mday, now.tm_hour,
                             now.tm_min,         now.tm_sec,     now.tm_wday, now.tm_yday + 1};
  textffi_buffer out = {};
  textffi_buffer error = {};
  const int32_t code = textffi_template_render(&tmpl, Slice(messages_json), Slice(extra_json),
                                               add_generation_prompt, &time, &out, &error);
  if (code != TEXTFFI_OK) return Failure(code, error);
  return Take(out);
}

Result<RustGrammarVocab> NewRustGrammarVocab(std::span<const std::string> tokens,
                                             std::span<const uint8_t> control) {
  TS_CHECK(control.size() == tokens.size());
  const std::vector<textffi_slice> slices = Slices(tokens);
  textffi_grammar_vocab* made = nullptr;
  textffi_buffer error = {};
  const int32_t code =
      textffi_grammar_vocab_new(slices.data(), control.data(), slices.size(), &made, &error);
  if (code != TEXTFFI_OK) return Failure(code, error);
  return RustGrammarVocab(made);
}

Result<RustGrammar> NewRustGrammar(const textffi_grammar_vocab& vocab, uint8_t kind,
                                   std::string_view text) {
  textffi_grammar* made = nullptr;
  textffi_buffer error = {};
  const int32_t code = textffi_grammar_new(&vocab, kind, Slice(text), &made, &error);
  if (code != TEXTFFI_OK) return Failure(code, error);
  return RustGrammar(made);
}

Result<RustGrammarState> StartRustGrammar(const textffi_grammar& grammar) {
  textffi_grammar_state* made = nullptr;
  textffi_buffer error = {};
  const int32_t code = textffi_grammar_start(&grammar, &made, &error);
  if (code != TEXTFFI_OK) return Failure(code, error);
  return RustGrammarState(made);
}

Status RustGrammarMask(textffi_grammar_state* state, std::span<uint32_t> bits) {
  textffi_buffer error = {};
  const int32_t code = textffi_grammar_state_mask(state, bits.data(), bits.size(), &error);
  return code == TEXTFFI_OK ? Status() : Failure(code, error);
}

Status RustGrammarAccept(textffi_grammar_state* state, int32_t token) {
  textffi_buffer error = {};
  const int32_t code = textffi_grammar_state_accept(state, static_cast<uint32_t>(token), &error);
  return code == TEXTFFI_OK ? Status() : Failure(code, error);
}

}  // namespace tinyserve
