#include "server/background_work.h"

#include <chrono>
#include <string>
#include <utility>

namespace tinyserve {
namespace {

constexpr std::chrono::milliseconds kRest(50);

}  // namespace

BackgroundWork::BackgroundWork() : thread_([this] { Loop(); }) {}

BackgroundWork::~BackgroundWork() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

void BackgroundWork::Run(std::unique_ptr<ReplyWork> work) {
  {
    std::lock_guard lock(mutex_);
    added_.push_back(std::move(work));
    woken_ = true;
  }
  changed_.notify_one();
}

// Called by the engine's thread while a queue of events holds its wake: nothing here sets one while
// it holds mutex_.
void BackgroundWork::Wake() {
  {
    std::lock_guard lock(mutex_);
    if (std::exchange(woken_, true)) return;
  }
  changed_.notify_one();
}

bool BackgroundWork::AwaitWork(std::vector<std::unique_ptr<ReplyWork>>* taken) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return woken_ || stopping_; });
  // Tokens that come meanwhile wake nobody.
  changed_.wait_for(lock, kRest, [this] { return stopping_; });
  woken_ = false;
  *taken = std::exchange(added_, {});
  return !stopping_;
}

void BackgroundWork::Loop() {
  std::vector<std::unique_ptr<ReplyWork>> works, taken;
  std::string unsent;
  while (AwaitWork(&taken)) {
    for (std::unique_ptr<ReplyWork>& work : taken) {
      work->SetWake([this](News) { Wake(); });
      works.push_back(std::move(work));
    }
    std::erase_if(works, [&](const auto& work) { return work->Advance(&unsent); });
    unsent.clear();
  }
}

}  // namespace tinyserve
