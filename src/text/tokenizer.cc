#include "text/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "text/rust_text.h"
#include "text/utf8.h"

namespace tinyserve {
namespace {

// What GGUF's token_type says.
enum TokenKind : uint8_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

constexpr size_t kTokensMax = size_t{1} << 22;
constexpr size_t kMergesMax = size_t{1} << 23;
constexpr size_t kTokenBytesMax = 8192;
constexpr size_t kTextBytesMax = size_t{1} << 30;
constexpr std::string_view kSpacePiece = "\xE2\x96\x81";  // U+2581

// Tokens by which models of one family or another end a turn.
constexpr std::string_view kEndTokens[] = {
    "<|im_end|>",      "<|eot_id|>",
    "<|eom_id|>",      "<|endoftext|>",
    "<|end_of_text|>", "</s>",
    "<end_of_turn>",   "<|end|>",
    "<|eot|>",         "<|endofturn|>",
    "<EOT>",           "<|EOT|>",
    "[EOS]",           "<｜end▁of▁sentence｜>",
};

Status Corrupt(std::string message) {
  return Status(Code::kCorrupt, "tokenizer: " + std::move(message));
}

// The byte that byte-level BPE writes as `code`, or -1: bytes that print stand for themselves, the
// 68 others for U+0100 onward, in their order.
int ByteOfCodePoint(char32_t code) {
  const auto prints = [](uint32_t byte) {
    return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) ||
           (byte >= 0xAE && byte <= 0xFF);
  };
  static const std::array<int16_t, 0x144> table = [&] {
    std::array<int16_t, 0x144> bytes;
    bytes.fill(-1);
    size_t hidden = 0x100;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      bytes[prints(byte) ? byte : hidden++] = static_cast<int16_t>(byte);
    }
    return bytes;
  }();
  return code < table.size() ? table[code] : -1;
}

// The bytes of a byte-level token, or its own spelling where it is not written in that alphabet.
std::string ByteLevelBytes(std::string_view spelling) {
  std::string bytes;
  for (std::string_view rest = spelling; !rest.empty();) {
    const Utf8Step step = FirstUtf8Step(rest);
    const int byte = step.kind == Utf8Kind::kCharacter
                         ? ByteOfCodePoint(CodePoint(rest.substr(0, step.bytes)))
                         : -1;
    if (byte < 0) return std::string(spelling);
    bytes.push_back(static_cast<char>(byte));
    rest.remove_prefix(step.bytes);
  }
  return bytes;
}

std::string SentencePieceBytes(std::string_view spelling) {
  std::string bytes;
  for (size_t at; (at = spelling.find(kSpacePiece)) != std::string_view::npos;) {
    bytes.append(spelling.substr(0, at));
    bytes.push_back(' ');
    spelling.remove_prefix(at + kSpacePiece.size());
  }
  return bytes.append(spelling);
}

// The byte of a token spelled <0xNN>, or -1.
int ByteOfSpelling(std::string_view spelling) {
  if (spelling.size() != 6 || spelling.substr(0, 3) != "<0x" || spelling[5] != '>') return -1;
  int byte = 0;
  for (const char c : spelling.substr(3, 2)) {
    const std::string_view digits = "0123456789ABCDEF";
    const size_t digit = digits.find(c >= 'a' && c <= 'f' ? static_cast<char>(c - 32) : c);
    if (digit == std::string_view::npos) return -1;
    byte = byte * 16 + static_cast<int>(digit);
  }
  return byte;
}

// A vocabulary whose counts, kinds, ids and spellings have been checked, held compactly.
class Vocab {
 public:
  static Result<Vocab> Build(const VocabSpec& spec);

  uint32_t size() const { return static_cast<uint32_t>(kinds_.size()); }
  std::string_view Spelling(uint32_t id) const {
    return std::string_view(bytes_).substr(starts_[id], starts_[id + 1] - starts_[id]);
  }
  TokenKind kind(uint32_t id) const { return static_cast<TokenKind>(kinds_[id]); }
  std::span<const uint8_t> kinds() const { return kinds_; }
  int32_t Find(std::string_view token) const;

 private:
  Status CheckCounts(const VocabSpec& spec) const;
  Status FillKinds(const VocabSpec& spec);
  Status FillSpellings(const VocabSpec& spec);

  std::string bytes_;             // all spellings, one after the other
  std::vector<uint32_t> starts_;  // [size + 1] offsets in bytes_
  std::vector<uint8_t> kinds_;    // [size]
  std::vector<uint32_t> sorted_;  // ids of tokens that are not empty, by spelling
};

Result<Vocab> Vocab::Build(const VocabSpec& spec) {
  Vocab vocab;
  TS_RETURN_IF_ERROR(vocab.CheckCounts(spec));
  TS_RETURN_IF_ERROR(vocab.FillKinds(spec));
  TS_RETURN_IF_ERROR(vocab.FillSpellings(spec));
  return vocab;
}

Status Vocab::CheckCounts(const VocabSpec& spec) const {
  const size_t count = spec.tokens.size();
  if (spec.model != "gpt2" && spec.model != "llama") {
    return Status(
        Code::kUnsupported,
        fmt::format("tokenizer: model '{}' is not supported; gpt2 and llama are", spec.model));
  }
  if (count == 0) return Corrupt("the vocabulary is empty");
  if (count > kTokensMax) return Corrupt(fmt::format("{} tokens; at most {}", count, kTokensMax));
  if (spec.merges.size() > kMergesMax) {
    return Corrupt(fmt::format("{} merges; at most {}", spec.merges.size(), kMergesMax));
  }
  if (!spec.types.empty() && spec.types.size() != count) {
    return Corrupt(fmt::format("{} token types for {} tokens", spec.types.size(), count));
  }
  if (spec.model == "llama" && spec.scores.size() != count) {
    return Corrupt(fmt::format("{} scores for {} tokens", spec.scores.size(), count));
  }
  const std::pair<const char*, int64_t> ids[] = {
      {"bos", spec.bos}, {"eos", spec.eos}, {"unknown", spec.unknown}};
  for (const auto& [name, id] : ids) {
    if (id < -1 || id >= static_cast<int64_t>(count)) {
      return Corrupt(
          fmt::format("{} id {} is outside the vocabulary of {} tokens", name, id, count));
    }
  }
  if (spec.add_bos && spec.bos < 0)
    return Corrupt("texts are to begin with bos, but there is none");
  if (spec.add_eos && spec.eos < 0) return Corrupt("texts are to end with eos, but there is none");
  return Status();
}

Status Vocab::FillKinds(const VocabSpec& spec) {
  kinds_.assign(spec.tokens.size(), kNormal);
  for (size_t id = 0; id < spec.types.size(); ++id) {
    if (spec.types[id] < kNormal || spec.types[id] > kByte) {
      return Corrupt(fmt::format("token {} has type {}; 1 to 6 are known", id, spec.types[id]));
    }
    kinds_[id] = static_cast<uint8_t>(spec.types[id]);
  }
  if (!spec.types.empty()) return Status();
  // Files without types: what the ids and spellings say.
  for (size_t id = 0; spec.model == "llama" && id < spec.tokens.size(); ++id) {
    if (ByteOfSpelling(spec.tokens[id]) >= 0) kinds_[id] = kByte;
  }
  if (spec.bos >= 0) kinds_[static_cast<size_t>(spec.bos)] = kControl;
  if (spec.eos >= 0) kinds_[static_cast<size_t>(spec.eos)] = kControl;
  if (spec.unknown >= 0 && kinds_[static_cast<size_t>(spec.unknown)] == kNormal) {
    kinds_[static_cast<size_t>(spec.unknown)] = kUnknown;
  }
  return Status();
}

Status Vocab::FillSpellings(const VocabSpec& spec) {
  size_t total = 0;
  for (size_t id = 0; id < spec.tokens.size(); ++id) {
    const size_t bytes = spec.tokens[id].size();
    if (bytes > kTokenBytesMax) {
      return Corrupt(fmt::format("token {} has {} bytes; at most {}", id, bytes, kTokenBytesMax));
    }
    total += bytes;  // at most 2^22 * 2^13: no overflow
  }
  if (total > std::numeric_limits<uint32_t>::max()) {
    return Corrupt(fmt::format("tokens of {} bytes in all; at most 4 GiB", total));
  }
  bytes_.reserve(total);
  starts_.reserve(spec.tokens.size() + 1);
  // Sorted by their first eight bytes, which nearly always differ, before the rest is looked at.
  std::vector<std::pair<uint64_t, uint32_t>> order;
  order.reserve(spec.tokens.size());
  for (const std::string& token : spec.tokens) {
    const auto id = static_cast<uint32_t>(starts_.size());
    starts_.push_back(static_cast<uint32_t>(bytes_.size()));
    bytes_ += token;
    uint64_t head = 0;
    for (size_t i = 0; i < 8; ++i) {
      head = head << 8 | (i < token.size() ? static_cast<uint8_t>(token[i]) : 0);
    }
    if (!token.empty()) order.emplace_back(head, id);
  }
  starts_.push_back(static_cast<uint32_t>(bytes_.size()));
  std::sort(order.begin(), order.end(), [&](const auto& a, const auto& b) {
    return a.first != b.first ? a.first < b.first : Spelling(a.second) < Spelling(b.second);
  });
  sorted_.reserve(order.size());
  for (const auto& [head, id] : order) {
    if (!sorted_.empty() && Spelling(sorted_.back()) == Spelling(id)) {
      return Corrupt(fmt::format("tokens {} and {} are both spelled '{}'",
                                 std::min(sorted_.back(), id), std::max(sorted_.back(), id),
                                 ReplaceInvalidUtf8(Spelling(id).substr(0, 64))));
    }
    sorted_.push_back(id);
  }
  return Status();
}

int32_t Vocab::Find(std::string_view token) const {
  const auto at =
      std::lower_bound(sorted_.begin(), sorted_.end(), token,
                       [&](uint32_t id, std::string_view t) { return Spelling(id) < t; });
  if (at == sorted_.end() || Spelling(*at) != token) return -1;
  return static_cast<int32_t>(*at);
}

class VocabTokenizer : public Tokenizer {
 public:
  VocabTokenizer(const VocabSpec& spec, Vocab vocab, RustTokenizer encoder)
      : vocab_(std::move(vocab)),
        encoder_(std::move(encoder)),
        sentence_piece_(spec.model == "llama"),
        add_bos_(spec.add_bos),
        add_eos_(spec.add_eos),
        bos_(static_cast<int32_t>(spec.bos)),
        eos_(static_cast<int32_t>(spec.eos)) {
    if (eos_ >= 0) end_tokens_.push_back(eos_);
    for (const std::string_view name : kEndTokens) {
      const int32_t id = vocab_.Find(name);
      if (id < 0 || id == eos_) continue;
      const TokenKind kind = vocab_.kind(static_cast<uint32_t>(id));
      if (kind == kControl || kind == kUserDefined) end_tokens_.push_back(id);
    }
  }

  Result<std::vector<int32_t>> Encode(std::string_view text, bool add_special,
                                      bool parse_special) const override {
    if (text.size() > kTextBytesMax) {
      return Status(
          Code::kInvalidArgument,
          fmt::format("text of {} bytes; at most {} can be tokenized", text.size(), kTextBytesMax));
    }
    TS_ASSIGN_OR_RETURN(std::vector<int32_t> ids, RustEncode(*encoder_, text, parse_special));
    if (add_special && add_bos_) ids.insert(ids.begin(), bos_);
    if (add_special && add_eos_) ids.push_back(eos_);
    return ids;
  }

  Result<std::string> TokenBytes(int32_t id, bool spell_special) const override {
    if (id < 0 || static_cast<uint32_t>(id) >= vocab_.size()) {
      return Status(Code::kInvalidArgument,
                    fmt::format("token id {} is outside the vocabulary of {}", id, vocab_.size()));
    }
    const auto index = static_cast<uint32_t>(id);
    const std::string_view spelling = vocab_.Spelling(index);
    switch (vocab_.kind(index)) {
      case kUnknown:
      case kControl:
      case kUnused:
        return std::string(spell_special ? spelling : std::string_view());
      case kByte:
        if (const int byte = ByteOfSpelling(spelling); byte >= 0) {
          return std::string(1, static_cast<char>(byte));
        }
        return std::string(spelling);
      case kUserDefined:
        return sentence_piece_ ? SentencePieceBytes(spelling) : std::string(spelling);
      case kNormal:
        break;
    }
    return sentence_piece_ ? SentencePieceBytes(spelling) : ByteLevelBytes(spelling);
  }

  Result<std::string> Decode(std::span<const int32_t> ids, bool spell_special) const override {
    std::string bytes;
    for (const int32_t id : ids) {
      TS_ASSIGN_OR_RETURN(const std::string token, TokenBytes(id, spell_special));
      bytes += token;
    }
    Utf8Stream stream;
    std::string text = stream.Push(bytes);
    return text += stream.Finish();
  }

  uint32_t size() const override { return vocab_.size(); }
  int32_t bos() const override { return bos_; }
  int32_t eos() const override { return eos_; }
  bool IsControl(int32_t id) const override {
    if (id < 0 || static_cast<uint32_t>(id) >= vocab_.size()) return false;
    const TokenKind kind = vocab_.kind(static_cast<uint32_t>(id));
    return kind == kControl || kind == kUnknown;
  }
  int32_t FindToken(std::string_view token) const override { return vocab_.Find(token); }
  const std::vector<int32_t>& end_tokens() const override { return end_tokens_; }

 private:
  const Vocab vocab_;
  const RustTokenizer encoder_;
  const bool sentence_piece_, add_bos_, add_eos_;
  const int32_t bos_, eos_;
  std::vector<int32_t> end_tokens_;
};

}  // namespace

Result<std::unique_ptr<Tokenizer>> Tokenizer::Create(const VocabSpec& spec) {
  TS_ASSIGN_OR_RETURN(Vocab vocab, Vocab::Build(spec));
  std::vector<float> scores;
  if (spec.model == "llama") {
    scores.reserve(spec.scores.size());
    for (const double score : spec.scores) {
      const auto narrow = static_cast<float>(score);
      if (!std::isfinite(narrow)) {
        return Corrupt(
            fmt::format("token {} has score {}, which is not finite", scores.size(), score));
      }
      scores.push_back(narrow);
    }
  }
  RustVocab rust;
  rust.sentence_piece = spec.model == "llama";
  rust.add_space_prefix = spec.add_space_prefix;
  rust.unknown = static_cast<int32_t>(spec.unknown);
  rust.pre = spec.pre;
  rust.tokens = spec.tokens;
  rust.kinds = vocab.kinds();
  rust.scores = scores;
  if (!rust.sentence_piece) rust.merges = spec.merges;
  Result<RustTokenizer> encoder = NewRustTokenizer(rust);
  if (!encoder.ok()) {
    return Status(encoder.status().code(), "tokenizer: " + encoder.status().message());
  }
  return std::unique_ptr<Tokenizer>(
      std::make_unique<VocabTokenizer>(spec, std::move(vocab), *std::move(encoder)));
}

}  // namespace tinyserve
