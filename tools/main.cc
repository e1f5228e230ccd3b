// The program `tinyserve`.
#include "tools/program.h"

int main(int argc, char** argv) { return tinyserve::RunProgram(argc, argv); }
