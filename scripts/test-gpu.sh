#!/usr/bin/env bash
# The comparisons of tests/simt and the default model on this machine's GPU; the former again under compute-sanitizer
# (memcheck, racecheck) where that is installed. Without a GPU every test counts as skipped, and the script says so.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/build.sh cuda gpu_tests
ctest --test-dir build/cuda -L gpu --output-on-failure --no-tests=error
if ! ctest --test-dir build/cuda -L gpu -N | grep gpu_memcheck_ > /dev/null; then
  echo "compute-sanitizer is not installed: nothing ran under it."
fi
