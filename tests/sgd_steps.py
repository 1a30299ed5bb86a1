"""One SGD step three ways, for the tests: compiled sweep, reference, oracle, on equal entries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import oracle
import torch
from adaptiverl.kernels import reference
from numpy.typing import NDArray
from tolerances import assert_close
from torch import Tensor

from adaptiverl.layout import State
from adaptiverl.step.entries import COLUMNS, SGDEntry

BLOCK, PIECE = 1024, 262144
"""Elements that the compiled sweep takes at once, and that one thread takes."""
LONG = PIECE + 4467
"""Elements of a tensor of two pieces, the second not a whole one."""
SIZES = [0, 1, 2, 3, 4, 5, 15, 16, 17, 63, 65, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 2]

SEED, STEP, SIGMA = (0xDEADBEEF << 32) + 0x12345678, 41, 0.1
PATHS = ("compiled", "reference")
# lr, momentum, dampening, options, weight decay: every option somewhere, and no number at which a
# forgotten term would not show.
GROUPS = torch.tensor(
    [
        [1e-2, 0.9, 0.2, 0, 0.1],
        [3e-3, 0.8, 0.0, reference.NESTEROV, 0.3],
        [3e-3, 0.8, 0.5, reference.DECOUPLED, 0.4],
        [3e-3, 0.8, 0.0, reference.NESTEROV + reference.DECOUPLED, 0.2],
        [3e-3, 0.8, 0.3, 0, 0.0],
    ],
    dtype=torch.float64,
)
# lr and momentum as this step uses them: not the groups' own.
EFFECTIVE = torch.tensor(
    [[5e-2, 0.85], [4e-2, 0.7], [6e-2, 0.9], [3e-2, 0.95], [2e-2, 0.6]], dtype=torch.float64
)


def block_of(
    noise: float = 0.0, *, seed: int = SEED, step: int = STEP, active: float = 1
) -> Tensor:
    """A controller's block that decided just this."""
    low, high = float(seed & 0xFFFFFFFF), float(seed >> 32)
    state = State(step=step, seed_low=low, seed_high=high, active=active, noise=noise)
    return torch.tensor(astuple(state), dtype=torch.float64)


def knobs_of(block: Tensor) -> Any:
    """The same as the reference reads it."""
    state = State(*block.tolist())
    names = ("step", "seed_low", "seed_high", "active", "noise")
    return SimpleNamespace(
        **{name: torch.tensor(getattr(state, name), dtype=torch.float64) for name in names}
    )


def entry_of(
    shape: Sequence[int],
    *,
    index: int = 0,
    group: int = 0,
    maximize: bool = False,
    momentum: bool = True,
    steps: int = 3,
    dtype: torch.dtype = torch.float32,
    grad_dtype: torch.dtype | None = None,
) -> SGDEntry:
    """A parameter after so many steps, at random; before the first its buffer is zeros."""
    moments = torch.promote_types(dtype, torch.float32)
    buffer = 0.1 * torch.randn(*shape, dtype=moments) if steps else torch.zeros(*shape).to(moments)
    return SGDEntry(
        param=torch.randn(*shape, dtype=dtype),
        grad=0.3 * torch.randn(*shape, dtype=grad_dtype or dtype),
        momentum_buffer=buffer if momentum else None,
        step=torch.tensor(float(steps)),
        group=group,
        index=index,
        offset=0,
        logical_numel=int(np.prod(shape)),
        maximize=maximize,
    )


def mixed_entries(sizes: Sequence[int], **options: Any) -> list[SGDEntry]:
    """One entry a size: every group, sign, with and without a buffer, first step and later."""
    return [
        entry_of(
            (n,),
            index=i,
            group=i % len(GROUPS),
            maximize=i % 3 == 0,
            momentum=i % 4 != 1,
            steps=0 if i % 7 == 2 else 3,
            **options,
        )
        for i, n in enumerate(sizes)
    ]


def copy_of(entry: SGDEntry) -> SGDEntry:
    copies: dict[str, Any] = {
        name: getattr(entry, name).clone() for name in ("param", "grad", "step")
    }
    buffer = entry.momentum_buffer
    return replace(entry, **copies, momentum_buffer=None if buffer is None else buffer.clone())


def rows_of(entries: Sequence[SGDEntry]) -> Tensor:
    table = torch.tensor([e.row() for e in entries], dtype=torch.int64)
    return table.reshape(len(entries), len(COLUMNS))


def compiled_sweep(
    entries: Sequence[SGDEntry],
    block: Tensor,
    *,
    squares: Tensor | None = None,
    gradient_scale: Tensor | None = None,
    sums: Tensor | None = None,
    on_parameter: bool = False,
) -> None:
    rows = rows_of(entries)
    if squares is None:
        squares = torch.zeros(len(entries), dtype=torch.float64)
        torch.ops.adaptiverl.sum_squares_(rows, block, squares, False, on_parameter)
    torch.ops.adaptiverl.sgd_step_(
        rows, block, GROUPS, EFFECTIVE, squares, gradient_scale, sums, on_parameter
    )


def sweep(
    path: str,
    entries: Sequence[SGDEntry],
    block: Tensor,
    gradient_scale: float | None = None,
    on_parameter: bool = False,
) -> None:
    """One step in place, counters included."""
    scale = None if gradient_scale is None else torch.tensor(gradient_scale, dtype=torch.float64)
    if path == "compiled":
        # The controller counts for a sweep over addresses.
        for entry in entries:
            entry.step += 1
        compiled_sweep(entries, block, gradient_scale=scale, on_parameter=on_parameter)
        return
    knobs = knobs_of(block)
    squares = None
    if knobs.noise != 0:
        squares = torch.zeros(len(entries), dtype=torch.float64)
        reference.sum_squares(entries, squares, on_parameter)
    reference.sgd_step(
        entries, knobs, GROUPS, EFFECTIVE, squares, scale, False, noise_on_parameter=on_parameter
    )


def as_reals(tensor: Tensor) -> NDArray[np.float64]:
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return np.array(tensor.double().numpy())


class Expected:
    """The oracle's copy of one entry."""

    def __init__(self, entry: SGDEntry) -> None:
        buffer = entry.momentum_buffer
        first = buffer is None or entry.step.item() == 0
        self.state = oracle.SGDState(
            as_reals(entry.param), None if first or buffer is None else as_reals(buffer)
        )

    def step(
        self,
        grad: Tensor,
        entry: SGDEntry,
        *,
        noise: float = 0.0,
        seed: int = SEED,
        step: int = STEP,
        gradient_scale: float = 1.0,
        target: str = "gradient",
    ) -> None:
        reals = as_reals(grad)
        elements = entry.offset + np.arange(reals.size).reshape(reals.shape)
        lr, momentum = EFFECTIVE[entry.group].tolist()
        _, _, dampening, options, weight_decay = GROUPS[entry.group].tolist()
        self.state = oracle.sgd_step(
            self.state.param,
            reals,
            self.state.momentum_buffer,
            lr=lr,
            momentum=0.0 if entry.momentum_buffer is None else momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=entry.momentum_buffer is not None and int(options) & 1 == 1,
            decoupled=int(options) & 2 == 2,
            maximize=entry.maximize,
            noise=noise,
            xi=oracle.noise(seed, entry.index, step, elements) if noise else None,
            gradient_scale=gradient_scale,
            noise_target=target,
        )

    def compare(self, entry: SGDEntry, name: str, param_name: str | None = None) -> None:
        assert_close(as_reals(entry.param), self.state.param, param_name or name)
        if entry.momentum_buffer is not None:
            assert_close(as_reals(entry.momentum_buffer), self.state.momentum_buffer, name)


def against_the_oracle(
    path: str,
    entries: list[SGDEntry],
    name: str,
    *,
    steps: int = 5,
    noise: float = SIGMA,
    gradient_scale: float | None = None,
    param_name: str | None = None,
    target: str = "gradient",
) -> None:
    """So many steps of both on new gradients each; the oracle never sees what the sweep wrote."""
    expected = [Expected(entry) for entry in entries]
    start = [entry.param.clone() for entry in entries]
    for t in range(STEP, STEP + steps):
        for entry, twin in zip(entries, expected, strict=True):
            entry.grad.copy_(0.3 * torch.randn(entry.grad.shape) + 0.1)
            twin.step(
                entry.grad,
                entry,
                noise=noise,
                step=t,
                gradient_scale=1.0 if gradient_scale is None else gradient_scale,
                target=target,
            )
        sweep(path, entries, block_of(noise, step=t), gradient_scale, target == "parameter")
    for entry, twin, before in zip(entries, expected, start, strict=True):
        twin.compare(entry, name, param_name)
        # One number of half precision may well round to where it was.
        assert entry.param.numel() <= 1 or not torch.equal(entry.param, before)
