"""Checkpoints that an earlier version wrote go on here, to the bit.

`tests/data/layout3_*.pt` were written at commit 2f3ec35, by this file, run from its own checkout:

    python tests/test_old_checkpoints.py tests/data
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_jobs_digests import SINCE_6
from torch import Tensor, nn
from training import saved_states

from adaptiverl import AdaptiveAdamW, AdaptiveSGD, Control
from adaptiverl.layout import FIELDS, MEMORY_SIZE, SLOT
from adaptiverl.migrations import current_layout

DATA = Path(__file__).parent / "data"
SHAPES = ((5, 3), (7,), ())
STEPS = 10
NOISY = {"every": 2, "noise_bounds": (0.01, 0.1)}
# The files are named by what these were called when they were made: "find_lr" is now the climb.
LAWS = {"loss": Control(**NOISY), "find_lr": Control(law="alignment", horizon=40, **NOISY)}  # type: ignore[arg-type]
KINDS: dict[str, Any] = {
    "adamw": partial(AdaptiveAdamW, amsgrad=True),
    "sgd": partial(AdaptiveSGD, momentum=0.9, nesterov=True),
}
KNOWN = [SLOT[name] for name in FIELDS[:MEMORY_SIZE] if name not in SINCE_6]
CASES = [(kind, law) for kind in KINDS for law in LAWS]


def start(kind: str, law: str) -> tuple[list[nn.Parameter], Any]:
    """Parameters whose numbers every machine has to the bit, and their optimizer."""
    sizes = [int(torch.Size(shape).numel()) for shape in SHAPES]
    params = [
        nn.Parameter((torch.arange(n).reshape(shape) % 9 - 4) / 8)
        for n, shape in zip(sizes, SHAPES, strict=True)
    ]
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.02}]
    return params, KINDS[kind](groups, lr=0.01, control=LAWS[law], max_grad_norm=4.0, seed=5)


def take(params: list[nn.Parameter], optimizer: Any, step: int) -> None:
    """The training's step of this number."""
    for place, param in enumerate(params):
        pattern = torch.arange(param.numel()).reshape(param.shape) * 7 + 3 * step + place
        param.grad = (pattern % 11 - 5) / 8 + param.detach()
    optimizer.observe(2 - step / 16 + (step % 3) / 8)
    optimizer.step()


def numbers_of(params: list[nn.Parameter], optimizer: Any) -> dict[str, Tensor]:
    """All that a step leaves, by name."""
    found = {f"param {i}": p.detach().clone() for i, p in enumerate(params)}
    states = saved_states(optimizer)
    for i, param in enumerate(params):
        for name, value in states[param].items():
            found[f"{name} {i}"] = value.clone()
    return found | {"memory": optimizer._controller.memory.clone()}


def write(folder: Path) -> None:
    """A file for every kind and law: a checkpoint after ten steps, and what an eleventh leaves."""
    for kind, law in CASES:
        params, optimizer = start(kind, law)
        for step in range(STEPS):
            take(params, optimizer, step)
        saved = {
            "params": [p.detach().clone() for p in params],
            "optimizer": optimizer.state_dict(),
        }
        kept = folder / f"layout3_{kind}_{law}.pt"
        torch.save(saved, kept)
        take(params, optimizer, STEPS)
        saved = torch.load(kept, weights_only=True)
        torch.save(saved | {"next": numbers_of(params, optimizer)}, kept)


@pytest.mark.parametrize(("kind", "law"), CASES)
def test_it_goes_on_where_it_was(kind: str, law: str) -> None:
    saved = torch.load(DATA / f"layout3_{kind}_{law}.pt", weights_only=True)
    params, optimizer = start(kind, law)
    with torch.no_grad():
        for param, value in zip(params, saved["params"], strict=True):
            param.copy_(value)
    optimizer.load_state_dict(saved["optimizer"])
    take(params, optimizer, STEPS)
    found = numbers_of(params, optimizer)
    assert found.keys() == saved["next"].keys()
    for name, value in saved["next"].items():
        if name == "memory":  # which does not say how large gradients were
            value, found[name] = current_layout(value)[KNOWN], found[name][KNOWN]
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name
    assert found["memory"][1] == STEPS + 1


if __name__ == "__main__":
    write(Path(sys.argv[1]))
