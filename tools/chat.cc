// `tinyserve chat`: a conversation on the terminal (or line by line from a pipe).
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <memory>

#include "base/machine.h"
#include "tools/commands.h"
#include "tools/config_file.h"
#include "tools/conversation.h"
#include "tools/format.h"
#include "tools/generation.h"
#include "tools/options.h"
#include "tools/run_cost.h"
#include "tools/terminal.h"
#include "tools/trace_report.h"

namespace tinyserve {
namespace {

constexpr const char* kHelp =
    "/reset   forget the conversation (the system message stays)\n"
    "/stats   what the last answer cost\n"
    "/help    this list\n"
    "/quit    leave; so does Ctrl-D, or Ctrl-C twice\n"
    "Ctrl-C   stop the answer\n"
    "\"\"\"      on a line of its own: begins and ends a message of several lines\n";

struct ChatFlags {
  EngineFlags engine;
  SamplingFlags sampling;
  std::string system, on_full = "drop";
};

class Chat {
 public:
  Chat(const ChatFlags& flags, Engine* engine, double load_seconds)
      : flags_(flags),
        engine_(engine),
        load_seconds_(load_seconds),
        conversation_(flags.system, engine->info().context_tokens, flags.sampling.max_tokens,
                      flags.on_full == "refuse" ? FullPolicy::kRefuse : FullPolicy::kDrop) {}

  Status Run();

 private:
  enum class Input : uint8_t { kMessage, kQuit };

  void Greet() const;
  Input ReadMessage(std::string* message);
  LineReader::Outcome ReadBlock(std::string* message);
  // False: leave.
  bool Command(const std::string& line);
  Status Answer(const std::string& question);
  void Note(const GeneratedAnswer& generation, uint32_t answer_tokens_max) const;
  void PrintStats();
  // Words of the program itself, apart from the answers.
  template <class... Args>
  void Say(fmt::format_string<Args...> text, Args&&... args) const {
    fmt::print(stderr, "{}\n", fmt::format(text, std::forward<Args>(args)...));
  }

  const ChatFlags& flags_;
  Engine* engine_;
  double load_seconds_;
  BoundedConversation conversation_;
  InterruptFlag interrupt_;
  LineReader reader_;
  Usage last_;                  // of the last answer
  EngineStats before_, after_;  // around it
  uint64_t answered_ = 0;       // tokens of all answers
  double bandwidth_ = 0;        // measured at the first /stats
  uint64_t peak_bytes_ = 0;     // before the bandwidth was measured, which takes memory too
};

Status Chat::Run() {
  Greet();
  std::string message;
  while (ReadMessage(&message) == Input::kMessage) {
    if (message.empty()) continue;
    if (message.front() == '/') {
      if (!Command(message)) break;
      continue;
    }
    TS_RETURN_IF_ERROR(Answer(message));
  }
  if (last_.completion_tokens > 0) PrintStats();
  return Status();
}

void Chat::Greet() const {
  if (!StdinIsTerminal()) return;
  const ModelInfo& info = engine_->info();
  Say("{}, context {} tokens. /help lists the commands, Ctrl-D leaves.\n{}",
      info.name.empty() ? "A model without a name" : PrintableLine(info.name, 60),
      info.context_tokens,
      info.has_chat_template
          ? ""
          : "The file has no chat template: ChatML is assumed, and answers may be odd.\n");
}

Chat::Input Chat::ReadMessage(std::string* message) {
  for (bool asked_twice = false;;) {
    if (StdinIsTerminal()) fmt::print(stderr, "> ");
    switch (reader_.Read(message, interrupt_.wake_fd())) {
      case LineReader::Outcome::kEnd:
        if (StdinIsTerminal()) fmt::print(stderr, "\n");
        return Input::kQuit;
      case LineReader::Outcome::kInterrupted:
        interrupt_.Take();
        fmt::print(stderr, "\n");
        if (asked_twice) return Input::kQuit;
        asked_twice = true;
        Say("Ctrl-C once more, or /quit, leaves.");
        continue;
      case LineReader::Outcome::kLine:
        break;
    }
    if (!message->empty() && message->back() == '\r') message->pop_back();
    if (*message != "\"\"\"") return Input::kMessage;
    if (ReadBlock(message) != LineReader::Outcome::kInterrupted) return Input::kMessage;
    interrupt_.Take();
    fmt::print(stderr, "\n");
  }
}

LineReader::Outcome Chat::ReadBlock(std::string* message) {
  message->clear();
  for (std::string line;;) {
    const LineReader::Outcome outcome = reader_.Read(&line, interrupt_.wake_fd());
    if (outcome == LineReader::Outcome::kInterrupted) return outcome;
    if (outcome == LineReader::Outcome::kEnd || line == "\"\"\"" || line == "\"\"\"\r")
      return LineReader::Outcome::kLine;
    if (!message->empty()) *message += '\n';
    *message += line;
  }
}

bool Chat::Command(const std::string& line) {
  const std::string name = line.substr(0, line.find(' '));
  if (name == "/quit" || name == "/exit") return false;
  if (name == "/reset") {
    conversation_.Reset();
    Say("The conversation is forgotten.");
  } else if (name == "/stats") {
    PrintStats();
  } else if (name == "/help") {
    fmt::print(stderr, "{}", kHelp);
  } else {
    Say("{} is no command; /help lists them.", PrintableLine(name, 40));
  }
  return true;
}

Status Chat::Answer(const std::string& question) {
  const auto render = [this](const std::vector<Message>& messages) -> Result<std::vector<int32_t>> {
    TS_ASSIGN_OR_RETURN(const std::string text, engine_->RenderChat(messages, true));
    return engine_->Tokenize(text, /*add_special=*/false, /*parse_special=*/true);
  };
  const Result<BoundedConversation::Fitted> fitted = conversation_.Ask(question, render);
  if (!fitted.ok()) {
    Say("Not sent: {}. /reset makes room.", fitted.status().message());
    return Status();
  }
  if (fitted->dropped_turns > 0) {
    Say("[The context is full: the {} oldest of {} turns {} forgotten.]", fitted->dropped_turns,
        fitted->dropped_turns + conversation_.turns(), fitted->dropped_turns == 1 ? "is" : "are");
  }
  Request request;
  TS_RETURN_IF_ERROR(flags_.sampling.Apply(&request));
  request.session = "chat";
  request.prompt = fitted->prompt;
  request.max_tokens = std::min(request.max_tokens, fitted->answer_tokens_max);
  Status shown;
  const GenerateHooks hooks{.show =
                                [&](std::string_view text) {
                                  if (shown.ok()) shown = ShowText(text);
                                },
                            .prompt_progress = {},
                            .interrupt = &interrupt_};
  const EngineStats before = engine_->stats();
  const Result<GeneratedAnswer> generation = Generate(engine_, request, hooks);
  if (!generation.ok()) {
    conversation_.TakeBack();
    return generation.status();
  }
  TS_RETURN_IF_ERROR(shown);
  TS_RETURN_IF_ERROR(ShowText("\n"));
  last_ = generation->usage;
  before_ = before;
  after_ = engine_->stats();
  answered_ += last_.completion_tokens;
  Note(*generation, fitted->answer_tokens_max);
  if (generation->text.empty()) {
    conversation_.TakeBack();
  } else {
    conversation_.Answer(generation->text);
  }
  return Status();
}

// Why an answer ended, where that was not the model's own will.
void Chat::Note(const GeneratedAnswer& generation, uint32_t answer_tokens_max) const {
  if (generation.interrupted) {
    Say("[Stopped. What was said so far stays in the conversation.]");
  } else if (generation.finish == FinishReason::kLength) {
    const bool context = answer_tokens_max <= flags_.sampling.max_tokens;
    if (context) {
      Say("[Cut: the context of {} tokens is full.]", engine_->info().context_tokens);
    } else {
      Say("[Cut after --max-tokens {}.]", flags_.sampling.max_tokens);
    }
  }
  if (StdinIsTerminal()) fmt::print(stderr, "\n");
}

void Chat::PrintStats() {
  if (last_.completion_tokens == 0) return Say("Nothing was answered yet.");
  RunCost cost = CostOf(last_, engine_->info(), before_, after_, load_seconds_);
  if (bandwidth_ == 0) {
    peak_bytes_ = cost.peak_resident_bytes;
    bandwidth_ = StderrIsTerminal() ? QuickBandwidth(engine_->info().threads) : 0;
  }
  peak_bytes_ = std::max(peak_bytes_, ResidentBytes());
  cost.peak_resident_bytes = peak_bytes_;
  cost.bandwidth_bytes_per_s = bandwidth_;
  fmt::print(stderr, "{}", FormatCost(cost));
  Say("chat    {} turns, {} tokens answered; context {} of {} tokens", conversation_.turns(),
      answered_, last_.prompt_tokens + last_.completion_tokens, engine_->info().context_tokens);
}

Result<int> RunChat(const ChatFlags& flags, CLI::App* app) {
  TS_RETURN_IF_ERROR(ApplyConfigFile(flags.engine.config, app));
  TS_RETURN_IF_ERROR(RequireModel(flags.engine));
  Request probe;
  TS_RETURN_IF_ERROR(flags.sampling.Apply(&probe));
  const auto start = std::chrono::steady_clock::now();
  TS_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, OpenEngine(flags.engine.ToOptions()));
  const std::chrono::duration<double> load = std::chrono::steady_clock::now() - start;
  Chat chat(flags, engine.get(), load.count());
  TS_RETURN_IF_ERROR(chat.Run());
  TS_RETURN_IF_ERROR(EndTrace(engine.get(), flags.engine));
  return 0;
}

}  // namespace

void AddChat(CLI::App* parent, Command* run) {
  CLI::App* app = parent->add_subcommand("chat", "Talk with an instruct model");
  const auto flags = std::make_shared<ChatFlags>();
  AddModelOption(app, &flags->engine.model, false);
  AddConfigOption(app, &flags->engine);
  app->add_option("--system", flags->system, "System message at the head of the conversation")
      ->type_name("TEXT");
  Choose(app->add_option("--on-full", flags->on_full,
                         "When the conversation outgrows the context: drop the oldest turns (and "
                         "say so), or refuse the message")
             ->type_name("HOW")
             ->capture_default_str(),
         {"drop", "refuse"});
  AddSamplingOptions(app, &flags->sampling);
  AddEngineOptions(app, &flags->engine);
  AddSelectorOptions(app, &flags->engine);
  AddExample(app, "tinyserve chat --model model.gguf --system \"You answer in one sentence.\"");
  app->callback([=] { *run = [=] { return RunChat(*flags, app); }; });
}

}  // namespace tinyserve
