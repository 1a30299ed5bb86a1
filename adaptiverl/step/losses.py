"""Which share of the updates of 16-bit parameters is lost where they are rounded to nearest.

One step is looked at: a parameter that had a gradient and is what it was has lost its update. The
answer is on the device; it is copied on the stream, and told by a later step that finds it there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from adaptiverl import devices
from adaptiverl.backends.layouts import is_fake
from adaptiverl.kernels.rounding import HALVES
from adaptiverl.ranks.dtensors import gradient_of, to_local

LOOK_AT = 10
"""The step that is looked at: by then no moment is young, and no warm-up at 0"""
ELEMENTS = 2**16
"""At most so many of a parameter"""


class Sample(NamedTuple):
    """The first elements of a parameter and of its gradient, before a step."""

    param: Tensor
    before: Tensor
    moving: Tensor


class Losses:
    """Looks at one step of an optimizer whose parameters are rounded to nearest.

    Args:
        tell: Called once, with the share, 0-d on the host, and the number of the step.
    """

    def __init__(self, tell: Callable[[Tensor, int], None]) -> None:
        self._tell = tell
        self._steps = 0
        self._answer: Tensor | None = None
        self._arrived: torch.cuda.Event | None = None

    def before(self, params: Iterable[Tensor]) -> list[Sample]:
        """What of these parameters is to be compared after the step: mostly nothing."""
        if self._steps + 1 != LOOK_AT:
            return []
        halves = [p for p in params if p.dtype in HALVES and p.grad is not None]
        return [s for s in map(_sample, halves) if s.before.numel() > 0 and not is_fake(s.before)]

    def end_step(self, samples: Sequence[Sample]) -> None:
        """The step is done: all its samples."""
        self._steps += 1
        if self._answer is not None:
            self._tell_if_arrived()
        elif samples:
            self._compare(samples)

    def _compare(self, samples: Sequence[Sample]) -> None:
        here = [s for s in samples if s.param.device == samples[0].param.device]
        if devices.is_capturing(here[0].param.device):
            return
        lost = torch.stack([(s.moving & (s.before == _first(s.param))).sum() for s in here]).sum()
        moving = torch.stack([s.moving.sum() for s in here]).sum()
        share = lost / moving.clamp(min=1)
        if share.device.type != "cuda":
            self._tell(share, self._steps)
            return
        with torch.cuda.device(share.device):
            self._answer = torch.empty(share.shape, dtype=share.dtype, pin_memory=True)
            self._answer.copy_(share, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def _tell_if_arrived(self) -> None:
        assert self._arrived is not None
        assert self._answer is not None
        device = torch.device("cuda", torch.cuda.current_device())
        if not devices.is_capturing(device) and self._arrived.query():
            self._tell(self._answer, LOOK_AT)
            self._answer = self._arrived = None


def _first(tensor: Tensor) -> Tensor:
    return tensor.detach().flatten()[:ELEMENTS]


def _sample(param: Tensor) -> Sample:
    local = to_local(param)
    return Sample(local, _first(local).clone(), _first(to_local(gradient_of(param))) != 0)
