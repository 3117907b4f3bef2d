#!/usr/bin/env bash
# Makes a DMax model of SmolLM2-135M-Instruct, and goes on where it was stopped: adapts it (a GGUF file, a folder or a
# Hugging Face id; HuggingFaceTB/SmolLM2-135M-Instruct if none), then trains the stages in the folder given (runs/ if
# none). Further arguments go to every `dmax train`, such as --data openai/gsm8k=train.jsonl.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source="${1:-HuggingFaceTB/SmolLM2-135M-Instruct}"
runs="${2:-runs}"
shift $(($# < 2 ? $# : 2))

mkdir -p "$runs"
runs="$(cd "$runs" && pwd)"
adapted="$runs/smollm2-135m-adapted"
[ -d "$adapted" ] || dmax adapt "$source" "$adapted" --dtype float32
cd "$(dirname "$runs")" # recipes name each other's results as runs/…
for stage in 1-autoregressive 2-block-diffusion 3-oput; do
  dmax train "$here/$stage.yaml" --output "$runs/smollm2-135m-$stage" --resume "$@"
done
