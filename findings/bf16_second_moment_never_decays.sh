#!/usr/bin/env bash
# torch 2.13.0, torch.optim.AdamW on bfloat16 parameters, betas=(0.9, 0.999), on the CPU.
#
# Expected: one large gradient is forgotten in a few thousand steps. exp_avg_sq loses a thousandth of
#   its excess in each, with some rounding noise, in all three implementations (for loop, foreach, fused).
# Seen: it does not lose anything, ever. One gradient of 100 leaves exp_avg_sq = 10; after 20,000 steps
#   with gradients of 1 it still is 10, to the bit, in all three, where float32 state is at 1. The state
#   has the parameter's dtype, and a thousandth is less than half of bfloat16's last place, so that
#   each average is rounded back to what it was. The weight moves by a third of the learning rate in
#   each step from then on. With betas[1] = 0.99 the spike decays, to another value in each
#   implementation: 2.33, 1.01 and 1.39.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.5
"$folder/venv/bin/python" - <<'PY'
import sys

import torch

assert torch.__version__.startswith("2.13.0"), torch.__version__


def second_moment_after_a_spike(dtype, beta2, **implementation):
    weight = torch.nn.Parameter(torch.zeros(8, dtype=dtype))
    optimizer = torch.optim.AdamW(
        [weight], lr=1e-3, betas=(0.9, beta2), weight_decay=0.0, **implementation
    )
    for step in range(20_000):
        weight.grad = torch.full_like(weight, 100.0 if step == 0 else 1.0)
        optimizer.step()
    return optimizer.state[weight]["exp_avg_sq"][0].item()


ways = {"for loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
as_seen = True
for name, way in ways.items():
    kept = second_moment_after_a_spike(torch.bfloat16, 0.999, **way)
    forgets = second_moment_after_a_spike(torch.bfloat16, 0.99, **way)
    exact = second_moment_after_a_spike(torch.float32, 0.999, **way)
    print(
        f"torch {torch.__version__}, AdamW ({name}), 20,000 steps after a spike: exp_avg_sq is {kept} in "
        f"bfloat16, {exact:.4f} in float32, and {forgets} in bfloat16 with betas[1] = 0.99"
    )
    as_seen &= kept == 10.0 and exact < 1.01 and forgets < 3
sys.exit(0 if as_seen else 1)
PY
