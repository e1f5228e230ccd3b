#!/usr/bin/env bash
# build.sh PRESET [NINJA ARGUMENT...]: configures build/PRESET where that is needed, and builds.
set -euo pipefail
cd "$(dirname "$0")/.."
preset=$1
shift
if [ "$preset" = cuda ]; then
  CUDACXX=$(scripts/fetch-nvcc.sh)
  export CUDACXX
fi
# CMake itself notices changes of every CMakeLists.txt, but not of the presets.
if [ ! -f "build/$preset/build.ninja" ] || [ CMakePresets.json -nt "build/$preset/build.ninja" ]; then
  echo "==> Configuring build/$preset"
  cmake --preset "$preset" -Wno-dev
fi
NINJA_STATUS="[%f/%t %es] " exec ninja -C "build/$preset" -j "${JOBS:-$(nproc)}" "$@"
