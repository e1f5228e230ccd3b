#!/usr/bin/env bash
# Formats every C++ file of the repository in place.
set -euo pipefail
cd "$(dirname "$0")/.."
find src include tools bench tests examples -type f \( -name '*.cc' -o -name '*.h' -o -name '*.inl' \) -print0 |
  xargs -0 --no-run-if-empty clang-format -i
