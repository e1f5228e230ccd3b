#include "tools/tune_search.h"

#include <fmt/format.h>

#include <boost/json/array.hpp>

#include "base/check.h"
#include "engine/selector_storage.h"
#include "tools/config_file.h"
#include "tools/format.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

constexpr double kErrors = 2;  // standard errors that count

std::string QualityText(const TuneQuality& q) {
  return fmt::format("KL {:.5f} +- {:.5f}, top-1 {:.4f} over {} tokens", q.kl, q.kl_se, q.top1,
                     q.scored_tokens);
}

std::string SpeedText(const TuneSpeed& speed) {
  return fmt::format("{:.1f} tokens/s, {:.2f} x dense", speed.tokens_per_s, speed.speedup);
}

json::object FiguresJson(const TuneSetting& setting) {
  const TuneQuality& q = setting.quality;
  json::object out = {{"kl", Significant(q.kl, 6)},     {"kl_se", Significant(q.kl_se, 4)},
                      {"top1", Significant(q.top1, 6)}, {"scored_tokens", q.scored_tokens},
                      {"tokens_per_s", nullptr},        {"speedup", nullptr}};
  if (setting.timed) {
    out["tokens_per_s"] = Significant(setting.speed.tokens_per_s, 5);
    out["speedup"] = Significant(setting.speed.speedup, 5);
  }
  return out;
}

}  // namespace

std::vector<std::string> DefaultGrid() {
  return {"full",
          "default",
          "cascade:ratio=0.5,full=0.025,values=0.1",
          "cascade:ratio=0.3,full=0.025,values=0.1",
          "cascade:ratio=0.3,values=0.1",
          "cascade:ratio=0.3,values=0.05,min_values=384",
          "cascade:ratio=0.2,values=0.1,min_tokens=1024",
          "cascade:ratio=0.2,values=0.05,min_values=256,min_tokens=1024",
          "moments:ratio=0.4",
          "moments:ratio=0.3",
          "moments:ratio=0.2",
          "box:ratio=0.4",
          "box:ratio=0.3"};
}

bool IsWithin(const TuneQuality& quality, double ceiling) {
  return quality.kl + kErrors * quality.kl_se <= ceiling;
}

bool MayBeWithin(const TuneQuality& quality, double ceiling) {
  return quality.kl - kErrors * quality.kl_se <= ceiling;
}

size_t Fastest(const std::vector<TuneSetting>& settings) {
  size_t best = settings.size();
  for (size_t i = 0; i < settings.size(); ++i) {
    if (!settings[i].timed) continue;
    if (best == settings.size() ||
        settings[i].speed.tokens_per_s > settings[best].speed.tokens_per_s)
      best = i;
  }
  TS_CHECK(best < settings.size());
  return best;
}

TuneTexts Halves(TextTokens text) {
  TuneTexts texts;
  const auto middle = text.tokens.begin() + static_cast<int64_t>(text.tokens.size() / 2);
  texts.check = {.prefix = text.prefix, .tokens = {middle, text.tokens.end()}};
  text.tokens.erase(middle, text.tokens.end());
  texts.tuning = std::move(text);
  return texts;
}

std::string TuneTableHead(const TuneSetup& setup, size_t method_columns) {
  return fmt::format(
      "{}, context {}, batch {}, target {}, {} threads; the fastest with a KL of at most {}\n"
      "KL of a setting's prediction from dense attention's over {} with f32 products, over {}\n"
      "{:<{}} {:<6} {:>19} {:>8} {:>10} {:>8}\n",
      setup.model.empty() ? "model" : PrintableLine(setup.model, 60), setup.context, setup.batch,
      setup.target, setup.threads, setup.ceiling, setup.base_kv, PrintableLine(setup.text, 60),
      "setting", method_columns, "kv", "KL", "top-1", "tokens/s", "x dense");
}

std::string TuneTableRow(const TuneSetting& setting, double ceiling, size_t method_columns) {
  const TuneQuality& q = setting.quality;
  const std::string speed =
      setting.timed
          ? fmt::format("{:>10.1f} {:>8.2f}", setting.speed.tokens_per_s, setting.speed.speedup)
          : fmt::format("{:>19}", IsWithin(q, ceiling) ? "-" : "KL too large");
  return fmt::format("{:<{}} {:<6} {:>19} {:>8.4f} {}\n", PrintableLine(setting.method.typed, 200),
                     method_columns, setting.method.kv,
                     fmt::format("{:.5f} +-{:.5f}", q.kl, q.kl_se), q.top1, speed);
}

std::string TunedText(const TuneSetting& measured, const TuneSetup& setup,
                      const std::string& config) {
  std::string text =
      fmt::format("\nchosen      {}\nmeasured on {}\n            {}\n            {}\n",
                  PrintableLine(measured.method.typed, 200), PrintableLine(setup.check_text, 200),
                  QualityText(measured.quality), SpeedText(measured.speed));
  if (measured.quality.kl > setup.ceiling) {
    text += fmt::format("            there the KL is above {}: a lower --kl leaves room\n",
                        setup.ceiling);
  }
  return text +
         fmt::format("written to  {0}; use it with --config {0}\n", PrintableLine(config, 200));
}

json::object TuneSettingJson(const TuneSetting& setting, const TuneSetup& setup) {
  json::object out = {
      {"engine", "tinyserve"},          {"kind", "setting"},
      {"method", setting.method.typed}, {"resolved", setting.method.resolved},
      {"kv", setting.method.kv},        {"context", setup.context},
      {"batch", setup.batch},           {"within", IsWithin(setting.quality, setup.ceiling)}};
  for (const auto& [key, value] : FiguresJson(setting)) out[key] = value;
  return out;
}

json::object TunedJson(const TuneSetting& tuned, const TuneSetting& measured,
                       const TuneSetup& setup, const std::string& config) {
  json::object on_tuning = FiguresJson(tuned), on_check = FiguresJson(measured);
  on_tuning["text"] = setup.text;
  on_check["text"] = setup.check_text;
  return {{"engine", "tinyserve"},
          {"kind", "tuned"},
          {"method", tuned.method.typed},
          {"resolved", tuned.method.resolved},
          {"kv", tuned.method.kv},
          {"model", setup.model},
          {"target", setup.target},
          {"threads", setup.threads},
          {"context", setup.context},
          {"batch", setup.batch},
          {"kl_ceiling", setup.ceiling},
          {"holds", measured.quality.kl <= setup.ceiling},
          {"tuned_on", std::move(on_tuning)},
          {"measured_on", std::move(on_check)},
          {"config", config}};
}

std::string TunedConfig(const TuneSetting& tuned, const TuneSetting& measured,
                        const TuneSetup& setup) {
  std::string text = "# What `tinyserve tune` found to be fastest.\n";
  const auto say = [&](const char* name, const std::string& value) {
    text += fmt::format("# {:<12} {}\n", name, PrintableLine(value, 400));
  };
  say("model", setup.model);
  say("machine", fmt::format("{}, {} threads, target {}", setup.cpu, setup.threads, setup.target));
  say("wanted", fmt::format("a KL of at most {} from dense attention over {}, context {}, batch {}",
                            setup.ceiling, setup.base_kv, setup.context, setup.batch));
  say("tuned on", setup.text);
  say("", QualityText(tuned.quality));
  say("", SpeedText(tuned.speed));
  say("measured on", setup.check_text);
  say("", QualityText(measured.quality));
  say("", SpeedText(measured.speed));
  if (measured.quality.kl > setup.ceiling) say("", "where the KL is above what was wanted");
  say("setting", tuned.method.resolved);
  json::object options = {{"selector", tuned.method.spec.typed}};
  if (tuned.method.kv != KvFor(tuned.method.spec)) options["kv"] = tuned.method.kv;
  if (setup.page_tokens != EngineFlags().page_tokens) options["page-tokens"] = setup.page_tokens;
  if (!setup.plugins.empty())
    options["plugin"] = json::array(setup.plugins.begin(), setup.plugins.end());
  return text + ConfigText(options);
}

}  // namespace tinyserve
