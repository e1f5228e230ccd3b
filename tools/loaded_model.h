// A model with what it runs on, for commands that drive the executor themselves.
#ifndef TINYSERVE_TOOLS_LOADED_MODEL_H_
#define TINYSERVE_TOOLS_LOADED_MODEL_H_

#include <memory>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "base/trace.h"
#include "engine/backend.h"
#include "kernels/kernels.h"
#include "kv/kv_cache.h"
#include "tensor/gguf.h"
#include "tinyserve/status.h"
#include "tools/engine_flags.h"
#include "tools/method.h"

namespace tinyserve {

uint32_t ThreadsOf(const EngineFlags& flags);

struct LoadedModel {
  std::unique_ptr<Trace> trace;      // where --trace asks for one
  const Kernels* kernels = nullptr;  // of the CPU
  Compute compute = Compute::kFast;
  std::unique_ptr<ThreadPool> threads;
  std::unique_ptr<GgufFile> file;
  std::unique_ptr<Backend> backend;

  const ModelConfig& config() const { return backend->config(); }
  bool on_device() const { return backend->space().space() == MemorySpace::kDevice; }
  std::vector<LayerGroup> groups() const;
  // What a cache keeps for selectors. Errors: those of NeedsOf; kInvalidArgument (no such codec).
  Result<SelectorNeeds> NeedsOf(const std::string& kv, std::span<const SelectorSpec> selectors,
                                uint32_t page_tokens) const;
  // Bytes of KV cache that a token takes, with what is kept of its page. Errors: kInvalidArgument
  // (a codec that does not exist, or does not store such pages).
  Result<uint64_t> KvBytesPerToken(const std::string& kv, uint32_t page_tokens,
                                   const SelectorNeeds& kept) const;
  // Bytes of one sequence beside them, of its newest tokens, which are not coded yet; 0 where
  // nothing is coded. Errors: as above.
  Result<uint64_t> KvWindowBytes(const std::string& kv, uint32_t page_tokens) const;
  // Bytes beside them, of all `sequences`: for tokens that are not coded yet, of which
  // `uncommitted` have room at a time without being committed, and for states of selectors. Errors:
  // as above.
  Result<uint64_t> KvFixedBytes(const std::string& kv, uint32_t page_tokens,
                                const SelectorNeeds& kept, uint32_t sequences,
                                uint32_t uncommitted) const;
};

// With a progress bar on the terminal. Errors: kInvalidArgument (target), kIo (the trace), what
// GgufFile::Open and LoadModel report.
Result<LoadedModel> LoadWithProgress(const EngineFlags& flags);

// KV memory that a measurement may take: what --kv-memory says, else what is left of the limit with
// a tenth of it kept free, or what a device has left.
uint64_t KvBytesMax(const EngineFlags& flags, const LoadedModel& model);

// Loads the plugins of the flags and reads the methods, so that a wrong one is told before the
// model is loaded. Errors: kInvalidArgument, kNotFound (a plugin).
Result<std::vector<Method>> LoadMethods(const EngineFlags& flags,
                                        const std::vector<std::string>& typed);

struct TextTokens {
  std::vector<int32_t> prefix;  // what the model wants before every text (bos), maybe nothing
  std::vector<int32_t> tokens;
};

// A text file as tokens of the model. Errors: what reading the file and its vocabulary report.
Result<TextTokens> ReadTextTokens(const std::string& path, const GgufFile& model);

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_LOADED_MODEL_H_
