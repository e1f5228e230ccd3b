#!/usr/bin/env bash
# Prints the path of a CUDA compiler of version 13: $CUDACXX, the nvcc on PATH or in /usr/local/cuda, else a pinned one
# (scripts/nvcc-wheels.txt, 130 MB to fetch, 350 MB on disk) that it installs into build/nvcc, once. Messages go to
# standard error. NVCC_PINNED=1 passes over what the machine has.
set -euo pipefail
cd "$(dirname "$0")/.."
readonly WHEELS=scripts/nvcc-wheels.txt FOLDER=build/nvcc TRIES=3
readonly PINNED=$PWD/$FOLDER/nvidia/cu13/bin/nvcc

major_of() { "$1" --version 2>/dev/null | sed -n 's/.*release \([0-9]*\)\..*/\1/p'; }

if [ -z "${NVCC_PINNED:-}" ]; then
  for nvcc in "${CUDACXX:-}" "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc; do
    [ -n "$nvcc" ] && [ -x "$nvcc" ] || continue
    if [ "$(major_of "$nvcc")" = 13 ]; then
      echo "$nvcc"
      exit 0
    fi
    echo "$nvcc is of CUDA $(major_of "$nvcc"), not 13: looking further" >&2
  done
fi

# The stamp is the list itself: another list is another compiler.
if cmp -s "$WHEELS" "$FOLDER/wheels.txt" && [ -x "$PINNED" ]; then
  echo "$PINNED"
  exit 0
fi
if [ "$(uname -sm)" != "Linux x86_64" ]; then
  echo "There is no nvcc 13 here, and the pinned one is for Linux on x86-64: install CUDA 13 and set CUDACXX." >&2
  exit 1
fi

mkdir -p build
exec 9>build/nvcc.lock
flock 9 # two runs at once: the second waits, and finds the compiler
if ! cmp -s "$WHEELS" "$FOLDER/wheels.txt" || [ ! -x "$PINNED" ]; then
  part=$FOLDER.part
  for attempt in $(seq "$TRIES"); do
    rm -rf "$part"
    echo "==> Fetching the CUDA compiler (130 MB, try $attempt of $TRIES)" >&2
    # pip checks every file against its hash before it unpacks it. Its temporary files lie beside their destination:
    # /tmp may be a small memory disk.
    mkdir -p "$part/tmp"
    if TMPDIR=$PWD/$part/tmp timeout 900 python3 -m pip --disable-pip-version-check install --no-deps \
      --no-cache-dir --require-hashes --only-binary :all: --timeout 60 --retries 2 --root-user-action ignore \
      --target "$part" -r "$WHEELS" </dev/null >&2; then
      break
    fi
    if [ "$attempt" = "$TRIES" ]; then
      rm -rf "$part"
      echo "The CUDA compiler could not be fetched: pip's message is above. Without a network, install CUDA 13 and" \
        "set CUDACXX=/path/to/nvcc." >&2
      exit 1
    fi
    sleep $((2 * attempt))
  done
  rm -rf "$part/tmp" "$FOLDER"
  cp "$WHEELS" "$part/wheels.txt"
  mv "$part" "$FOLDER"
fi
if [ "$(major_of "$PINNED")" != 13 ]; then
  echo "$PINNED does not run here: $("$PINNED" --version 2>&1 | head -n1)" >&2
  exit 1
fi
echo "$PINNED"
