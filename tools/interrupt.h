// Ctrl-C: what it does in each phase of the program.
#ifndef TINYSERVE_TOOLS_INTERRUPT_H_
#define TINYSERVE_TOOLS_INTERRUPT_H_

namespace tinyserve {

// Exit status of a program that was interrupted, as shells count it: 128 + SIGINT.
inline constexpr int kExitInterrupted = 130;

// From now on Ctrl-C wipes an unfinished progress line and ends the program with
// kExitInterrupted. The program starts in this mode.
void ExitOnInterrupt();

// While one lives, Ctrl-C only raises a flag that its owner polls. A second Ctrl-C before the flag
// was taken ends the program, so that nothing can make it deaf. Afterwards: as before.
class InterruptFlag {
 public:
  InterruptFlag();
  ~InterruptFlag();
  InterruptFlag(const InterruptFlag&) = delete;
  InterruptFlag& operator=(const InterruptFlag&) = delete;

  // True once for each Ctrl-C.
  bool Take();
  // Readable from Ctrl-C until Take, for whoever waits for other input meanwhile. (An interrupted
  // read does not tell: the signal may reach any thread.)
  int wake_fd() const;
};

// Tells the handler that a progress line stands on the terminal without its newline.
void NoteProgressLine(bool visible);

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_INTERRUPT_H_
