"""Small training runs that the drop-in tests share; what is drawn depends on the step alone."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adaptiverl import Control
from adaptiverl.optimizer import AdaptiveOptimizer

BUSY = Control(
    every=2, noise_bounds=(0.0, 0.1), plateau_trend=(10.0, 1.0), plateau_variance=(10.0, 1.0)
)
"""Moves every knob early: P is close to 1, so σ leaves its floor at once."""

ON_CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ],
)
DEVICES = ["cpu", ON_CUDA]
CAPTURABLE_WARNING = pytest.mark.filterwarnings(
    "ignore:This instance was constructed with capturable=True"
)
"""torch's hint that capturable=True costs time where nothing is captured: the tests mean to."""

Params = list[nn.Parameter]


def parameters(
    *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0
) -> Params:
    """Parameters drawn on the CPU, so that every device starts from the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [nn.Parameter(x.to(device, dtype)) for x in drawn]


def clones(params: Iterable[Tensor]) -> Params:
    """Parameters of the same numbers, layout included."""
    return [nn.Parameter(p.detach().clone(memory_format=torch.preserve_format)) for p in params]


def quadratic(params: Sequence[Tensor], step: int) -> Tensor:
    """A quadratic whose minimum jumps about with the step."""
    generator = torch.Generator().manual_seed(step)
    loss = torch.zeros((), device=params[0].device)
    for param in params:
        target = torch.randn(param.shape, generator=generator).to(param.device, param.dtype)
        loss = loss + (param - 0.1 * target).square().mean().float()
    return loss


def descend(
    optimizer: torch.optim.Optimizer,
    params: Params,
    steps: int,
    *,
    first: int = 0,
    after: Callable[[int], object] | None = None,
) -> None:
    """Train on `quadratic`; `after` is called with each step's number, as a scheduler is."""
    for step in range(first, first + steps):
        loss = quadratic(params, step)
        optimizer.zero_grad()
        loss.backward()
        if isinstance(optimizer, AdaptiveOptimizer):
            optimizer.observe(loss)
        optimizer.step()
        if after is not None:
            after(step)


def draw_gradients(params: Params, step: int, absent: Iterable[int] = ()) -> None:
    """Gradients of a step; those of the parameters in `absent` are None."""
    generator = torch.Generator().manual_seed(1000 + step)
    for i, param in enumerate(params):
        grad = torch.randn(param.shape, generator=generator, dtype=torch.float64)
        param.grad = None if i in absent else grad.to(param.device, param.dtype)


def saved_states(optimizer: torch.optim.Optimizer) -> dict[Tensor, dict[str, Tensor]]:
    """Every parameter's state as checkpoints have it: with AdamW's product of momenta."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    saved = optimizer.state_dict()["state"]
    return {p: saved[i] for i, p in enumerate(params) if i in saved}


def snapshot(optimizer: torch.optim.Optimizer, params: Sequence[Tensor]) -> Any:
    """Everything a run has come to, cut loose from it."""
    return copy.deepcopy((optimizer.state_dict(), values(params)))


def through_a_file(content: Any, map_location: str | None = None) -> Any:
    """Saved and read back as a careful user reads: tensors and plain values only."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True, map_location=map_location)


def values(params: Iterable[Tensor]) -> list[Tensor]:
    return [p.detach().clone() for p in params]


def assert_same(left: Any, right: Any) -> None:
    """Bit equality of nested containers of tensors and numbers."""
    torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)


def assert_differ(left: Any, right: Any) -> None:
    with pytest.raises(AssertionError):
        assert_same(left, right)
