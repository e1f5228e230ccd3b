#include "tools/retrieval.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "base/random.h"

namespace tinyserve {
namespace {

using Tokens = std::vector<int32_t>;

constexpr std::array<double, 5> kDepths = {0.1, 0.3, 0.5, 0.7, 0.9};
constexpr std::array<const char*, 4> kNames = {"passkey", "key_value", "multi_turn",
                                               "multi_request"};
// Whose codes are asked for; one for each depth.
constexpr std::array<const char*, 5> kThings = {"red door", "old bridge", "north tower",
                                                "wooden box", "last train"};

class Random {
 public:
  explicit Random(uint64_t seed) : numbers_(seed) {}
  uint64_t Below(uint64_t n) { return numbers_.Next() % n; }
  std::string Digits() { return fmt::format("{}", 10000 + Below(90000)); }

 private:
  SplitMix64 numbers_;
};

struct Fact {
  double depth;
  std::string statement, question, answer;
};

Fact PasskeyAt(double depth, Random* random) {
  const std::string key = random->Digits();
  return {.depth = depth,
          .statement =
              fmt::format("\n\nThe pass key is {0}. Remember it. {0} is the pass key.\n\n", key),
          .question = "\n\nWhat is the pass key? The pass key is",
          .answer = " " + key};
}

Fact CodeAt(size_t thing, Random* random) {
  const std::string code = random->Digits();
  return {
      .depth = kDepths[thing],
      .statement = fmt::format("\n\nThe code of the {0} is {1}. Remember it: the {0} has {1}.\n\n",
                               kThings[thing], code),
      .question =
          fmt::format("\n\nWhat is the code of the {0}? The code of the {0} is", kThings[thing]),
      .answer = fmt::format(" {}", code)};
}

std::string PairKey(Random* random) {
  std::string key;
  for (int i = 0; i < 4; ++i) key += static_cast<char>('a' + random->Below(26));
  return key;
}

// Builds windows of one shape.
class Builder {
 public:
  Builder(const RetrievalShape& shape, const Tokenizer& tokenizer, std::span<const int32_t> prefix,
          std::span<const int32_t> text)
      : shape_(shape), tokenizer_(tokenizer), prefix_(prefix), text_(text) {}

  // Facts in filler from a random place of the text; `asked` of them, in order.
  Result<RetrievalWindow> InText(const std::vector<Fact>& facts, const std::vector<size_t>& asked,
                                 Random* random) const;
  // Pairs from the begin to the end of the context; one at `depth` is asked for.
  Result<RetrievalWindow> InPairs(double depth, Random* random) const;

 private:
  Result<Tokens> Encode(const std::string& text) const {
    return tokenizer_.Encode(text, false, false);
  }
  Status Append(const std::string& text, Tokens* tokens) const {
    TS_ASSIGN_OR_RETURN(const Tokens more, Encode(text));
    tokens->insert(tokens->end(), more.begin(), more.end());
    return Status();
  }
  // Questions and answers; the answers' places are counted from the first question.
  Result<RetrievalWindow> Questions(const std::vector<Fact>& facts,
                                    const std::vector<size_t>& asked) const;
  // The window of a context and the questions after it.
  Result<RetrievalWindow> Join(Tokens context, RetrievalWindow questions) const;
  uint32_t context_tokens(const RetrievalWindow& questions) const {
    return shape_.tokens + 1 - static_cast<uint32_t>(prefix_.size() + questions.tokens.size());
  }

  const RetrievalShape& shape_;
  const Tokenizer& tokenizer_;
  std::span<const int32_t> prefix_, text_;
};

Result<RetrievalWindow> Builder::Questions(const std::vector<Fact>& facts,
                                           const std::vector<size_t>& asked) const {
  RetrievalWindow out;
  for (uint32_t turn = 0; turn < asked.size(); ++turn) {
    const Fact& fact = facts[asked[turn]];
    TS_RETURN_IF_ERROR(Append(fact.question, &out.tokens));
    const auto first = static_cast<uint32_t>(out.tokens.size());
    TS_RETURN_IF_ERROR(Append(fact.answer, &out.tokens));
    out.answers.push_back({.depth = fact.depth,
                           .turn = turn,
                           .first = first,
                           .count = static_cast<uint32_t>(out.tokens.size()) - first});
    TS_RETURN_IF_ERROR(Append(".", &out.tokens));
  }
  if (out.tokens.size() + prefix_.size() + 64 > shape_.tokens ||
      out.tokens.size() > shape_.decoded) {
    return Status(
        Code::kInvalidArgument,
        fmt::format("--task: questions and answers take {} tokens, of {} that are decoded "
                    "(--score) in a context of {}",
                    out.tokens.size(), shape_.decoded, shape_.tokens));
  }
  return Result<RetrievalWindow>(std::move(out));
}

Result<RetrievalWindow> Builder::Join(Tokens context, RetrievalWindow questions) const {
  RetrievalWindow window{.tokens = {prefix_.begin(), prefix_.end()},
                         .answers = std::move(questions.answers)};
  window.tokens.insert(window.tokens.end(), context.begin(), context.end());
  for (RetrievalAnswer& answer : window.answers)
    answer.first += static_cast<uint32_t>(window.tokens.size());
  window.tokens.insert(window.tokens.end(), questions.tokens.begin(), questions.tokens.end());
  return Result<RetrievalWindow>(std::move(window));
}

Result<RetrievalWindow> Builder::InText(const std::vector<Fact>& facts,
                                        const std::vector<size_t>& asked, Random* random) const {
  TS_ASSIGN_OR_RETURN(RetrievalWindow questions, Questions(facts, asked));
  const uint32_t wanted = context_tokens(questions);
  std::vector<Tokens> statements;
  size_t stated = 0;
  for (const Fact& fact : facts) {
    TS_ASSIGN_OR_RETURN(statements.emplace_back(), Encode(fact.statement));
    stated += statements.back().size();
  }
  if (stated >= wanted || text_.size() < wanted - stated) {
    return Status(
        Code::kInvalidArgument,
        fmt::format("--task: a context of {} tokens needs room for facts of {} and a text of {} "
                    "(it has {})",
                    shape_.tokens, stated, wanted - std::min<size_t>(wanted, stated),
                    text_.size()));
  }
  const size_t filler = wanted - stated, begin = random->Below(text_.size() - filler + 1);
  Tokens context;
  size_t used = 0;
  for (size_t f = 0; f <= facts.size(); ++f) {
    const size_t end =
        f == facts.size()
            ? filler
            : static_cast<size_t>(std::lround(facts[f].depth * static_cast<double>(filler)));
    const auto first = text_.begin() + static_cast<int64_t>(begin);
    context.insert(context.end(), first + static_cast<int64_t>(used),
                   first + static_cast<int64_t>(end));
    used = end;
    if (f < facts.size()) context.insert(context.end(), statements[f].begin(), statements[f].end());
  }
  return Join(std::move(context), std::move(questions));
}

Result<RetrievalWindow> Builder::InPairs(double depth, Random* random) const {
  const std::string key = PairKey(random), value = random->Digits();
  const auto pair = [](const std::string& k, const std::string& v) {
    return fmt::format("\nThe value of {} is {}.", k, v);
  };
  const Fact fact{.depth = depth,
                  .statement = pair(key, value),
                  .question = fmt::format("\n\nThe value of {} is", key),
                  .answer = " " + value};
  TS_ASSIGN_OR_RETURN(RetrievalWindow questions, Questions({fact}, {0}));
  const uint32_t wanted = context_tokens(questions);
  TS_ASSIGN_OR_RETURN(const Tokens asked, Encode(fact.statement));
  Tokens context;
  const auto place = static_cast<size_t>(depth * wanted);
  bool placed = false;
  while (context.size() < wanted) {
    if (!placed && context.size() + asked.size() > place) {
      context.insert(context.end(), asked.begin(), asked.end());
      placed = true;
      continue;
    }
    const std::string other = PairKey(random);
    TS_RETURN_IF_ERROR(Append(pair(other, random->Digits()), &context));
  }
  context.resize(wanted);
  return Join(std::move(context), std::move(questions));
}

}  // namespace

const char* NameOf(RetrievalTask task) { return kNames[static_cast<size_t>(task)]; }

std::vector<std::string> RetrievalTaskNames() { return {kNames.begin(), kNames.end()}; }

Result<RetrievalTask> ParseRetrievalTask(const std::string& name) {
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (name == kNames[i]) return static_cast<RetrievalTask>(i);
  }
  return Status(Code::kInvalidArgument, fmt::format("--task {}: there is no such task", name));
}

std::span<const double> RetrievalDepths() { return kDepths; }

Result<std::vector<RetrievalWindow>> MakeRetrieval(RetrievalTask task, const RetrievalShape& shape,
                                                   uint32_t trials, uint64_t seed,
                                                   const Tokenizer& tokenizer,
                                                   std::span<const int32_t> prefix,
                                                   std::span<const int32_t> text) {
  const Builder builder(shape, tokenizer, prefix, text);
  std::vector<RetrievalWindow> windows;
  for (uint32_t trial = 0; trial < trials; ++trial) {
    const uint64_t trial_seed = seed * 1000003 + trial * 31 + static_cast<uint64_t>(task) % 3;
    if (task == RetrievalTask::kMultiTurn || task == RetrievalTask::kMultiRequest) {
      std::vector<Fact> facts;
      Random values(seed * 1000003 + trial);
      std::vector<size_t> all;
      for (size_t i = 0; i < kDepths.size(); ++i) {
        facts.push_back(CodeAt(i, &values));
        all.push_back(i);
      }
      for (size_t i = 0; i < (task == RetrievalTask::kMultiTurn ? 1 : all.size()); ++i) {
        Random filler(seed * 7 + trial);
        const std::vector<size_t> asked =
            task == RetrievalTask::kMultiTurn ? all : std::vector<size_t>{i};
        TS_ASSIGN_OR_RETURN(windows.emplace_back(), builder.InText(facts, asked, &filler));
        if (task == RetrievalTask::kMultiRequest)
          windows.back().answers[0].turn = static_cast<uint32_t>(i);
      }
      continue;
    }
    Random random(trial_seed);
    for (const double depth : kDepths) {
      if (task == RetrievalTask::kPasskey) {
        TS_ASSIGN_OR_RETURN(windows.emplace_back(),
                            builder.InText({PasskeyAt(depth, &random)}, {0}, &random));
      } else {
        TS_ASSIGN_OR_RETURN(windows.emplace_back(), builder.InPairs(depth, &random));
      }
    }
  }
  return windows;
}

}  // namespace tinyserve
