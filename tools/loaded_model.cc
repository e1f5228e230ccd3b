#include "tools/loaded_model.h"

#include "base/file.h"
#include "base/machine.h"
#include "engine/selector_storage.h"
#include "engine/vocab.h"
#include "kernels/cuda/device.h"
#include "kernels/targets.h"
#include "kv/codec.h"
#include "step/step_registry.h"
#include "text/tokenizer.h"
#include "tools/progress.h"

namespace tinyserve {
namespace {

constexpr uint64_t kTextBytesMax = 256 << 20;

}  // namespace

uint32_t ThreadsOf(const EngineFlags& flags) {
  return flags.threads == 0 ? UsableCores() : flags.threads;
}

std::vector<LayerGroup> LoadedModel::groups() const {
  const ModelConfig& config = this->config();
  return {{.layers = config.layers, .kv_heads = config.kv_heads, .head_dim = config.head_dim}};
}

Result<SelectorNeeds> LoadedModel::NeedsOf(const std::string& kv,
                                           std::span<const SelectorSpec> selectors,
                                           uint32_t page_tokens) const {
  TS_ASSIGN_OR_RETURN(const Codec* codec, FindCodec(kv));
  const ModelConfig& config = this->config();
  return tinyserve::NeedsOf(selectors, SelectorShapeOf(config, page_tokens, config.context,
                                                       RecordKindsOf(selectors, *codec)));
}

Result<uint64_t> LoadedModel::KvBytesPerToken(const std::string& kv, uint32_t page_tokens,
                                              const SelectorNeeds& kept) const {
  TS_ASSIGN_OR_RETURN(const Codec* codec, FindCodec(kv));
  TS_RETURN_IF_ERROR(CheckCodec(*codec, page_tokens, config().head_dim));
  return KvCache::BytesPerToken(groups(), *codec, page_tokens, backend->space(), kept);
}

Result<uint64_t> LoadedModel::KvWindowBytes(const std::string& kv, uint32_t page_tokens) const {
  TS_ASSIGN_OR_RETURN(const Codec* codec, FindCodec(kv));
  return KvCache::WindowBytes(groups(), *codec, page_tokens, backend->space());
}

Result<uint64_t> LoadedModel::KvFixedBytes(const std::string& kv, uint32_t page_tokens,
                                           const SelectorNeeds& kept, uint32_t sequences,
                                           uint32_t uncommitted) const {
  TS_ASSIGN_OR_RETURN(const Codec* codec, FindCodec(kv));
  TS_RETURN_IF_ERROR(CheckCodec(*codec, page_tokens, config().head_dim));
  const KvCacheOptions options{.codec = codec,
                               .page_tokens = page_tokens,
                               .block_tokens = BlockTokensFor(page_tokens),
                               .memory_bytes = 0,
                               .sequences_max = sequences,
                               .sequence_tokens_max = 0,
                               .kept = kept,
                               .uncommitted_tokens_max = uncommitted};
  return KvCache::FixedBytes(groups(), options, backend->space());
}

Result<LoadedModel> LoadWithProgress(const EngineFlags& flags) {
  LoadedModel loaded;
  TS_RETURN_IF_ERROR(cuda::CheckEngineDevice(flags.device));
  TS_ASSIGN_OR_RETURN(loaded.kernels, TargetFor(flags.target));
  loaded.compute = flags.compute == "f32" ? Compute::kF32 : Compute::kFast;
  loaded.threads = std::make_unique<ThreadPool>(ThreadsOf(flags));
  if (!flags.trace.empty()) {
    TS_ASSIGN_OR_RETURN(loaded.trace, Trace::Open(flags.trace));
  }
  TS_ASSIGN_OR_RETURN(loaded.file, GgufFile::Open(flags.model));
  Progress progress("Loading", 0.2, 0.5);
  // Which KV types and selectors are asked for is known to each measurement; a device says of each
  // what it cannot.
  TS_ASSIGN_OR_RETURN(
      loaded.backend,
      OpenBackend(*loaded.file, {.name = flags.device,
                                 .device = {.index = 0,
                                            .kv = "f16",
                                            .selectors = {"full"},
                                            .step_plugins = flags.step_plugins,
                                            .compute = loaded.compute,
                                            .threads = loaded.threads.get(),
                                            .progress = [&](double f) { progress.Update(f); }},
                                 .kernels = loaded.kernels}));
  return Result<LoadedModel>(std::move(loaded));
}

uint64_t KvBytesMax(const EngineFlags& flags, const LoadedModel& model) {
  if (flags.kv_memory_bytes != 0) return flags.kv_memory_bytes;
  if (model.on_device()) return model.backend->KvMemory(UINT64_MAX);
  const uint64_t usable = MemoryLimitBytes() / 10 * 9, used = ResidentBytes();
  return usable > used ? usable - used : 0;
}

Result<std::vector<Method>> LoadMethods(const EngineFlags& flags,
                                        const std::vector<std::string>& typed) {
  for (const std::string& path : flags.plugins) TS_RETURN_IF_ERROR(LoadPlugin(path));
  return ParseMethods(typed, flags.kv);
}

Result<TextTokens> ReadTextTokens(const std::string& path, const GgufFile& model) {
  TS_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kTextBytesMax));
  TS_ASSIGN_OR_RETURN(const VocabSpec vocab, ReadVocab(model));
  TS_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Create(vocab));
  TextTokens out;
  TS_ASSIGN_OR_RETURN(out.prefix, tokenizer->Encode("", true, false));
  TS_ASSIGN_OR_RETURN(out.tokens, tokenizer->Encode(text, false, false));
  return Result<TextTokens>(std::move(out));
}

}  // namespace tinyserve
