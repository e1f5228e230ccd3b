#!/usr/bin/env bash
# fuzz.sh [NAME...]: fuzzes tests/fuzz/NAME_fuzz.cc (all of them, if none is named) with libFuzzer, ASan and UBSan for
# FUZZ_SECONDS each. What it learns stays in build/fuzz/corpus/NAME; an input that fails is kept in
# build/fuzz/findings/NAME and belongs into tests/fuzz/corpus/NAME with the fix.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${FUZZ_SECONDS:-300}
if [ $# -eq 0 ]; then
  for source in tests/fuzz/*_fuzz.cc; do
    name=${source##*/}
    set -- "$@" "${name%_fuzz.cc}"
  done
fi
scripts/build.sh fuzz "${@/#/fuzz_}"

failed=()
for name in "$@"; do
  corpus=build/fuzz/corpus/$name findings=build/fuzz/findings/$name
  mkdir -p "$corpus" "$findings"
  echo "==> Fuzzing $name for $seconds s"
  # 4 MiB cover every field that a parser reads; rss and timeout turn memory and time bombs into findings.
  "build/fuzz/tests/fuzz/fuzz_$name" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=3072 -max_len=4194304 \
    -print_final_stats=1 -artifact_prefix="$findings/" "$corpus" "tests/fuzz/corpus/$name" || failed+=("$name")
done
echo "==> Summary"
printf '%s\n' "${failed[@]/#/failed  }"
echo "$(($# - ${#failed[@]})) passed, ${#failed[@]} failed"
[ ${#failed[@]} -eq 0 ]
