// A step plugin, as a shared object, that takes `ms` milliseconds over each token and changes
// nothing: a request with it is still under way when a test comes to look, however fast the engine.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>

#include "tinyserve/plugin.h"

namespace {

using Milliseconds = std::chrono::milliseconds;

int Open(const tinyserve_step_shape*, const char* config_json, void** self,
         tinyserve_error* error) {
  const char* ms = std::strchr(config_json, ':');
  if (ms == nullptr) {
    std::snprintf(error->message, sizeof error->message, "ms is missing");
    return 1;
  }
  *self = std::make_unique<Milliseconds>(std::strtol(ms + 1, nullptr, 10)).release();
  return 0;
}

void Close(void* self) { std::unique_ptr<Milliseconds>(static_cast<Milliseconds*>(self)); }

// Not `end`, which requests that ignore ends do not ask.
int AsksAfter(void*, uint32_t layers_done) { return layers_done == 1; }

int Leave(void* self, const tinyserve_layer_in*, uint32_t* leave) {
  std::this_thread::sleep_for(*static_cast<const Milliseconds*>(self));
  *leave = 0;
  return 0;
}

constexpr tinyserve_step_v2 kTable = {.abi_version = TINYSERVE_STEP_ABI_VERSION,
                                      .struct_size = sizeof(tinyserve_step_v2),
                                      .name = "slow",
                                      .config_schema =
                                          R"({"type":"object","properties":{
      "ms":{"type":"integer","minimum":1,"maximum":1000,"default":5}}})",
                                      .priority = 300,
                                      .answer_bytes = 0,
                                      .open = Open,
                                      .close = Close,
                                      .asks_after = AsksAfter,
                                      .leave = Leave,
                                      .end = nullptr,
                                      .measures_every = nullptr,
                                      .prune = nullptr};

}  // namespace

extern "C" const tinyserve_step_v2* tinyserve_step() { return &kTable; }
