#!/usr/bin/env bash
# Trains the embedded models from the first step to the last, in the folder given (runs/ if none), and goes on where it
# was stopped. Further arguments go to every `dmax train`, such as --data openai/gsm8k=train.jsonl.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
runs="${1:-runs}"
shift || true

# Matrix products of many shapes are compiled once each, and memory is kept instead of being given back and cleared.
export ONEDNN_PRIMITIVE_CACHE_CAPACITY="${ONEDNN_PRIMITIVE_CACHE_CAPACITY:-20000}"
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=268435456}"

mkdir -p "$runs"
runs="$(cd "$runs" && pwd)"
cd "$(dirname "$runs")" # recipes name each other's results as runs/…
for stage in 1-autoregressive 2-block-diffusion 3-oput; do
  if [ -e "$runs/nano-$stage/model/provenance.json" ]; then
    continue # a finished stage, of this machine or another
  fi
  dmax train "$here/$stage.yaml" --output "$runs/nano-$stage" --resume "$@"
done
