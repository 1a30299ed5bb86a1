#!/usr/bin/env bash
# torch 2.13.0, torch.distributed.tensor.DTensor on one rank (gloo).
#
# Expected: `DTensor.data_ptr()` gives its shard's address, or raises, as FakeTensor and functional
#   tensors do: whoever hands addresses to a kernel then notices.
# Seen: it returns 0, for a tensor of any size. So does a parameter that FSDP2 has sharded; the address
#   is that of `to_local()`. A table of addresses that is compared from step to step looks unchanged
#   whatever happens to the shards.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.5
"$folder/venv/bin/python" - "$folder/meeting" <<'PY'
import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

assert torch.__version__.startswith("2.13.0"), torch.__version__
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
tensor = distribute_tensor(torch.ones(64), mesh, [Shard(0)])
layer = torch.nn.Linear(4, 4)
fully_shard(layer, mesh=mesh)
seen = {
    "DTensor": (tensor.data_ptr(), tensor.to_local().data_ptr() != 0),
    "FSDP2 parameter": (layer.weight.data_ptr(), layer.weight.to_local().data_ptr() != 0),
}
for name, (address, local) in seen.items():
    print(f"torch {torch.__version__}, {name}: data_ptr() is {address}, its shard's is not 0: {local}")
dist.destroy_process_group()
sys.exit(0 if all(pair == (0, True) for pair in seen.values()) else 1)
PY
