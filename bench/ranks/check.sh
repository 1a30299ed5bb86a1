#!/usr/bin/env bash
# One undisturbed run, and one whose rank 1 is killed between two checkpoints and which torchrun
# starts again: their logs must be the same to the byte. Arguments go to bench.ranks.elastic; PYTHON= and
# RANKS= choose the interpreter and the number of ranks.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

run() {
  local out=$1
  shift
  OMP_NUM_THREADS=1 "$python" -m torch.distributed.run --standalone \
    --nproc-per-node="${RANKS:-2}" --max-restarts=3 --monitor-interval=0.1 \
    -m bench.ranks.elastic --out "$scratch/$out" "$@" 2>"$scratch/$out.err" | tee "$scratch/$out.txt" \
    || { cat "$scratch/$out.err" >&2; exit 1; }
}

run undisturbed "$@"
run killed "$@" --kill-rank 1 --kill-at 17
grep -q "attempt 1: from step 1" "$scratch/killed.txt" || { echo "no rank was killed" >&2; exit 1; }
cmp "$scratch/undisturbed/log.jsonl" "$scratch/killed/log.jsonl"
echo "$(wc -l < "$scratch/killed/log.jsonl") steps, the same losses, rates and noise to the byte"
