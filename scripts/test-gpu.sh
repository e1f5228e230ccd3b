#!/usr/bin/env bash
# The comparisons of tests/simt on this machine's GPU, then again under compute-sanitizer (memcheck, racecheck) where
# that is installed. Without a GPU every test counts as skipped, and the script says so.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/build.sh cuda gpu_tests
ctest --test-dir build/cuda -L gpu --output-on-failure --no-tests=error
sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
if [ ! -x "$sanitizer" ]; then
  echo "compute-sanitizer is not installed: nothing ran under it."
  exit 0
fi
export TINYSERVE_CUDA_SYNC=1
for tool in memcheck racecheck; do
  for program in build/cuda/tests/cuda/gpu_*_test; do
    echo "==> $tool: $(basename "$program")"
    # 77: there is no GPU.
    timeout 900 "$sanitizer" --tool "$tool" --error-exitcode 1 "$program" --gtest_brief=1 || [ $? -eq 77 ]
  done
done
