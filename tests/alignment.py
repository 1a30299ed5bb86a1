"""Optimizers under the alignment law: the sums their controller was told, and the oracle's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from numpy.typing import NDArray
from tolerances import assert_close
from torch import Tensor, nn

from adaptiverl import AdaptiveAdamW, AdaptiveLion, AdaptiveSGD, Control

Make = Callable[[list[nn.Parameter]], Any]

ALIGNED = Control(law="alignment", noise_bounds=(0.0, 0.0))
NOISY = Control(law="alignment", noise_bounds=(0.3, 0.3))
ON_PARAMETER = Control(law="alignment", noise_bounds=(0.3, 0.3), noise_target="parameter")
LOUD: dict[str, Any] = {"control": NOISY, "max_grad_norm": 0.7}

ADAMW: dict[str, dict[str, Any]] = {
    "plain": {},
    "decay": {"weight_decay": 0.3, "eps": 1e-3},
    "amsgrad, maximize": {"amsgrad": True, "maximize": True, "betas": (0.5, 0.9)},
    "clipping": {"max_grad_norm": 0.7},
    "noise": {"control": NOISY},
    "noise on the parameter": {"control": ON_PARAMETER, "weight_decay": 0.3},
    "noise and clipping": {**LOUD, "maximize": True},
}
SGD: dict[str, dict[str, Any]] = {
    "momentum": {"momentum": 0.9, "dampening": 0.4},
    "nesterov": {"momentum": 0.8, "nesterov": True, "weight_decay": 0.2, "maximize": True},
    "decoupled": {"momentum": 0.8, "weight_decay": 0.2, "decoupled_weight_decay": True},
    "noise and clipping": {"momentum": 0.9, "weight_decay": 0.2, **LOUD},
}
LION: dict[str, dict[str, Any]] = {
    "lion": {"weight_decay": 0.3, "maximize": True},
    "noise and clipping": LOUD,
}
CHOICES = {AdaptiveAdamW: ADAMW, AdaptiveSGD: SGD, AdaptiveLion: LION}
OPTIMIZERS = [(algorithm, name) for algorithm, names in CHOICES.items() for name in names]


def make_optimizer(algorithm: Any, name: str, params: Any) -> Any:
    options = CHOICES[algorithm][name]
    return algorithm(params, **{"lr": 0.02, "control": ALIGNED, "seed": 5} | options)


SIZES = (0, 1, 15, 16, 17, 1023, 1024, 1025, 5000)


def parameters(*shapes: int | tuple[int, ...], dtype: torch.dtype = torch.float32) -> Any:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


def put_gradients(params: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for param in params:
        # A drift beside what is random, for the sums to have a sign.
        grad = 0.5 * torch.randn(param.shape, generator=generator, dtype=torch.float64) + 0.2
        param.grad = torch.empty_like(param).copy_(grad)


def run(make: Make, params: list[nn.Parameter], steps: int = 4) -> Any:
    optimizer = make(params)
    for step in range(steps):
        put_gradients(params, step)
        optimizer.step(loss=3.0 - 0.1 * step)
    return optimizer


def fill_state(optimizer: Any) -> None:
    """Moments as in the middle of a training, the same every time."""
    generator = torch.Generator().manual_seed(3)
    for group in optimizer.param_groups:
        for param in group["params"]:
            state = optimizer.state[param]
            state["step"] = torch.tensor(3.0)
            for name in optimizer._algorithm.slots_of(group):
                values = 0.3 * torch.randn(param.shape, generator=generator) + 0.1
                state[name] = (values.square() if "sq" in name else values).to(param.dtype)


def one_step(algorithm: Any, name: str, sizes: tuple[int, ...]) -> Any:
    """An optimizer after one step from the middle of a training, the same every time."""
    params = parameters(*sizes)
    optimizer = make_optimizer(algorithm, name, params)
    fill_state(optimizer)
    put_gradients(params, 4)
    optimizer.step(loss=1.0)
    return optimizer


# What became of it


def alignment_of(optimizer: Any) -> list[float]:
    """Σ g·u, Σ g² and Σ u² as the controller has them after a step."""
    return optimizer._controller.alignment.tolist()


def sums_of(optimizer: Any) -> list[Tensor]:
    """A copy of what the last step left in every bucket, float64 [tensors, 3]."""
    return [bucket.sums.clone() for bucket in optimizer._round.plan._sorted]


def backends_of(optimizer: Any) -> list[str]:
    return [bucket.backend.name for bucket in optimizer._round.plan._sorted]


def expected_alignment(optimizer: Any, gradient_scale: float = 1.0) -> list[float]:
    """The oracle's three sums of the step that the optimizer is about to take."""
    total = np.zeros(3)
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param.grad is not None:
                state = optimizer.state.get(param, {})
                total += _of_tensor(optimizer, group, param, state, gradient_scale)
    return total.tolist()


def _of_tensor(
    optimizer: Any, group: dict[str, Any], param: Tensor, state: Any, gradient_scale: float
) -> tuple[float, float, float]:
    options: dict[str, Any] = {"gradient_scale": gradient_scale, "maximize": group["maximize"]}
    kept = {name: as_reals(x) for name, x in state.items() if name != "step"}
    zeros, g = np.zeros_like(as_reals(param)), as_reals(param.grad)
    if isinstance(optimizer, AdaptiveAdamW):
        m, v = (kept.get(name, zeros) for name in ("exp_avg", "exp_avg_sq"))
        return oracle.alignment_sums(g, m, v, group["eps"], **options)
    sgd = isinstance(optimizer, AdaptiveSGD)
    decay = group["weight_decay"] if sgd and not group["decoupled_weight_decay"] else 0.0
    buffer = kept.get("momentum_buffer" if sgd else "exp_avg")
    return oracle.sgd_alignment_sums(as_reals(param), g, buffer, decay, **options)


def as_reals(tensor: Any) -> NDArray[np.float64]:
    tensor = tensor.detach().resolve_conj()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return np.array(tensor.double().numpy())


def assert_sums_close(actual: Sequence[float], expected: Sequence[float], name: str) -> None:
    """Raise unless three sums agree; that of g·u cancels, so its errors go by the other two."""
    gu, gg, uu = (float(x) for x in expected)
    assert_close(actual[0], gu, name, scale=(gg * uu) ** 0.5)
    assert_close(actual[1], gg, name)
    assert_close(actual[2], uu, name)


def assert_agrees_with_the_compiled_sweep(
    algorithm: Any, name: str, backend: str, choose: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """Raise unless a step's sums are the compiled sweep's under the backend that `choose` sets."""
    compiled = one_step(algorithm, name, SIZES)
    assert backends_of(compiled) == ["cpu"]
    with pytest.MonkeyPatch.context() as patch:
        choose(patch)
        other = one_step(algorithm, name, SIZES)
    assert backends_of(other) == [backend]
    for row, expected in zip(sums_of(other)[0], sums_of(compiled)[0], strict=True):
        assert_sums_close(row.tolist(), expected.tolist(), "statistics")
    assert_sums_close(alignment_of(other), alignment_of(compiled), "statistics")
