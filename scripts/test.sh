#!/usr/bin/env bash
# The whole test suite: all of it on the release build, and those that need no model file again under
# AddressSanitizer and UBSan.
# Ends in a summary; its last line reads "N passed, N failed, N skipped".
set -euo pipefail
cd "$(dirname "$0")/.."

results_of() { echo "build/$1/test-results"; }

# run_tests PRESET [CTEST ARGUMENT...]: a failing test does not stop the script; the summary reports it.
run_tests() {
  local preset=$1 results
  shift
  results=$(results_of "$preset")
  rm -rf "$results"
  mkdir -p "$results"
  echo "==> Testing build/$preset"
  # Each gtest program writes its cases to a file, so that the summary can tell skipped cases from passed ones.
  GTEST_OUTPUT="xml:$PWD/$results/" ctest --test-dir "build/$preset" --output-on-failure --no-tests=error \
    -j "${JOBS:-$(nproc)}" --output-junit "$PWD/$results/ctest.xml" "$@" </dev/null || true
}

export ASAN_OPTIONS=detect_stack_use_after_return=1:strict_string_checks=1:${ASAN_OPTIONS:-}
export UBSAN_OPTIONS=print_stacktrace=1:${UBSAN_OPTIONS:-}

scripts/build.sh release
run_tests release
scripts/build.sh asan-ubsan
run_tests asan-ubsan -L fast
python3 scripts/test_summary.py "$(results_of release)" "$(results_of asan-ubsan)"
