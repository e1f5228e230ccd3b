// How the program writes figures and foreign text for people.
#ifndef TINYSERVE_TOOLS_FORMAT_H_
#define TINYSERVE_TOOLS_FORMAT_H_

#include <cstdint>
#include <string>
#include <string_view>

namespace tinyserve {

// "0 B", "1.5 KiB", "93.8 MiB": three significant digits, binary units.
std::string FormatBytes(uint64_t bytes);
// "13.7 GB/s": decimal units, as memory makers count.
std::string FormatBandwidth(double bytes_per_s);
// "134.5 M", "8.0 B": elements.
std::string FormatCount(uint64_t count);
// "0.21 s", "12.3 s", "2 min 05 s".
std::string FormatSeconds(double seconds);
// "37 %"; "-" where it is unknown (not finite).
std::string FormatShare(double share);

// `text` with control characters other than newline and tab spelled out (\x1b ...), so that text
// from a file or a model cannot steer the terminal.
std::string Printable(std::string_view text);
// The same on one line, at most `chars_max` characters, with ... where it was cut.
std::string PrintableLine(std::string_view text, size_t chars_max);

// Rounded to so many digits: what lies beyond them is noise for whoever reads a line.
double Significant(double value, int digits);

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_FORMAT_H_
