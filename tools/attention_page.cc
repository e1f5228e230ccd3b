// The record of a generation as a page for a browser, and as figures for programs.
#include "tools/attention_page.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>

#include "text/json_text.h"
#include "tools/attention_record.h"
#include "tools/format.h"
#include "tools/layer_report.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

std::string Base64(std::span<const uint8_t> bytes) {
  constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  out.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const size_t left = std::min<size_t>(3, bytes.size() - i);
    uint32_t word = 0;
    for (size_t j = 0; j < 3; ++j) word = word << 8 | (j < left ? bytes[i + j] : 0u);
    for (size_t j = 0; j < 4; ++j) out += j <= left ? kDigits[word >> (18 - 6 * j) & 63] : '=';
  }
  return out;
}

// Null where nothing is known.
json::value HitRateJson(const SelectionStats& stats) {
  if (stats.pages_followed == 0) return nullptr;
  return Significant(HitRate(stats), 4);
}

json::array LayerFigures(const AttentionRecord& record) {
  json::array layers;
  for (uint32_t layer = 0; layer < record.layers; ++layer) {
    std::vector<LayerSelection> strips;
    for (const LayerSelection& strip : record.strips) {
      if (strip.layer == layer) strips.push_back(strip);
    }
    layers.push_back(json::object{{"layer", layer},
                                  {"share_read", Significant(record.ShareRead(layer), 4)},
                                  {"hit_rate", HitRateJson(SumOf(strips))}});
  }
  return layers;
}

}  // namespace

json::object RecordJson(const AttentionRecord& record) {
  json::array steps;
  for (uint32_t step = 0; step < record.tokens.size(); ++step) {
    uint64_t read = 0;
    for (uint32_t layer = 0; layer < record.layers; ++layer) {
      for (uint32_t head = 0; head < record.kv_heads; ++head) {
        for (uint32_t page = 0; page < record.pages_at(step); ++page)
          read += record.Reads(step, layer, head, page) ? 1 : 0;
      }
    }
    const double held =
        static_cast<double>(record.pages_at(step)) * record.layers * record.kv_heads;
    steps.push_back(json::object{{"token", record.tokens[step]},
                                 {"pages", record.pages_at(step)},
                                 {"share_read", Significant(static_cast<double>(read) / held, 4)}});
  }
  return {{"engine", "tinyserve"},
          {"kind", "attention"},
          {"model", record.model},
          {"selector", record.selector},
          {"kv", record.kv},
          {"kv_heads", record.kv_heads},
          {"page_tokens", record.page_tokens},
          {"prompt_tokens", record.prompt_tokens},
          {"hit_rate", HitRateJson(SumOf(record.strips))},
          {"steps", std::move(steps)},
          {"layers", LayerFigures(record)}};
}

std::string RecordHtml(const AttentionRecord& record) {
  json::object data = RecordJson(record);
  data["pages"] = record.pages;
  data["reads"] = Base64(record.reads);
  // Nothing in the data may end the script element that holds it.
  std::string text;
  for (const char c : ToJson(data)) {
    if (c == '<') {
      text += "\\u003c";
    } else {
      text += c;
    }
  }
  constexpr std::string_view kPlace = "{{DATA}}";
  std::string page(kAttentionPage);
  return page.replace(page.find(kPlace), kPlace.size(), text);
}

}  // namespace tinyserve
