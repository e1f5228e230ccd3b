// Which pages each layer and KV head read, at each step of a generation under selection.
#ifndef TINYSERVE_TOOLS_ATTENTION_RECORD_H_
#define TINYSERVE_TOOLS_ATTENTION_RECORD_H_

#include <boost/json/object.hpp>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"
#include "tinyserve/engine.h"
#include "tools/loaded_model.h"

namespace tinyserve {

struct AttentionRecord {
  std::string model, selector, kv;  // selector: with every option
  uint32_t layers = 0, kv_heads = 0, page_tokens = 0;
  uint32_t prompt_tokens = 0;
  uint32_t pages = 0;               // of the longest context
  std::vector<std::string> tokens;  // [step], whose query it is: the token generated before
  // [step][layer][KV head][row_bytes]: bit i of byte b is page 8b + i, counted from the first.
  std::vector<uint8_t> reads;
  std::vector<LayerSelection> strips;  // what selection counted

  uint32_t row_bytes() const { return (pages + 7) / 8; }
  uint32_t pages_at(uint32_t step) const {
    return (prompt_tokens + step + page_tokens) / page_tokens;
  }
  bool Reads(uint32_t step, uint32_t layer, uint32_t kv_head, uint32_t page) const;
  // Of the pages that a layer's KV heads held in all steps.
  double ShareRead(uint32_t layer) const;
};

struct AttentionRecordOptions {
  Method method;
  uint32_t page_tokens;
  uint32_t steps;  // at least 1
  uint64_t kv_bytes_max;
};

// Bytes that a record of `steps` may take.
constexpr uint64_t kRecordBytesMax = 64 << 20;

// Processes the prompt, then decodes the likeliest tokens until an end token or `steps`.
// `progress`: 0..1. Errors: kInvalidArgument (what does not fit the model, or a record),
// kOutOfMemory.
Result<AttentionRecord> RecordAttention(const LoadedModel& model, const Tokenizer& tokenizer,
                                        std::span<const int32_t> prompt,
                                        const AttentionRecordOptions& options,
                                        const std::function<void(double)>& progress);

// Figures for programs: by layer and KV head, and the share of pages read at each step.
boost::json::object RecordJson(const AttentionRecord& record);
// A page that needs nothing from elsewhere.
std::string RecordHtml(const AttentionRecord& record);

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_ATTENTION_RECORD_H_
