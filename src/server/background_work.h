// Replies that are made while no client waits for them.
#ifndef TINYSERVE_SERVER_BACKGROUND_WORK_H_
#define TINYSERVE_SERVER_BACKGROUND_WORK_H_

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "server/http_types.h"

namespace tinyserve {

// One thread takes in what has come of all of them, a few times a second: nobody sees it sooner.
// How many there may be is bounded by the engine, which refuses requests past its queue. Any
// thread.
class BackgroundWork {
 public:
  BackgroundWork();
  // Ends what still runs, which cancels it.
  ~BackgroundWork();
  BackgroundWork(const BackgroundWork&) = delete;
  BackgroundWork& operator=(const BackgroundWork&) = delete;

  // Takes in what comes of `work` until it is done, and lets it go then.
  void Run(std::unique_ptr<ReplyWork> work);

 private:
  void Loop();
  void Wake();
  // False: stop. Leaves in `taken` what was added meanwhile.
  bool AwaitWork(std::vector<std::unique_ptr<ReplyWork>>* taken);

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::unique_ptr<ReplyWork>> added_;
  bool woken_ = false, stopping_ = false;
  std::thread thread_;
};

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_BACKGROUND_WORK_H_
