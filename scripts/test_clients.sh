#!/usr/bin/env bash
# The server with what users have: clients of pinned versions, in environments of their own: build/clients, and
# build/guidellm for one of an older time, so that its versions of what both need hold nobody back.
# The program, the model and Chromium must be there: `make test-clients` sees to them.
set -euo pipefail
cd "$(dirname "$0")/.."
prepare() { # ENVIRONMENT REQUIREMENTS
  if cmp -s "$2" "$1/installed.txt"; then return; fi
  python3 -m venv "$1"
  "$1/bin/pip" install --quiet --disable-pip-version-check -r "$2"
  cp "$2" "$1/installed.txt"
}
prepare build/clients tests/clients/requirements.txt
prepare build/guidellm tests/clients/requirements-guidellm.txt
model=${MODEL:-models/SmolLM2-135M-Instruct.Q4_1.gguf}
for test in tests/clients/check_*.py; do
  echo "==> $test"
  environment=build/clients
  if [[ $test == */check_guidellm.py ]]; then environment=build/guidellm; fi
  "$environment/bin/python3" "$test" "${PROGRAM:-build/release/tinyserve}" "$model"
done
