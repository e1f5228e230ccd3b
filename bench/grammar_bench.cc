// What following a grammar adds to a step: grammar_bench MODEL.gguf
// Says a text of each grammar token by token, and times its masks and the ruling out of logits.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <numeric>
#include <string>
#include <vector>

#include "engine/grammar_constraint.h"
#include "engine/vocab.h"
#include "tensor/gguf.h"
#include "text/tokenizer.h"

namespace tinyserve {
namespace {

struct Case {
  const char* name;
  GrammarKind kind;
  const char* grammar;
  const char* text;
};

constexpr const char* kPerson =
    R"({"name": "Ada Lovelace", "age": 36, "hobbies": ["mathematics", "walks in the country"]})";
constexpr Case kCases[] = {
    {"any object", GrammarKind::kJsonSchema, R"({"type": "object"})", kPerson},
    {"schema", GrammarKind::kJsonSchema,
     R"({"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"},
         "hobbies": {"type": "array", "items": {"type": "string"}}},
         "required": ["name", "age", "hobbies"], "additionalProperties": false})",
     kPerson},
    {"regex", GrammarKind::kRegex, "([a-z]+ )*[a-z]+[.]", "the quick brown fox jumps over a dog."},
    {"choice", GrammarKind::kLark, R"(start: "approve" | "reject" | "escalate")", "escalate"}};

double MicrosSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start)
      .count();
}

Status Measure(const Tokenizer& tokenizer, const Case& c, Grammars* grammars) {
  const auto begun = std::chrono::steady_clock::now();
  TS_ASSIGN_OR_RETURN(const auto grammar, grammars->Compile(c.kind, c.grammar));
  const double compile = MicrosSince(begun);
  TS_ASSIGN_OR_RETURN(const auto tokens, tokenizer.Encode(c.text, false, false));
  // The second time states of the lexer are there already.
  std::vector<double> times;
  for (int round = 0; round < 2; ++round) {
    TS_ASSIGN_OR_RETURN(const auto state, grammar->Start());
    std::vector<uint32_t> allowed;
    std::vector<float> logits(tokenizer.size());
    for (const int32_t token : tokens) {
      const auto start = std::chrono::steady_clock::now();
      TS_RETURN_IF_ERROR(Constrain(state.get(), &allowed, logits));
      times.push_back(MicrosSince(start));
      TS_RETURN_IF_ERROR(state->Accept(token));
    }
  }
  const auto mean = [&](size_t from, size_t to) {
    return std::accumulate(times.begin() + from, times.begin() + to, 0.0) / (to - from);
  };
  fmt::print(
      "{:12} {:4} tokens, compiled in {:7.0f} us; a mask takes {:6.1f} us, again {:6.1f} us, "
      "at most {:6.1f} us\n",
      c.name, tokens.size(), compile, mean(0, tokens.size()), mean(tokens.size(), times.size()),
      *std::max_element(times.begin(), times.end()));
  return Status();
}

Status Run(const char* path) {
  TS_ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> file, GgufFile::Open(path));
  TS_ASSIGN_OR_RETURN(const VocabSpec vocab, ReadVocab(*file));
  TS_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Create(vocab));
  Grammars grammars(tokenizer.get());
  const auto start = std::chrono::steady_clock::now();
  TS_RETURN_IF_ERROR(grammars.Compile(GrammarKind::kRegex, "a").status());
  fmt::print("{} tokens, made ready in {:.0f} us\n", tokenizer->size(), MicrosSince(start));
  for (const Case& c : kCases) TS_RETURN_IF_ERROR(Measure(*tokenizer, c, &grammars));
  return Status();
}

}  // namespace
}  // namespace tinyserve

int main(int count, char** arguments) {
  if (count != 2) {
    fmt::print(stderr, "grammar_bench MODEL.gguf\n");
    return 2;
  }
  const tinyserve::Status status = tinyserve::Run(arguments[1]);
  if (!status.ok()) fmt::print(stderr, "{}\n", status.message());
  return status.ok() ? 0 : 1;
}
