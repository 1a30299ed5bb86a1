#!/usr/bin/env bash
# triton 3.6.0 (with torch 2.11 it is what pip installs) and numpy 2.4.6.
#
# Triton's interpreter (TRITON_INTERPRET=1) runs a kernel in NumPy, on any machine.
#
# Expected: a loop whose bounds are read from memory runs there as it does compiled.
# Seen: with numpy 2.4 the loop raises TypeError, as NumPy no longer turns an array of shape (1,) into a
#   Python number, which is what the interpreter keeps a scalar in; with numpy 2.3.5 the same kernel gives
#   the right sum. Neither package forbids the pair.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
pip=("$python" -m pip install --quiet --disable-pip-version-check)
"${pip[@]}" torch==2.13.0 numpy==2.4.6
"${pip[@]}" --no-deps triton==3.6.0

cat > "$folder/kernel.py" <<'PY'
import warnings

import numpy
import torch
import triton
import triton.language as tl

warnings.simplefilter("ignore")


@triton.jit
def count_up(count, out):
    total = 0
    for i in range(0, tl.load(count)):
        total += i
    tl.store(out, total)


out = torch.zeros(1, dtype=torch.int32)
try:
    count_up[(1,)](torch.tensor([5], dtype=torch.int32), out)
    print(f"numpy {numpy.__version__}, triton {triton.__version__}: {int(out)}")
except Exception as error:
    cause = error.__cause__ or error.__context__ or error
    print(f"numpy {numpy.__version__}, triton {triton.__version__}: {type(cause).__name__}: {cause}")
PY
new=$(TRITON_INTERPRET=1 "$python" "$folder/kernel.py")
"${pip[@]}" numpy==2.3.5
old=$(TRITON_INTERPRET=1 "$python" "$folder/kernel.py")
printf '%s\n' "$new" "$old"
[[ $new == *TypeError* && $old == *": 10" ]]
