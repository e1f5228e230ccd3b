#include "tools/eval_tasks.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/object.hpp>
#include <cstdio>

#include "engine/vocab.h"
#include "text/tokenizer.h"
#include "tools/eval_runner.h"
#include "tools/format.h"
#include "tools/loaded_model.h"
#include "tools/progress.h"
#include "tools/retrieval.h"
#include "tools/trace_report.h"

namespace tinyserve {
namespace {

constexpr uint32_t kChunkTokens = 512;  // prompt tokens of one step
constexpr uint64_t kSeed = 1;

// What is shared by all tasks and contexts.
struct TaskEval {
  const MethodEvalFlags* flags;
  const EngineFlags* engine;
  std::vector<Method> methods;
  LoadedModel model;
  TextTokens text;
  std::unique_ptr<Tokenizer> tokenizer;
};

// Answers at one depth, or in one turn.
struct TaskScore {
  double depth = 0;
  uint32_t turn = 0, answers = 0;
  double right = 0;    // answers whose every token was the likeliest
  double logprob = 0;  // of the right answers, summed
};

// [dense, then the methods][depth or turn]
using TaskScores = std::vector<std::vector<TaskScore>>;

struct TaskCase {
  RetrievalTask task;
  uint32_t context;
  std::vector<RetrievalWindow> windows;
};

// The index of an answer's depth: facts of several turns have one turn each.
size_t PlaceOf(const RetrievalAnswer& answer) {
  const std::span<const double> depths = RetrievalDepths();
  return static_cast<size_t>(std::find(depths.begin(), depths.end(), answer.depth) -
                             depths.begin());
}

EvalShape ShapeOf(const TaskEval& eval, uint32_t context) {
  return {.prompt_tokens = context - eval.flags->window_scored,
          .scored_tokens = eval.flags->window_scored};
}

Result<std::vector<TaskCase>> PlanCases(const TaskEval& eval) {
  const uint32_t trained = eval.model.config().context, scored = eval.flags->window_scored;
  std::vector<uint32_t> contexts = eval.flags->contexts;
  if (contexts.empty()) contexts.push_back(std::min(MethodEvalFlags::kContextDefault, trained));
  std::vector<TaskCase> cases;
  for (const std::string& name : eval.flags->tasks) {
    TS_ASSIGN_OR_RETURN(const RetrievalTask task, ParseRetrievalTask(name));
    for (uint32_t context : contexts) {
      if (context > trained || context <= scored + 64) {
        return Status(Code::kInvalidArgument,
                      fmt::format("--context {}: allowed are {} to {} when --score is {}", context,
                                  scored + 65, trained, scored));
      }
      TS_ASSIGN_OR_RETURN(
          std::vector<RetrievalWindow> windows,
          MakeRetrieval(task, {.tokens = context, .decoded = scored}, eval.flags->trials, kSeed,
                        *eval.tokenizer, eval.text.prefix, eval.text.tokens));
      cases.push_back({.task = task, .context = context, .windows = std::move(windows)});
    }
  }
  return cases;
}

Result<TaskScores> RunCase(const TaskEval& eval, const TaskCase& c,
                           const std::function<void(double)>& progress) {
  const EvalRunnerOptions options{.model = &eval.model,
                                  .base_kv = BaseKv(eval.engine->kv),
                                  .page_tokens = eval.engine->page_tokens,
                                  .chunk_tokens = kChunkTokens,
                                  .methods = eval.methods,
                                  .kv_bytes_max = KvBytesMax(*eval.engine, eval.model),
                                  .timed_selection = false,
                                  .shadow_check = 0};
  TS_ASSIGN_OR_RETURN(const std::unique_ptr<EvalRunner> runner,
                      EvalRunner::Create(options, ShapeOf(eval, c.context)));
  const size_t lanes = eval.methods.size() + 1;
  TaskScores scores(lanes, std::vector<TaskScore>(RetrievalDepths().size()));
  for (size_t w = 0; w < c.windows.size(); ++w) {
    const RetrievalWindow& window = c.windows[w];
    // [answer][lane]
    std::vector<std::vector<TaskScore>> of(window.answers.size(), std::vector<TaskScore>(lanes));
    for (auto& answer : of) std::fill(answer.begin(), answer.end(), TaskScore{.right = 1});
    const auto take = [&](size_t method, uint32_t position, const TokenComparison& t) {
      for (size_t a = 0; a < of.size(); ++a) {
        const RetrievalAnswer& answer = window.answers[a];
        if (position + 1 < answer.first || position + 1 >= answer.first + answer.count) continue;
        const auto add = [](TaskScore* score, bool hit, double nll) {
          if (!hit) score->right = 0;
          score->logprob -= nll;
        };
        add(&of[a][method + 1], t.hit, t.nll);
        if (method == 0) add(&of[a][0], t.dense_hit, t.dense_nll);
      }
    };
    const auto update = [&](double part) {
      progress((static_cast<double>(w) + part) / static_cast<double>(c.windows.size()));
    };
    TS_RETURN_IF_ERROR(runner->RunWindow(window.tokens, update, take));
    for (size_t a = 0; a < of.size(); ++a) {
      for (size_t lane = 0; lane < lanes; ++lane) {
        TaskScore& score = scores[lane][PlaceOf(window.answers[a])];
        score.depth = window.answers[a].depth;
        score.turn = window.answers[a].turn;
        ++score.answers;
        score.right += of[a][lane].right;
        score.logprob += of[a][lane].logprob;
      }
    }
  }
  return scores;
}

boost::json::object LineJson(const TaskEval& eval, const TaskCase& c, size_t method,
                             const TaskScore& score, const TaskScore& dense) {
  const Method& m = eval.methods[method];
  const auto mean = [](double sum, const TaskScore& s) { return Significant(sum / s.answers, 6); };
  return {{"task", NameOf(c.task)},
          {"method", m.typed},
          {"resolved", m.resolved},
          {"context", c.context},
          {"depth", score.depth},
          {"turn", score.turn},
          {"answers", score.answers},
          {"accuracy", mean(score.right, score)},
          {"logprob", mean(score.logprob, score)},
          {"dense_accuracy", mean(dense.right, dense)},
          {"dense_logprob", mean(dense.logprob, dense)},
          {"engine", "tinyserve"},
          {"kind", "retrieval"},
          {"model", eval.model.config().name},
          {"text", eval.flags->text},
          {"target", eval.model.backend->target()},
          {"kv", m.kv},
          {"base_kv", BaseKv(eval.engine->kv)},
          {"page_tokens", eval.engine->page_tokens},
          {"compute", eval.engine->compute}};
}

std::string TableRow(const std::string& name, size_t columns,
                     const std::vector<TaskScore>& scores) {
  std::string row = fmt::format("{:<{}}", PrintableLine(name, 200), columns);
  for (const TaskScore& s : scores) {
    row += fmt::format("  {:>4.0f} % {:>7.2f}", 100 * s.right / s.answers, s.logprob / s.answers);
  }
  return row + "\n";
}

void PrintTable(const TaskEval& eval, const TaskCase& c, const TaskScores& scores) {
  size_t columns = 16;
  for (const Method& method : eval.methods) columns = std::max(columns, method.typed.size());
  std::string head = fmt::format("{:<{}}", "by depth", columns);
  for (const TaskScore& score : scores[0]) head += fmt::format("  {:>14.1f}", score.depth);
  fmt::print("\n{} in {} tokens: right answers, and their log-probability\n{}\n{}", NameOf(c.task),
             c.context, head, TableRow("dense " + BaseKv(eval.engine->kv), columns, scores[0]));
  for (size_t method = 0; method < eval.methods.size(); ++method)
    fmt::print("{}", TableRow(eval.methods[method].typed, columns, scores[method + 1]));
  std::fflush(stdout);
}

}  // namespace

Result<int> EvaluateTasks(const MethodEvalFlags& flags, const EngineFlags& engine,
                          JsonOutput* output) {
  TaskEval eval{.flags = &flags, .engine = &engine, .methods = {}, .model = {}, .text = {}};
  TS_ASSIGN_OR_RETURN(eval.methods, LoadMethods(engine, flags.methods));
  TS_ASSIGN_OR_RETURN(eval.model, LoadWithProgress(engine));
  TS_ASSIGN_OR_RETURN(eval.text, ReadTextTokens(flags.text, *eval.model.file));
  TS_ASSIGN_OR_RETURN(const VocabSpec vocab, ReadVocab(*eval.model.file));
  TS_ASSIGN_OR_RETURN(eval.tokenizer, Tokenizer::Create(vocab));
  TS_ASSIGN_OR_RETURN(const std::vector<TaskCase> cases, PlanCases(eval));
  double total = 0, done = 0;
  for (const TaskCase& c : cases) total += static_cast<double>(c.context * c.windows.size());
  Progress progress("", 0.3, 1.0);
  for (const TaskCase& c : cases) {
    const double work = static_cast<double>(c.context * c.windows.size());
    progress.SetLabel(fmt::format("{} in {} tokens", NameOf(c.task), c.context));
    TS_ASSIGN_OR_RETURN(const TaskScores scores, RunCase(eval, c, [&](double part) {
                          progress.Update((done + part * work) / total);
                        }));
    done += work;
    progress.Clear();
    for (size_t m = 0; output->wanted() && m < eval.methods.size(); ++m) {
      for (size_t place = 0; place < scores[0].size(); ++place) {
        TS_RETURN_IF_ERROR(
            output->Write(LineJson(eval, c, m, scores[m + 1][place], scores[0][place])));
      }
    }
    if (!output->on_stdout()) PrintTable(eval, c, scores);
  }
  TS_RETURN_IF_ERROR(EndTrace(eval.model, engine));
  return 0;
}

}  // namespace tinyserve
