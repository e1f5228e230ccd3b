#include "tools/inspect_attention.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/file.h"
#include "engine/vocab.h"
#include "text/tokenizer.h"
#include "tools/attention_record.h"
#include "tools/format.h"
#include "tools/json_output.h"
#include "tools/layer_report.h"
#include "tools/options.h"
#include "tools/progress.h"

namespace tinyserve {
namespace {

constexpr uint64_t kPromptBytesMax = 64 << 20;

Status WriteTo(const std::string& path, std::FILE* file, const std::string& text) {
  const bool written = std::fwrite(text.data(), 1, text.size(), file) == text.size();
  if (std::fclose(file) != 0 || !written) {
    return Status(Code::kIo,
                  fmt::format("--output: cannot write {}: {}", path, std::strerror(errno)));
  }
  return Status();
}

Result<AttentionRecord> Record(const EngineFlags& engine, const AttentionFlags& flags) {
  std::string prompt = flags.prompt;
  if (!flags.file.empty()) {
    TS_ASSIGN_OR_RETURN(prompt, ReadFile(flags.file, kPromptBytesMax));
  }
  TS_ASSIGN_OR_RETURN(std::vector<Method> methods, LoadMethods(engine, {flags.selector}));
  if (!methods[0].steps.empty()) {
    return Status(Code::kInvalidArgument,
                  fmt::format("--selector {}: step plugins are not drawn", methods[0].typed));
  }
  TS_ASSIGN_OR_RETURN(const LoadedModel model, LoadWithProgress(engine));
  TS_ASSIGN_OR_RETURN(const VocabSpec vocab, ReadVocab(*model.file));
  TS_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Create(vocab));
  TS_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens, tokenizer->Encode(prompt, true, false));
  Progress progress("Generating", 0.5, 1.0);
  return RecordAttention(model, *tokenizer, tokens,
                         {.method = std::move(methods[0]),
                          .page_tokens = engine.page_tokens,
                          .steps = flags.tokens,
                          .kv_bytes_max = KvBytesMax(engine, model)},
                         [&](double fraction) { progress.Update(fraction); });
}

}  // namespace

void AddAttentionOptions(CLI::App* app, AttentionFlags* flags) {
  CLI::Option* attention =
      app->add_flag("--attention", flags->wanted,
                    "Generate a text and draw which KV pages each layer and KV head reads for it")
          ->group("Attention");
  const auto add = [&](const char* name, auto* value, const char* type, const char* help) {
    return app->add_option(name, *value, help)
        ->type_name(type)
        ->needs(attention)
        ->group("Attention");
  };
  CLI::Option* prompt =
      add("-p,--prompt", &flags->prompt, "TEXT", "The text that is continued, as it is");
  add("-f,--file", &flags->file, "FILE", "Read it from this file")->excludes(prompt);
  Limit(add("-n,--tokens", &flags->tokens, "N", "Tokens to generate")->capture_default_str(), 1,
        4096);
  add("--selector", &flags->selector, "SPEC", "What generated tokens read, as SPEC or SPEC@KV")
      ->capture_default_str();
  add("--plugin", &flags->plugins, "FILE", "Shared object that brings a selector");
  add("--output", &flags->output, "FILE.html", "The picture: one page that needs no network")
      ->capture_default_str();
}

Result<int> InspectAttention(const std::string& model, const AttentionFlags& flags,
                             const std::string& json) {
  if (flags.prompt.empty() && flags.file.empty()) {
    return Status(Code::kInvalidArgument, "--attention needs a text: --prompt TEXT or --file FILE");
  }
  TS_ASSIGN_OR_RETURN(JsonOutput output, JsonOutput::Open(json));
  EngineFlags engine;
  engine.model = model;
  engine.plugins = flags.plugins;
  TS_ASSIGN_OR_RETURN(const AttentionRecord record, Record(engine, flags));
  std::FILE* file = std::fopen(flags.output.c_str(), "we");
  if (file == nullptr) {
    return Status(Code::kIo,
                  fmt::format("--output: cannot write {}: {}", flags.output, std::strerror(errno)));
  }
  TS_RETURN_IF_ERROR(WriteTo(flags.output, file, RecordHtml(record)));
  if (output.wanted()) TS_RETURN_IF_ERROR(output.Write(RecordJson(record)));
  if (!output.on_stdout()) {
    double share = 0;
    for (uint32_t layer = 0; layer < record.layers; ++layer)
      share += record.ShareRead(layer) / record.layers;
    fmt::print("{} tokens after {}: {} of the KV pages were read\npicture  {}\n",
               record.tokens.size(), record.prompt_tokens, FormatShare(share),
               PrintableLine(flags.output, 200));
  }
  return 0;
}

}  // namespace tinyserve
