// Selectors with a device entry that is wrong in one way: FAULT names it. With "nan" it loads, and
// its kernel is faulty_score of kernels.cc.
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "tinyserve/plugin.h"
#include "tinyserve/plugin_device.h"

namespace {

constexpr std::string_view kFault = FAULT;

uint64_t wrong_layers = 0;

// The options: {"layers":2}.
int Open(const tinyserve_shape*, const char* config_json, void** self, tinyserve_error*) {
  wrong_layers = std::strtoull(std::strchr(config_json, ':') + 1, nullptr, 10);
  *self = &wrong_layers;
  return 0;
}
int Select(void*, const tinyserve_select_in*, uint32_t, uint32_t, tinyserve_select_out*) {
  return 1;
}
void Close(void*) {}
int Parameters(void* self, uint64_t* parameters, tinyserve_error*) {
  parameters[0] = *static_cast<const uint64_t*>(self);
  return 0;
}

constexpr char kImage[] = ".version faulty", kUnknown[] = ".version of another architecture";

constexpr tinyserve_selector_v2 kTable = {.abi_version = TINYSERVE_SELECTOR_ABI_VERSION,
                                          .struct_size = sizeof(tinyserve_selector_v2),
                                          .name = "faulty_" FAULT,
                                          .config_schema = R"({"type":"object","properties":{
      "layers":{"type":"integer","minimum":0,"maximum":100,"default":0}}})",
                                          .needs = TINYSERVE_NEEDS_BOX,
                                          .open = Open,
                                          .select = Select,
                                          .close = Close};
constexpr tinyserve_selector_device_v1 kEntry = {
    .abi_version = kFault == "old" ? 0 : TINYSERVE_SELECTOR_DEVICE_ABI_VERSION,
    .struct_size = kFault == "short" ? 16 : sizeof(tinyserve_selector_device_v1),
    .image = kFault == "arch" ? kUnknown : kImage,
    .image_bytes = kFault == "arch" ? sizeof kUnknown : sizeof kImage - (kFault == "cut" ? 1 : 0),
    .kernel = kFault == "missing" ? "no_such_kernel" : "faulty_score",
    .block_threads = 32,
    .block_pages = 32,
    .shared_bytes = 0,
    .parameters = Parameters};

}  // namespace

extern "C" const tinyserve_selector_v2* tinyserve_selector() { return &kTable; }
extern "C" const tinyserve_selector_device_v1* tinyserve_selector_device() { return &kEntry; }
