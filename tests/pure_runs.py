"""Training runs that do without the compiled part as with it; as a script, without it.

python pure_runs.py GIVEN MADE: with ADAPTIVERL_PURE=1, makes of every case what `test_pure.py`
compares: a whole run, its checkpoint half-way, and how the checkpoint of GIVEN goes on.
python pure_runs.py: every case once, on whatever is installed.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from training import BUSY, draw_gradients, parameters, snapshot

from adaptiverl import AdaptiveAdamW, AdaptiveLion, AdaptiveSGD, Control, describe
from adaptiverl.layout import LAWS

HALF, STEPS = 8, 16
SHAPES = ((7, 5), (1025,), ())
KINDS: dict[str, Callable[..., Any]] = {
    "adamw": partial(AdaptiveAdamW, amsgrad=True, max_grad_norm=3.0),
    "sgd": partial(AdaptiveSGD, momentum=0.9, nesterov=True),
    "lion": AdaptiveLion,
}
MORE: dict[str, dict[str, Any]] = {
    "alignment": {"horizon": STEPS},
    "range_test": {"horizon": 300},
    "bandit": {"window": 3},
    "distilled": {"horizon": STEPS},
}
CONTROLS: dict[str, Control] = {
    law: replace(BUSY, law=law, **MORE.get(law, {}))  # type: ignore[arg-type]
    for law in LAWS
}
CASES = [(kind, law) for kind in KINDS for law in CONTROLS]


class Run:
    """One optimizer on gradients and losses that depend on the step alone."""

    def __init__(self, kind: str, law: str) -> None:
        self.params = parameters(*SHAPES)
        self.optimizer = KINDS[kind](
            self.params, lr=1e-2, weight_decay=0.1, control=CONTROLS[law], seed=7
        )
        self.taken = 0

    def go_on(self, steps: int) -> Run:
        """Take more steps."""
        for step in range(self.taken, self.taken + steps):
            draw_gradients(self.params, step, absent=[1] if step == 3 else [])
            loss = 3.0 - 0.1 * step + (0.5 if step % 3 == 0 else 0.0)
            # As a number and as a tensor: there are two operators.
            self.optimizer.step(loss=loss if step % 2 else torch.tensor(loss))
        self.taken += steps
        return self

    def resume(self, checkpoint: Any) -> Run:
        """Go on from what `state` gave."""
        memory, values = checkpoint
        self.optimizer.load_state_dict(memory)
        with torch.no_grad():
            for param, value in zip(self.params, values, strict=True):
                param.copy_(value)
        self.taken = HALF
        return self

    def state(self) -> Any:
        """The optimizer's checkpoint, and the parameters."""
        return snapshot(self.optimizer, self.params)

    def end(self) -> dict[str, Any]:
        """Everything that it has come to."""
        trace = self.optimizer.trace()
        return {
            "state": self.state(),
            "knobs": self.optimizer.knobs(),
            "trace": {name: trace[name].clone() for name in trace},
            "backends": sorted({b.backend.name for b in self.optimizer._round.plan._sorted}),
        }


def whole(kind: str, law: str) -> dict[str, Any]:
    """A run from its start, and its checkpoint half-way."""
    run = Run(kind, law).go_on(HALF)
    half = run.state()
    return {"half": half, "whole": run.go_on(STEPS - HALF).end()}


def continued(kind: str, law: str, half: Any) -> dict[str, Any]:
    """The second half of a run, from a checkpoint of the first."""
    return Run(kind, law).resume(half).go_on(STEPS - HALF).end()


def main(given: Path, made: Path) -> None:
    """Do it all."""
    torch.set_num_threads(1)
    said = io.StringIO()
    logging.basicConfig(stream=said, level=logging.INFO, format="%(levelname)s %(message)s")
    theirs = torch.load(given, weights_only=True)
    runs = {
        case: whole(*case) | {"continued": continued(*case, theirs[case]["half"])} for case in CASES
    }
    torch.save({"runs": runs, "describe": describe(), "log": said.getvalue().splitlines()}, made)


if __name__ == "__main__":
    if sys.argv[1:]:
        main(*map(Path, sys.argv[1:]))
    else:
        print(describe(), *(whole(*case)["whole"]["knobs"] for case in CASES), sep="\n")
