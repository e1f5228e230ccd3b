#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <ctime>
#include <limits>

namespace tinyserve {
namespace {

std::string ByteToken(int byte) {
  char name[8];
  std::snprintf(name, sizeof name, "<0x%02X>", byte);
  return name;
}

// A byte-level vocabulary of a few letters.
VocabSpec Letters() {
  VocabSpec spec;
  spec.model = "gpt2";
  spec.pre = "gpt-2";
  for (const char* token :
       {"a", "b", "c", "Ġ", "ab", "Ġa", "Ċ", "Ã", "©", "<", "|", ">", "e", "n", "d"})
    spec.tokens.push_back(token);
  spec.types.assign(spec.tokens.size(), 1);
  spec.merges = {"a b", "Ġ a"};
  return spec;
}

VocabSpec LettersWithControl() {
  VocabSpec spec = Letters();
  spec.tokens.insert(spec.tokens.end(), {"<|end|>", "<b>"});
  spec.types.insert(spec.types.end(), {3, 4});
  spec.bos = spec.eos = 15;
  return spec;
}

// A SentencePiece-style vocabulary with all byte tokens.
VocabSpec Pieces() {
  VocabSpec spec;
  spec.model = "llama";
  spec.pre = "default";
  const auto add = [&](const std::string& token, int64_t type, double score) {
    spec.tokens.push_back(token);
    spec.types.push_back(type);
    spec.scores.push_back(score);
  };
  add("<unk>", 2, 0);
  add("<s>", 3, 0);
  add("</s>", 3, 0);
  for (int byte = 0; byte < 256; ++byte) add(ByteToken(byte), 6, 0);
  add("▁a", 1, -1);
  add("ab", 1, -2);
  add("▁", 1, -3);
  add("a", 1, -4);
  add("b", 1, -5);
  spec.unknown = 0;
  spec.bos = 1;
  spec.eos = 2;
  return spec;
}
constexpr int32_t kByteFirst = 3, kSpaceA = 259, kAb = 260, kSpace = 261, kA = 262, kB = 263;

std::unique_ptr<Tokenizer> Make(const VocabSpec& spec) {
  auto made = Tokenizer::Create(spec);
  if (!made.ok()) ADD_FAILURE() << made.status().message();
  return made.ok() ? *std::move(made) : nullptr;
}

std::vector<int32_t> Encode(const Tokenizer& tokenizer, std::string_view text, bool add_special,
                            bool parse_special) {
  const auto ids = tokenizer.Encode(text, add_special, parse_special);
  EXPECT_TRUE(ids.ok()) << ids.status().message();
  return ids.ok() ? *ids : std::vector<int32_t>{-99};
}

using Int = std::vector<int32_t>;

TEST(Tokenizer, MergesByRank) {
  const auto tokenizer = Make(Letters());
  EXPECT_EQ(Encode(*tokenizer, "ab aab", false, false), (Int{4, 5, 4}));
  EXPECT_EQ(Encode(*tokenizer, "", true, true), Int{});
  // Bytes without a token are dropped, as the reference does.
  EXPECT_EQ(Encode(*tokenizer, "axb", false, false), (Int{4}));
}

TEST(Tokenizer, ControlTokensInUsersTextStayText) {
  const auto tokenizer = Make(LettersWithControl());
  EXPECT_EQ(Encode(*tokenizer, "a<|end|>b", false, true), (Int{0, 15, 1}));
  EXPECT_EQ(Encode(*tokenizer, "a<|end|>b", false, false), (Int{0, 9, 10, 12, 13, 14, 10, 11, 1}));
  // User-defined tokens are matched either way.
  EXPECT_EQ(Encode(*tokenizer, "a<b>", false, false), (Int{0, 16}));
  EXPECT_EQ(Encode(*tokenizer, "a<b>", false, true), (Int{0, 16}));
}

TEST(Tokenizer, AddsBosAndEosAsTheVocabularyAsks) {
  VocabSpec spec = LettersWithControl();
  EXPECT_EQ(Encode(*Make(spec), "a", true, false), (Int{0}));
  spec.add_bos = true;
  EXPECT_EQ(Encode(*Make(spec), "a", true, false), (Int{15, 0}));
  EXPECT_EQ(Encode(*Make(spec), "a", false, false), (Int{0}));
  EXPECT_EQ(Encode(*Make(spec), "", true, false), (Int{15}));
  spec.add_eos = true;
  EXPECT_EQ(Encode(*Make(spec), "a", true, false), (Int{15, 0, 15}));
}

TEST(Tokenizer, TokensAreBytes) {
  const auto tokenizer = Make(LettersWithControl());
  EXPECT_EQ(*tokenizer->TokenBytes(5, false), " a");
  EXPECT_EQ(*tokenizer->TokenBytes(6, false), "\n");
  EXPECT_EQ(*tokenizer->TokenBytes(7, false), "\xC3");
  EXPECT_EQ(*tokenizer->TokenBytes(15, false), "");
  EXPECT_EQ(*tokenizer->TokenBytes(15, true), "<|end|>");
  EXPECT_EQ(*tokenizer->TokenBytes(16, false), "<b>");
  EXPECT_EQ(tokenizer->TokenBytes(17, false).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(tokenizer->TokenBytes(-1, false).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(*tokenizer->Decode(Int{0, 7, 8, 7, 15}, false), "aé\uFFFD");
  EXPECT_EQ(tokenizer->Decode(Int{0, 99}, false).status().code(), Code::kInvalidArgument);
}

TEST(Tokenizer, AnswersAboutItsTokens) {
  const auto tokenizer = Make(LettersWithControl());
  EXPECT_EQ(tokenizer->size(), 17u);
  EXPECT_EQ(tokenizer->bos(), 15);
  EXPECT_EQ(tokenizer->FindToken("ab"), 4);
  EXPECT_EQ(tokenizer->FindToken("<|end|>"), 15);
  EXPECT_EQ(tokenizer->FindToken("nothing"), -1);
  EXPECT_EQ(tokenizer->FindToken(""), -1);
  EXPECT_TRUE(tokenizer->IsControl(15));
  EXPECT_FALSE(tokenizer->IsControl(16));
  EXPECT_FALSE(tokenizer->IsControl(-1));
  EXPECT_FALSE(tokenizer->IsControl(99));
}

TEST(Tokenizer, EndTokensAreEosAndTheFamilysEndOfTurn) {
  VocabSpec spec = Letters();
  spec.tokens.insert(spec.tokens.end(), {"<|endoftext|>", "<|im_end|>", "<|eot_id|>", "</s>"});
  spec.types.insert(spec.types.end(), {3, 3, 4, 1});
  spec.eos = 16;
  // The token "</s>" is ordinary text here.
  EXPECT_EQ(Make(spec)->end_tokens(), (Int{16, 17, 15}));
  EXPECT_TRUE(Make(Letters())->end_tokens().empty());
}

TEST(Tokenizer, PiecesJoinByScore) {
  const auto tokenizer = Make(Pieces());
  EXPECT_EQ(Encode(*tokenizer, "ab", false, false), (Int{kSpaceA, kB}));
  EXPECT_EQ(Encode(*tokenizer, "bab", false, false), (Int{kSpace, kB, kAb}));
  EXPECT_EQ(Encode(*tokenizer, "", true, false), Int{});
  EXPECT_EQ(Encode(*tokenizer, "é", false, false),
            (Int{kSpace, kByteFirst + 0xC3, kByteFirst + 0xA9}));
  // A control token ends a text; the next one begins with the prefix again.
  EXPECT_EQ(Encode(*tokenizer, "a</s>a", false, true), (Int{kSpaceA, 2, kSpaceA}));
  EXPECT_EQ(*tokenizer->Decode(Int{kSpaceA, kB, kByteFirst + 0xC3, kByteFirst + 0xA9, 2}, false),
            " abé");
}

TEST(Tokenizer, SpacePrefixIsOptional) {
  VocabSpec spec = Pieces();
  spec.add_space_prefix = false;
  EXPECT_EQ(Encode(*Make(spec), "ab", false, false), (Int{kAb}));
}

TEST(Tokenizer, EqualScoresJoinFromTheLeft) {
  VocabSpec spec = Pieces();
  spec.add_space_prefix = false;
  spec.tokens.push_back("aa");
  spec.types.push_back(1);
  spec.scores.push_back(-0.0);
  EXPECT_EQ(Encode(*Make(spec), "aaaaa", false, false), (Int{264, 264, kA}));
}

TEST(Tokenizer, VocabulariesWithoutTypesGoBySpelling) {
  VocabSpec spec = Pieces();
  spec.types.clear();
  const auto tokenizer = Make(spec);
  EXPECT_TRUE(tokenizer->IsControl(2));
  EXPECT_EQ(Encode(*tokenizer, "\n", false, false), (Int{kSpace, kByteFirst + 10}));
}

struct Refusal {
  const char* name;
  void (*break_it)(VocabSpec*);
  Code code;
  const char* message;  // a part of it
};

void ExpectRefused(const VocabSpec& spec, const Refusal& refusal) {
  const auto made = Tokenizer::Create(spec);
  ASSERT_FALSE(made.ok()) << refusal.name;
  EXPECT_EQ(made.status().code(), refusal.code) << refusal.name;
  EXPECT_NE(made.status().message().find(refusal.message), std::string::npos)
      << refusal.name << ": " << made.status().message();
}

TEST(Tokenizer, RefusesBrokenVocabularies) {
  const Refusal refusals[] = {
      {"model", [](VocabSpec* s) { s->model = "bert"; }, Code::kUnsupported, "'bert'"},
      {"pre", [](VocabSpec* s) { s->pre = "no-such"; }, Code::kUnsupported, "'no-such'"},
      {"empty", [](VocabSpec* s) { s->tokens.clear(), s->types.clear(); }, Code::kCorrupt, "empty"},
      {"types", [](VocabSpec* s) { s->types.pop_back(); }, Code::kCorrupt, "14 token types for 15"},
      {"type", [](VocabSpec* s) { s->types[3] = 7; }, Code::kCorrupt, "token 3 has type 7"},
      {"type below", [](VocabSpec* s) { s->types[3] = -1; }, Code::kCorrupt, "type -1"},
      {"twice", [](VocabSpec* s) { s->tokens[2] = "a"; }, Code::kCorrupt, "tokens 0 and 2"},
      {"long", [](VocabSpec* s) { s->tokens[2] = std::string(9000, 'x'); }, Code::kCorrupt, "9000"},
      {"bytes", [](VocabSpec* s) { s->tokens[2] = "\xFF"; }, Code::kCorrupt,
       "token 2 is not valid"},
      {"bos", [](VocabSpec* s) { s->bos = 15; }, Code::kCorrupt, "bos id 15"},
      {"eos", [](VocabSpec* s) { s->eos = -2; }, Code::kCorrupt, "eos id -2"},
      {"unknown", [](VocabSpec* s) { s->unknown = 1LL << 32; }, Code::kCorrupt, "unknown id"},
      {"no bos", [](VocabSpec* s) { s->add_bos = true; }, Code::kCorrupt, "bos"},
      {"no eos", [](VocabSpec* s) { s->add_eos = true; }, Code::kCorrupt, "eos"},
      {"merge part", [](VocabSpec* s) { s->merges[1] = "a zz"; }, Code::kCorrupt, "merge 1: 'zz'"},
      {"merge", [](VocabSpec* s) { s->merges[1] = "b c"; }, Code::kCorrupt, "result 'bc'"},
      {"one part", [](VocabSpec* s) { s->merges[0] = "ab"; }, Code::kCorrupt, "merge 0"},
      {"no parts", [](VocabSpec* s) { s->merges[0] = ""; }, Code::kCorrupt, "merge 0"},
      {"empty part", [](VocabSpec* s) { s->merges[0] = "a "; }, Code::kCorrupt, "merge 0"},
      {"merge bytes", [](VocabSpec* s) { s->merges[0] = "\xC3 a"; }, Code::kCorrupt, "merge 0"},
      {"merge to control", [](VocabSpec* s) { s->types[4] = 3; }, Code::kCorrupt, "result 'ab'"},
  };
  for (const Refusal& refusal : refusals) {
    VocabSpec spec = Letters();
    refusal.break_it(&spec);
    ExpectRefused(spec, refusal);
  }
}

TEST(Tokenizer, RefusesBrokenPieces) {
  const Refusal refusals[] = {
      {"scores", [](VocabSpec* s) { s->scores.clear(); }, Code::kCorrupt, "0 scores for 264"},
      {"nan", [](VocabSpec* s) { s->scores[7] = std::nan(""); }, Code::kCorrupt, "token 7"},
      {"huge", [](VocabSpec* s) { s->scores[7] = 1e300; }, Code::kCorrupt, "not finite"},
      {"byte", [](VocabSpec* s) { s->tokens[9] = "<0xGG>"; }, Code::kCorrupt, "token 9"},
      {"not all texts",
       [](VocabSpec* s) {
         s->types[9] = 1;
         s->unknown = -1;
       },
       Code::kCorrupt, "neither an unknown token nor all 256"},
  };
  for (const Refusal& refusal : refusals) {
    VocabSpec spec = Pieces();
    refusal.break_it(&spec);
    ExpectRefused(spec, refusal);
  }
}

TEST(Tokenizer, EmptyTokensAreNeverMatched) {
  VocabSpec spec = LettersWithControl();
  spec.tokens.insert(spec.tokens.end(), {"", ""});
  spec.types.insert(spec.types.end(), {3, 1});
  const auto tokenizer = Make(spec);
  EXPECT_EQ(Encode(*tokenizer, "ab", false, true), (Int{4}));
  EXPECT_EQ(*tokenizer->TokenBytes(18, true), "");
}

// Of the processor, which other work on the machine does not stretch.
double SecondsToEncode(const Tokenizer& tokenizer, const std::string& text) {
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 3; ++i) {
    const std::clock_t start = std::clock();
    EXPECT_FALSE(Encode(tokenizer, text, false, false).empty());
    best = std::min(best, static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC);
  }
  return best;
}

// Time grows with the text and not with its square: 16 times the text may take 64 times as long, on
// a noisy machine, where squares would take 256 times.
TEST(Tokenizer, LongRunsTakeLinearTime) {
  VocabSpec letters = Letters();
  for (std::string run = "a"; run.size() < 32; run += run) {
    letters.tokens.push_back(run + run);
    letters.types.push_back(1);
    letters.merges.push_back(run + " " + run);
  }
  VocabSpec pieces = Pieces();
  for (std::string run = "a"; run.size() < 32; run += run) {
    pieces.tokens.push_back(run + run);
    pieces.types.push_back(1);
    pieces.scores.push_back(-10);
  }
  for (const VocabSpec& spec : {letters, pieces}) {
    const auto tokenizer = Make(spec);
    for (const char* unit : {"a", " ", "\n", " a", "ab", "<"}) {
      const auto repeat = [&](size_t bytes) {
        std::string text;
        while (text.size() < bytes) text += unit;
        return text;
      };
      const double small = SecondsToEncode(*tokenizer, repeat(size_t{1} << 13));
      const double large = SecondsToEncode(*tokenizer, repeat(size_t{1} << 17));
      EXPECT_LT(large, 64 * small + 0.05) << spec.model << ", runs of '" << unit << "'";
    }
  }
}

// The last space of a run belongs to the word that follows, however long the run.
TEST(Tokenizer, LongRunsOfSpacesAreCutAsShortOnes) {
  for (const char* pre : {"gpt-2", "llama-bpe", "qwen2", "tekken"}) {
    VocabSpec spec = Letters();
    spec.pre = pre;
    spec.tokens.push_back("ĠĠ");
    spec.types.push_back(1);
    spec.merges = {"Ġ Ġ", "Ġ a"};
    const auto tokenizer = Make(spec);
    for (const size_t spaces : {4, 1'200'000}) {
      Int expected(spaces / 2 - 1, 15);
      expected.insert(expected.end(), {3, 5});
      EXPECT_TRUE(Encode(*tokenizer, std::string(spaces, ' ') + "a", false, false) == expected)
          << pre << ", " << spaces;
    }
  }
}

TEST(Tokenizer, AMegabyteOfOneCharacterEndsSoon) {
  for (const VocabSpec& spec : {Letters(), Pieces()}) {
    const auto tokenizer = Make(spec);
    for (const char c : {' ', 'a', '\n'}) {
      const auto ids = tokenizer->Encode(std::string(1 << 20, c), false, true);
      ASSERT_TRUE(ids.ok()) << ids.status().message();
      EXPECT_GE(ids->size(), size_t{1} << 19);
    }
  }
}

}  // namespace
}  // namespace tinyserve
