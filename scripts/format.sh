#!/usr/bin/env bash
# Formats every C++ file of the repository in place.
set -euo pipefail
cd "$(dirname "$0")/.."
find src include tools bench tests examples -type f -regextype posix-extended -regex '.*\.(cc|cu|h|inl)' -print0 |
  xargs -0 --no-run-if-empty clang-format -i
