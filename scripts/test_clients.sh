#!/usr/bin/env bash
# The server with what users have: clients of pinned versions, in an environment of their own in build/clients.
# The program, the model and Chromium must be there: `make test-clients` sees to them.
set -euo pipefail
cd "$(dirname "$0")/.."
environment=build/clients requirements=tests/clients/requirements.txt
if ! cmp -s "$requirements" "$environment/installed.txt"; then
  python3 -m venv "$environment"
  "$environment/bin/pip" install --quiet --disable-pip-version-check -r "$requirements"
  cp "$requirements" "$environment/installed.txt"
fi
model=${MODEL:-models/SmolLM2-135M-Instruct.Q4_1.gguf}
for test in tests/clients/check_*.py; do
  echo "==> $test"
  "$environment/bin/python3" "$test" "${PROGRAM:-build/release/tinyserve}" "$model"
done
