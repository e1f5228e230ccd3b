// What `tinyserve tune` searches, and how it chooses. Plain data; tune.cc runs the model.
#ifndef TINYSERVE_TOOLS_TUNE_SEARCH_H_
#define TINYSERVE_TOOLS_TUNE_SEARCH_H_

#include <boost/json/object.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "tools/loaded_model.h"
#include "tools/method.h"

namespace tinyserve {

// Specifications that are tried where none is named: dense attention, and points of the front of
// docs/selection.md in small steps.
std::vector<std::string> DefaultGrid();

// How far a setting's predictions are from dense attention's.
struct TuneQuality {
  double kl = 0, kl_se = 0;  // mean over scored tokens, and its standard error; nats
  double top1 = 0;
  uint64_t scored_tokens = 0;
};

struct TuneSpeed {
  double tokens_per_s = 0;  // of all sequences of the batch
  double speedup = 0;       // over dense attention in the same rounds
};

struct TuneSetting {
  Method method;
  TuneQuality quality;
  TuneSpeed speed;  // of settings within the ceiling
  bool timed = false;
};

// Whether the mean is within the ceiling, its error counted: by two standard errors.
bool IsWithin(const TuneQuality& quality, double ceiling);
// Whether more tokens could still show that it is: a first look drops what is not.
bool MayBeWithin(const TuneQuality& quality, double ceiling);
// Index of the fastest setting that was timed; the first of equals. REQUIRES: one was.
size_t Fastest(const std::vector<TuneSetting>& settings);

// A text's tokens in two halves: what is tuned on, and what is measured in the end.
struct TuneTexts {
  TextTokens tuning, check;
};
TuneTexts Halves(TextTokens text);

// What was asked for, and where.
struct TuneSetup {
  std::string model, target, cpu;
  std::string text, check_text;  // what is tuned on and measured on, in words
  std::string base_kv;
  double ceiling = 0;
  uint32_t context = 0, batch = 0, threads = 0, page_tokens = 16;
  std::vector<std::string> plugins;
};

std::string TuneTableHead(const TuneSetup& setup, size_t method_columns);
// `measured` on the other text, and what to do with the file.
std::string TunedText(const TuneSetting& measured, const TuneSetup& setup,
                      const std::string& config);
std::string TuneTableRow(const TuneSetting& setting, double ceiling, size_t method_columns);
boost::json::object TuneSettingJson(const TuneSetting& setting, const TuneSetup& setup);
// `tuned` on the first text, `measured` on the other.
boost::json::object TunedJson(const TuneSetting& tuned, const TuneSetting& measured,
                              const TuneSetup& setup, const std::string& config);
// The configuration file: the setting as options, after comments that say what it does.
std::string TunedConfig(const TuneSetting& tuned, const TuneSetting& measured,
                        const TuneSetup& setup);

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_TUNE_SEARCH_H_
