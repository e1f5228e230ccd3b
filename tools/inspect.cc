#include "tools/inspect.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/value.hpp>
#include <map>
#include <optional>

#include "base/machine.h"
#include "model/config.h"
#include "tools/commands.h"
#include "tools/format.h"
#include "tools/inspect_attention.h"
#include "tools/json_output.h"
#include "tools/options.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

constexpr size_t kValueCharsMax = 60;

std::string StringOr(const GgufFile& file, const std::string& key, const std::string& fallback) {
  const MetaValue* value = file.Find(key);
  const auto* text = value == nullptr ? nullptr : std::get_if<std::string>(value);
  return text == nullptr ? fallback : *text;
}

uint64_t UintOr(const GgufFile& file, const std::string& key, uint64_t fallback) {
  const Result<uint64_t> value = file.GetUint(key);
  return value.ok() ? *value : fallback;
}

// A metadata value on one line.
std::string Describe(const MetaValue& value) {
  struct Visitor {
    std::string operator()(bool b) const { return b ? "true" : "false"; }
    std::string operator()(const std::string& s) const { return PrintableLine(s, kValueCharsMax); }
    std::string operator()(uint64_t v) const { return fmt::format("{}", v); }
    std::string operator()(int64_t v) const { return fmt::format("{}", v); }
    std::string operator()(double v) const { return fmt::format("{:.6g}", v); }
    std::string operator()(const std::vector<int64_t>& v) const { return Array(v.size()); }
    std::string operator()(const std::vector<double>& v) const { return Array(v.size()); }
    std::string operator()(const std::vector<bool>& v) const { return Array(v.size()); }
    std::string operator()(const std::vector<std::string>& v) const { return Array(v.size()); }
    static std::string Array(size_t n) { return fmt::format("[{} values]", n); }
  };
  return std::visit(Visitor{}, value);
}

// KV heads of all layers together; 0 where the file does not say. Some families give one number a
// layer.
uint64_t KvHeadsOfAllLayers(const GgufFile& file, const std::string& prefix, uint64_t layers) {
  const MetaValue* value = file.Find(prefix + "attention.head_count_kv");
  if (value == nullptr) return UintOr(file, prefix + "attention.head_count", 0) * layers;
  if (const auto* array = std::get_if<std::vector<int64_t>>(value)) {
    uint64_t sum = 0;
    for (int64_t n : *array) sum += n > 0 && n < (1 << 20) ? static_cast<uint64_t>(n) : 0;
    return sum;
  }
  return UintOr(file, prefix + "attention.head_count_kv", 0) * layers;
}

uint64_t KvElementsPerToken(const GgufFile& file, const std::string& prefix) {
  // Beyond these no model is real; they keep the products far from overflow.
  constexpr uint64_t kCountMax = 1 << 20;
  const uint64_t layers = UintOr(file, prefix + "block_count", 0);
  const uint64_t heads = UintOr(file, prefix + "attention.head_count", 0);
  const uint64_t dim = UintOr(file, prefix + "embedding_length", 0);
  if (layers > kCountMax || heads == 0 || heads > kCountMax || dim > kCountMax) return 0;
  const uint64_t kv_heads = KvHeadsOfAllLayers(file, prefix, layers);
  const uint64_t key = UintOr(file, prefix + "attention.key_length", dim / heads);
  const uint64_t value = UintOr(file, prefix + "attention.value_length", key);
  if (kv_heads > kCountMax || key > kCountMax || value > kCountMax) return 0;
  return kv_heads * (key + value);
}

void ReadSpecialTokens(const GgufFile& file, FileReport* report) {
  static constexpr const char* kRoles[] = {"bos", "eos",       "eot",     "eom", "unknown",
                                           "sep", "separator", "padding", "pad", "mask"};
  const std::string prefix = "tokenizer.ggml.";
  const MetaValue* tokens = file.Find(prefix + "tokens");
  const auto* texts = tokens == nullptr ? nullptr : std::get_if<std::vector<std::string>>(tokens);
  report->vocab = texts == nullptr ? 0 : texts->size();
  for (const char* role : kRoles) {
    const Result<uint64_t> id = file.GetUint(fmt::format("{}{}_token_id", prefix, role));
    if (!id.ok()) continue;
    const bool known = *id < report->vocab;
    report->special.push_back({role, static_cast<int64_t>(*id), known ? (*texts)[*id] : ""});
  }
}

void CountTypes(const GgufFile& file, FileReport* report) {
  std::map<DType, TypeShare> by_type;
  for (const StoredTensor& tensor : file.tensors()) {
    TypeShare& share =
        by_type.try_emplace(tensor.type, TypeShare{tensor.type, 0, 0, 0}).first->second;
    const uint64_t elements = tensor.rows * tensor.cols;
    ++share.tensors;
    share.elements += elements;
    share.bytes += tensor.bytes;
    report->parameters += elements;
  }
  for (const auto& [type, share] : by_type) report->types.push_back(share);
  std::sort(report->types.begin(), report->types.end(),
            [](const TypeShare& a, const TypeShare& b) { return a.bytes > b.bytes; });
}

json::object TensorJson(const StoredTensor& tensor) {
  json::array dims;
  for (uint32_t d = 0; d < tensor.n_dims; ++d) dims.push_back(tensor.dims[d]);
  return {{"name", tensor.name},   {"type", InfoOf(tensor.type).name},
          {"dims", dims},          {"bytes", tensor.bytes},
          {"shard", tensor.shard}, {"offset", tensor.offset}};
}

}  // namespace

FileReport InspectFile(const GgufFile& file) {
  FileReport report;
  report.architecture = StringOr(file, "general.architecture", "");
  report.name = StringOr(file, "general.name", "");
  const Result<ModelConfig> config = ReadModelConfig(file);
  if (!config.ok()) report.unsupported = config.status().message();
  report.version = file.version();
  report.file_bytes = file.file_bytes();
  report.tensor_bytes = file.tensor_bytes();
  CountTypes(file, &report);
  const std::string prefix = report.architecture + ".";
  for (const MetaEntry& entry : file.metadata()) {
    if (entry.key.starts_with(prefix))
      report.hyperparameters.emplace_back(entry.key.substr(prefix.size()), Describe(entry.value));
  }
  report.tokenizer = StringOr(file, "tokenizer.ggml.model", "");
  report.pre_tokenizer = StringOr(file, "tokenizer.ggml.pre", "");
  report.chat_template = StringOr(file, "tokenizer.chat_template", "");
  ReadSpecialTokens(file, &report);
  report.context_tokens = UintOr(file, prefix + "context_length", 0);
  report.kv_elements_per_token = KvElementsPerToken(file, prefix);
  return report;
}

std::string FormatReport(const FileReport& r) {
  std::string out;
  const auto line = [&](std::string_view label, const std::string& text) {
    out += fmt::format("{:<15}{}\n", label, text);
  };
  line("name", r.name.empty() ? "-" : PrintableLine(r.name, kValueCharsMax));
  line("architecture",
       r.architecture.empty() ? "-" : PrintableLine(r.architecture, kValueCharsMax));
  if (!r.unsupported.empty()) line("", "cannot be run: " + PrintableLine(r.unsupported, 400));
  line("parameters", fmt::format("{} ({})", FormatCount(r.parameters), r.parameters));
  line("file", fmt::format("GGUF v{}, {}, of which tensors {}", r.version,
                           FormatBytes(r.file_bytes), FormatBytes(r.tensor_bytes)));
  for (const TypeShare& share : r.types) {
    const double part = r.tensor_bytes == 0 ? 0
                                            : static_cast<double>(share.bytes) /
                                                  static_cast<double>(r.tensor_bytes);
    line(&share == r.types.data() ? "types" : "",
         fmt::format("{:<5} {:>5} tensors {:>9} {:>5}", InfoOf(share.type).name, share.tensors,
                     FormatBytes(share.bytes), FormatShare(part)));
  }
  bool first = true;
  for (const auto& [key, value] : r.hyperparameters) {
    line(first ? "shape" : "", fmt::format("{} = {}", PrintableLine(key, kValueCharsMax), value));
    first = false;
  }
  line("tokenizer",
       r.tokenizer.empty()
           ? "none"
           : fmt::format("{}{}, {} tokens", PrintableLine(r.tokenizer, kValueCharsMax),
                         r.pre_tokenizer.empty()
                             ? ""
                             : " (" + PrintableLine(r.pre_tokenizer, kValueCharsMax) + ")",
                         r.vocab));
  for (const SpecialToken& token : r.special) {
    line("", fmt::format("{:<8} {:>6}  {}", token.role, token.id,
                         PrintableLine(token.text, kValueCharsMax)));
  }
  line("chat template",
       r.chat_template.empty()
           ? "none: `chat` falls back to ChatML"
           : fmt::format("{} characters (--template prints it)", r.chat_template.size()));
  line("memory", fmt::format("weights about {}", FormatBytes(r.tensor_bytes)));
  if (r.kv_elements_per_token > 0) {
    const uint64_t per_1k = r.kv_elements_per_token * 1024;
    line("", fmt::format("KV cache {} for each 1024 tokens in f16 or bf16, {} in f32",
                         FormatBytes(per_1k * 2), FormatBytes(per_1k * 4)));
    if (r.context_tokens > 0) {
      const double all =
          static_cast<double>(r.context_tokens) * static_cast<double>(r.kv_elements_per_token) * 2;
      line("", fmt::format("the whole context of {} tokens in f16: {}", r.context_tokens,
                           all < 1e18 ? FormatBytes(static_cast<uint64_t>(all)) : "-"));
    }
  }
  line("", fmt::format("this process may use {}", FormatBytes(MemoryLimitBytes())));
  return out;
}

std::string FormatTensors(const GgufFile& file) {
  std::string out;
  for (const StoredTensor& tensor : file.tensors()) {
    std::string dims;
    for (uint32_t d = 0; d < tensor.n_dims; ++d) {
      dims += fmt::format("{}{}", d == 0 ? "" : " x ", tensor.dims[d]);
    }
    out += fmt::format("{:<40} {:<5} {:>20} {:>10}\n", PrintableLine(tensor.name, 64),
                       InfoOf(tensor.type).name, dims, FormatBytes(tensor.bytes));
  }
  return out;
}

json::object ReportJson(const FileReport& r, const GgufFile& file, bool tensors,
                        bool with_template) {
  json::object out = {{"name", r.name},
                      {"architecture", r.architecture},
                      {"supported", r.unsupported.empty()},
                      {"unsupported_reason", r.unsupported},
                      {"parameters", r.parameters},
                      {"gguf_version", r.version},
                      {"file_bytes", r.file_bytes},
                      {"tensor_bytes", r.tensor_bytes},
                      {"context_tokens", r.context_tokens}};
  json::array types;
  for (const TypeShare& share : r.types) {
    types.push_back(json::object{{"type", InfoOf(share.type).name},
                                 {"tensors", share.tensors},
                                 {"elements", share.elements},
                                 {"bytes", share.bytes}});
  }
  out["types"] = std::move(types);
  json::object shape;
  for (const auto& [key, value] : r.hyperparameters) shape[key] = value;
  out["hyperparameters"] = std::move(shape);
  json::array special;
  for (const SpecialToken& token : r.special) {
    special.push_back(json::object{{"role", token.role}, {"id", token.id}, {"text", token.text}});
  }
  out["tokenizer"] = json::object{{"model", r.tokenizer},
                                  {"pre", r.pre_tokenizer},
                                  {"vocab", r.vocab},
                                  {"special", std::move(special)}};
  out["has_chat_template"] = !r.chat_template.empty();
  if (with_template) out["chat_template"] = r.chat_template;
  out["memory"] = json::object{{"weights_bytes", r.tensor_bytes},
                               {"kv_f16_bytes_per_1k", r.kv_elements_per_token * 2048},
                               {"kv_f32_bytes_per_1k", r.kv_elements_per_token * 4096},
                               {"limit_bytes", MemoryLimitBytes()}};
  if (tensors) {
    json::array all;
    for (const StoredTensor& tensor : file.tensors()) all.push_back(TensorJson(tensor));
    out["tensors"] = std::move(all);
  }
  return out;
}

namespace {

struct InspectFlags {
  std::string model, json;
  bool tensors = false, print_template = false;
  AttentionFlags attention;
};

Result<int> Inspect(const InspectFlags& flags) {
  if (flags.attention.wanted) return InspectAttention(flags.model, flags.attention, flags.json);
  TS_ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> file, GgufFile::Open(flags.model));
  TS_ASSIGN_OR_RETURN(JsonOutput output, JsonOutput::Open(flags.json));
  const FileReport report = InspectFile(*file);
  if (output.wanted()) {
    TS_RETURN_IF_ERROR(
        output.Write(ReportJson(report, *file, flags.tensors, flags.print_template)));
    return 0;
  }
  if (flags.print_template) {
    fmt::print("{}\n", Printable(report.chat_template));
    return 0;
  }
  fmt::print("{}", FormatReport(report));
  if (flags.tensors) fmt::print("\n{}", FormatTensors(*file));
  return 0;
}

}  // namespace

void AddInspect(CLI::App* parent, Command* run) {
  CLI::App* app = parent->add_subcommand(
      "inspect", "Say what a model file holds and needs, or draw what its attention reads");
  const auto flags = std::make_shared<InspectFlags>();
  app->add_option("model,-m,--model", flags->model, "GGUF file; of a split model, its first file")
      ->type_name("FILE")
      ->required();
  app->add_flag("--tensors", flags->tensors, "List every tensor");
  app->add_flag("--template", flags->print_template, "Print the chat template");
  AddJsonOption(app, &flags->json);
  AddAttentionOptions(app, &flags->attention);
  AddExample(app,
             "tinyserve inspect model.gguf --tensors\n"
             "  tinyserve inspect model.gguf --attention --file long.txt --output reads.html");
  app->callback([=] { *run = [=] { return Inspect(*flags); }; });
}

}  // namespace tinyserve
