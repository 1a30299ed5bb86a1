#!/usr/bin/env bash
# One run whose rank 1 is killed between two checkpoints and which torchrun starts again, and then one
# that nobody disturbs: their logs must be the same to the byte. Arguments go to bench.ranks.elastic;
# PYTHON= and RANKS= choose the interpreter and the number of ranks.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

OMP_NUM_THREADS=1 "$python" -m torch.distributed.run --standalone \
  --nproc-per-node="${RANKS:-2}" --max-restarts=3 --monitor-interval=0.1 \
  -m bench.ranks.elastic --out "$scratch/killed" --kill-rank 1 --kill-at 17 \
  --again "$scratch/undisturbed" "$@" 2>"$scratch/err" | tee "$scratch/said" \
  || { cat "$scratch/err" >&2; exit 1; }
grep -q "attempt 1: from step 1" "$scratch/said" || { echo "no rank was killed" >&2; exit 1; }
cmp "$scratch/undisturbed/log.jsonl" "$scratch/killed/log.jsonl"
echo "$(wc -l < "$scratch/killed/log.jsonl") steps, the same losses, rates and noise to the byte"
