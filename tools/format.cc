#include "tools/format.h"

#include <fmt/format.h>

#include <cmath>

namespace tinyserve {
namespace {

// Three significant digits for a value below 1000 (1024).
std::string ThreeDigits(double value) {
  return fmt::format("{:.{}f}", value, value >= 99.95 ? 0 : 1);
}

// Spells a C0 control, DEL or a C1 control (U+0080 to U+009F, which terminals obey too). `at` moves
// past it; false where the character at `at` is none.
bool SpellControl(std::string_view text, size_t* at, bool keep_lines, std::string* out) {
  const auto byte = static_cast<unsigned char>(text[*at]);
  if (keep_lines && (byte == '\n' || byte == '\t')) return false;
  if (byte < 0x20 || byte == 0x7f) {
    if (byte == '\n') {
      *out += "\\n";
    } else {
      *out += fmt::format("\\x{:02x}", byte);
    }
    ++*at;
    return true;
  }
  if (byte == 0xc2 && *at + 1 < text.size()) {
    const auto next = static_cast<unsigned char>(text[*at + 1]);
    if (next >= 0x80 && next < 0xa0) {
      *out += fmt::format("\\x{:02x}", next);
      *at += 2;
      return true;
    }
  }
  return false;
}

std::string Spell(std::string_view text, bool keep_lines) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    if (!SpellControl(text, &i, keep_lines, &out)) out += text[i++];
  }
  return out;
}

}  // namespace

std::string FormatBytes(uint64_t bytes) {
  if (bytes < 1024) return fmt::format("{} B", bytes);
  static constexpr const char* kUnits[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = static_cast<double>(bytes) / 1024;
  size_t unit = 0;
  for (; value >= 1000 && unit + 1 < std::size(kUnits); ++unit) value /= 1024;
  return fmt::format("{} {}", ThreeDigits(value), kUnits[unit]);
}

std::string FormatBandwidth(double bytes_per_s) {
  return fmt::format("{} GB/s", ThreeDigits(bytes_per_s / 1e9));
}

std::string FormatCount(uint64_t count) {
  if (count < 1000) return fmt::format("{}", count);
  static constexpr const char* kUnits[] = {"K", "M", "B", "T"};
  double value = static_cast<double>(count) / 1000;
  size_t unit = 0;
  for (; value >= 1000 && unit + 1 < std::size(kUnits); ++unit) value /= 1000;
  return fmt::format("{} {}", ThreeDigits(value), kUnits[unit]);
}

std::string FormatSeconds(double seconds) {
  if (seconds < 9.995) return fmt::format("{:.2f} s", seconds);
  if (seconds < 99.5) return fmt::format("{:.1f} s", seconds);
  const auto whole = static_cast<uint64_t>(std::lround(seconds));
  if (whole < 3600) return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  return fmt::format("{} h {:02} min", whole / 3600, whole / 60 % 60);
}

std::string FormatShare(double share) {
  return std::isfinite(share) ? fmt::format("{:.0f} %", share * 100) : "-";
}

std::string Printable(std::string_view text) { return Spell(text, true); }

std::string PrintableLine(std::string_view text, size_t chars_max) {
  size_t chars = 0, end = 0;
  for (; end < text.size(); ++end) {
    const bool starts_character = (static_cast<unsigned char>(text[end]) & 0xc0) != 0x80;
    if (starts_character && chars++ == chars_max) break;
  }
  std::string line = Spell(text.substr(0, end), false);
  if (end < text.size()) line += "...";
  return line;
}

double Significant(double value, int digits) {
  if (value == 0 || !std::isfinite(value)) return value;
  const double scale = std::pow(10.0, digits - 1 - std::floor(std::log10(std::abs(value))));
  return std::round(value * scale) / scale;
}

}  // namespace tinyserve
