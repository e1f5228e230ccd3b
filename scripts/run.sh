#!/usr/bin/env bash
# run.sh [chat]: with $PROMPT answers it; without, opens a chat on a terminal and answers a sample prompt elsewhere.
# The program and the model must be there: `make run` sees to both.
set -euo pipefail
cd "$(dirname "$0")/.."
program=build/release/tinyserve
model=${MODEL:-models/SmolLM2-135M-Instruct.Q4_1.gguf}
sample="Explain in two sentences why the sky is blue."

chat() {
  # Job control gives the chat a process group of its own in the terminal's foreground: Ctrl-C reaches it alone, not
  # make, so that it can stop an answer and stay.
  set -m
  "$program" chat --model="$model"
}

if [ "${1:-}" = chat ]; then
  chat
elif [ -n "${PROMPT:-}" ]; then
  exec "$program" run --model="$model" --prompt="$PROMPT"
elif [ -t 0 ] && [ -t 1 ]; then
  chat
else
  echo "==> $sample"
  exec "$program" run --model="$model" --prompt="$sample"
fi
