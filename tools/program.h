// The command line of the program `tinyserve`: parses it and runs the chosen subcommand.
#ifndef TINYSERVE_TOOLS_PROGRAM_H_
#define TINYSERVE_TOOLS_PROGRAM_H_

namespace tinyserve {

// Exit status: 0 fine, 1 it failed, 2 the command line is wrong, 130 interrupted.
int RunProgram(int argc, char** argv);

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_PROGRAM_H_
