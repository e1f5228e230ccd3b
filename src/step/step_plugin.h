// Step plugins: decisions about a generated token by tables of include/tinyserve/plugin.h, opened
// from specifications, asked in the order of their priorities, and counted.
#ifndef TINYSERVE_STEP_STEP_PLUGIN_H_
#define TINYSERVE_STEP_STEP_PLUGIN_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tinyserve/plugin.h"
#include "tinyserve/status.h"

namespace tinyserve {

// What a specification says: NAME[:key=value,...].
struct StepSpec {
  std::string typed;
  const tinyserve_step_v2* table = nullptr;
  std::string config_json;
  std::string resolved;  // NAME:key=value,... with every option
};

// Step plugins that may be on at once.
inline constexpr size_t kStepPluginsMax = 8;

// By priority, then by name; each table at most once. Errors: kInvalidArgument, naming the
// specification, the option and what is allowed.
Result<std::vector<StepSpec>> ParseStepPlugins(std::span<const std::string> texts);
// Every option of all of them: equal sets have equal names. "": none.
std::string ResolvedSteps(std::span<const StepSpec> specs);
// Every table by name, with its options and defaults, for help texts.
std::string DescribeStepPlugins();

// What a plugin was asked, how often it said yes, how often it failed. Any thread.
struct StepCounts {
  std::atomic<uint64_t> calls = 0, effects = 0, errors = 0;
};

class StepPlugin {
 public:
  // Errors: what the table's open says, with the plugin's name.
  static Result<std::unique_ptr<StepPlugin>> Open(const StepSpec& spec,
                                                  const tinyserve_step_shape& shape);
  ~StepPlugin();
  StepPlugin(const StepPlugin&) = delete;
  StepPlugin& operator=(const StepPlugin&) = delete;

  const StepSpec& spec() const { return spec_; }
  bool AsksAfter(uint32_t layers_done) const { return asks_after_[layers_done]; }
  bool ends() const { return spec_.table->end != nullptr; }
  uint32_t answer_bytes() const { return spec_.table->answer_bytes; }
  bool Leaves(const tinyserve_layer_in& in) const;
  bool Ends(const tinyserve_answer_in& in) const;
  bool prunes() const { return spec_.table->prune != nullptr; }
  uint32_t measure_every() const { return measure_every_; }
  // Sets drop[unit] to 1 for what is dropped, to 0 for all else; false: nothing is.
  bool Prune(const tinyserve_prune_in& in, std::span<uint8_t> drop) const;
  const StepCounts& counts() const { return counts_; }

 private:
  StepPlugin() = default;
  bool Count(int failed, uint32_t answer) const;

  StepSpec spec_;
  void* self_ = nullptr;
  std::vector<bool> asks_after_;  // [layers]
  uint32_t measure_every_ = 0;    // 0: it does not prune
  mutable StepCounts counts_;
};

// Plugins that are on together.
class StepPlugins {
 public:
  static Result<std::unique_ptr<StepPlugins>> Open(std::span<const StepSpec> specs,
                                                   const tinyserve_step_shape& shape);

  const std::string& resolved() const { return resolved_; }
  // Whether any may let a token leave after so many layers.
  bool AsksAfter(uint32_t layers_done) const;
  // Whether the token leaves. in: struct_size is set here.
  bool Leaves(tinyserve_layer_in in) const;
  // Bytes of an answer's state, over all plugins.
  uint32_t answer_bytes() const { return answer_bytes_; }
  // Whether the answer ends. in: struct_size and state are set here; state: [answer_bytes].
  bool Ends(tinyserve_answer_in in, uint8_t* state) const;
  // Whether any drops tokens from the cache, and every how many tokens attention is measured for
  // it; 0: it does not.
  bool prunes() const { return measure_every_ != 0; }
  uint32_t measure_every() const { return measure_every_; }
  // Which units of a sequence are dropped, by the first plugin that drops any. in: struct_size is
  // set here. drop: [n_units], zeros. False: none is.
  bool Prune(tinyserve_prune_in in, std::span<uint8_t> drop) const;
  std::span<const std::unique_ptr<StepPlugin>> plugins() const { return plugins_; }

 private:
  std::vector<std::unique_ptr<StepPlugin>> plugins_;
  std::string resolved_;
  uint32_t answer_bytes_ = 0;
  uint32_t measure_every_ = 0;
};

}  // namespace tinyserve

#endif  // TINYSERVE_STEP_STEP_PLUGIN_H_
