// Where output goes, and lines typed by a person.
#ifndef TINYSERVE_TOOLS_TERMINAL_H_
#define TINYSERVE_TOOLS_TERMINAL_H_

#include <cstdint>
#include <string>

namespace tinyserve {

bool StdinIsTerminal();
bool StdoutIsTerminal();
bool StderrIsTerminal();
uint32_t TerminalColumns();  // of standard error; 80 where it is unknown

// Reads lines from standard input. Unlike a stream it can be woken from its wait.
class LineReader {
 public:
  enum class Outcome : uint8_t { kLine, kEnd, kInterrupted };

  // The next line without its newline. kEnd: nothing is left. A last line without a newline is a
  // line. Lines longer than kLineBytesMax are cut into several. kInterrupted: no line is there yet,
  // and `wake_fd` is readable.
  Outcome Read(std::string* line, int wake_fd);

  static constexpr size_t kLineBytesMax = 1 << 20;

 private:
  std::string pending_;
  bool ended_ = false;
};

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_TERMINAL_H_
