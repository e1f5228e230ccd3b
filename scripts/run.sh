#!/usr/bin/env bash
# run.sh [chat]: with $PROMPT answers it; without, serves the model on $PORT (8080) until Ctrl-C. chat: on the terminal.
# The program and the model must be there: `make run` sees to both.
set -euo pipefail
cd "$(dirname "$0")/.."
program=build/release/tinyserve
model=${MODEL:-models/SmolLM2-135M-Instruct.Q4_1.gguf}

if [ "${1:-}" = chat ]; then
  # Job control gives the chat a process group of its own in the terminal's foreground: Ctrl-C reaches it alone, not
  # make, so that it can stop an answer and stay.
  set -m
  "$program" chat --model="$model"
elif [ -n "${PROMPT:-}" ]; then
  exec "$program" run --model="$model" --prompt="$PROMPT"
else
  # So that the page's chat can try these selectors, and show what they do in a short conversation already.
  short=min_tokens=64,min_context=0
  serve=("$program" serve --model="$model" --port="${PORT:-8080}" --metadata="box:ratio=0.3,$short"
    --metadata="moments:ratio=0.2,$short")
  [ -t 0 ] || exec "${serve[@]}"
  set -m  # as above: the server ends well by Ctrl-C, and make with it
  "${serve[@]}"
fi
