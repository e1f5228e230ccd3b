#include "tools/generation.h"

#include <fmt/format.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <utility>

#include "tools/format.h"
#include "tools/progress.h"
#include "tools/terminal.h"

namespace tinyserve {
namespace {

// How soon Ctrl-C is noticed while nothing else happens.
constexpr std::chrono::milliseconds kPollInterval(50);

// Events on their way from the engine's thread. Bounded by the request's own max_tokens.
class EventQueue {
 public:
  void Push(const TokenEvent& event) {
    {
      std::lock_guard lock(mutex_);
      events_.push_back(event);
    }
    ready_.notify_one();
  }
  // What has come, after at most `wait`; maybe nothing.
  std::vector<TokenEvent> Take(std::chrono::milliseconds wait) {
    std::unique_lock lock(mutex_);
    ready_.wait_for(lock, wait, [this] { return !events_.empty(); });
    return std::exchange(events_, {});
  }

 private:
  std::mutex mutex_;
  std::condition_variable ready_;
  std::vector<TokenEvent> events_;
};

}  // namespace

Result<std::unique_ptr<Engine>> OpenEngine(EngineOptions options) {
  Progress progress("Loading", 0.2, 0.5);
  options.on_load_progress = [&](double fraction) { progress.Update(fraction); };
  return Engine::Open(options);
}

const char* FinishName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone:
      return "none";
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kDeadline:
      return "deadline";
    case FinishReason::kError:
      return "error";
  }
  return "?";
}

Result<GeneratedAnswer> Generate(Engine* engine, const Request& request,
                                 const GenerateHooks& hooks) {
  // Shared with the sink: an event may still be on its way when an error ends this function.
  const auto queue = std::make_shared<EventQueue>();
  TS_ASSIGN_OR_RETURN(const RequestId id, engine->Submit(request, [queue](const TokenEvent& event) {
    queue->Push(event);
  }));
  GeneratedAnswer generation;
  Progress progress("Reading the prompt", 0.5, 2.0);
  uint32_t prompt_done = 0;
  for (;;) {
    const std::vector<TokenEvent> events = queue->Take(kPollInterval);
    if (hooks.interrupt != nullptr && hooks.interrupt->Take()) {
      generation.interrupted = true;
      engine->Cancel(id);
    }
    for (const TokenEvent& event : events) {
      if (event.kind == TokenEvent::Kind::kPrefill) {
        prompt_done = event.done;
        if (hooks.prompt_progress) {
          hooks.prompt_progress(event.done, event.total);
        } else {
          progress.Update(static_cast<double>(event.done) / event.total);
        }
        continue;
      }
      progress.Clear();
      if (event.kind == TokenEvent::Kind::kToken) {
        generation.tokens.push_back({event.token, event.logprob, event.top});
      }
      generation.text += event.text;
      if (!event.text.empty() && hooks.show) hooks.show(event.text);
      if (event.kind == TokenEvent::Kind::kFinished) {
        if (event.finish == FinishReason::kError) return event.status;
        generation.finish = event.finish;
        generation.usage = event.usage;
        // A prompt that was stopped half-way cost no more than was read of it.
        if (event.usage.completion_tokens == 0) generation.usage.prompt_tokens = prompt_done;
        generation.prompt_logprobs = event.prompt_logprobs;
        return generation;
      }
    }
  }
}

Status ShowText(std::string_view text) {
  const std::string shown = StdoutIsTerminal() ? Printable(text) : std::string(text);
  if (std::fwrite(shown.data(), 1, shown.size(), stdout) != shown.size() ||
      std::fflush(stdout) != 0) {
    return Status(Code::kIo,
                  fmt::format("cannot write to standard output: {}", std::strerror(errno)));
  }
  return Status();
}

}  // namespace tinyserve
