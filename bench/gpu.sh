#!/usr/bin/env bash
# gpu.sh [FOLDER]: every measurement of the CUDA backend, on this machine's GPU, into FOLDER (default build/gpu): JSON
# lines of `tinyserve bench`, and what was printed. Where there is no GPU it says what is missing.
#
# What attention takes is a step's time at a depth less that at depth 0; the bytes of both are in the lines, and
# docs/kernels/cuda.md has the table that they fill. How much of the host's time is hidden stands there as hidden_share.
# STEPS (default 64) sets the steps of a case.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-build/gpu}
model=${MODEL:-models/SmolLM2-135M-Instruct.Q4_1.gguf}
steps=${STEPS:-64}
box="box:ratio=0.3"
scripts/build.sh cuda tinyserve
program=build/cuda/tinyserve
mkdir -p "$out"
"$program" --version | tee "$out/version.txt"
if command -v nvidia-smi >/dev/null; then
  nvidia-smi --query-gpu=name,driver_version,clocks.max.mem,power.limit --format=csv >"$out/gpu.csv"
fi

measure() {  # NAME ARGUMENT...
  local name=$1
  shift
  echo "==> $name"
  "$program" bench --device cuda --json "$out/$name.json" "$@" | tee "$out/$name.txt"
}

# The device computes what it is tested to compute, before anything is timed.
scripts/test-gpu.sh | tee "$out/tests.txt"
# The device's peaks; each case below measures them anew, and gives its shares of them.
"$program" bench --machine --device cuda --json "$out/peaks.json" | tee "$out/peaks.txt"
# Dense attention, and whole steps: batches at depth 0 and 8K less what is generated.
measure dense --model "$model" --prefill 0 --decode "$steps" --depth 0,2048,7168 --batch 1,4,16,32,64
# Selection against its own dense attention, in alternation.
measure selection --model "$model" --prefill 0 --decode "$steps" --depth 2048,4096,7168 --batch 1,4,16,32,64 \
  --selector full --selector default --selector "$box" --selector "$box@int8" --selector full@int8 \
  --selector hierarchical:ratio=0.3
# Prompts.
measure prefill --model "$model" --prefill 512,2048,7168 --decode 0 --depth 0 --batch 1
# A Llama-shaped model of a billion weights, to 32K.
large=models/random-llama-3.2-1b.Q4_0.gguf
if [ ! -f "$large" ]; then
  python3 bench/make_random_model.py --shape llama-3.2-1b --quant q4_0 --out "$large" ||
    { echo "No $large: the rows of the 1B model are left out (pip install gguf numpy)."; exit 0; }
fi
measure large --model "$large" --prefill 0 --decode "$steps" --depth 0,8192,31000 --batch 1,4,16 \
  --selector full --selector "$box" --selector default
