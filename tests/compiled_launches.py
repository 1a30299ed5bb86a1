"""Whole optimizers through Triton's own launcher, compiled for a GPU that is not there.

``python tests/compiled_launches.py`` prints, as JSON, what was compiled and launched in each
scenario. Everything is real (the launchers, Triton's specialisation of arguments, the compiler) but
the driver, which loads nothing and runs nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.compiler import CompiledKernel
from triton.runtime import driver

from adaptiverl import AdaptiveAdamW, AdaptiveSGD, Control, backends

NOISY = Control(noise_bounds=(0.05, 0.05))
LOADED: list[str] = []
LAUNCHED: list[tuple[str, int]] = []


class Launcher:
    """Notes a launch; the arguments are those of triton.backends.nvidia's."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.name = source.fn.__name__
        self.parameters = len(source.fn.arg_names)

    def __call__(self, x: int, y: int, z: int, stream: int, function: int, *rest: Any) -> None:
        _, _, _, _, *arguments = rest
        assert len(arguments) == self.parameters, (self.name, arguments)
        assert (y, z) == (1, 1)
        LAUNCHED.append((self.name, x))


class NoDriver(DriverBase):
    """The interface that a launch needs, of a device of compute capability 9.0."""

    def __init__(self) -> None:
        self.launcher_cls = Launcher
        self.utils = SimpleNamespace(
            load_binary=self.load, get_device_properties=lambda _: {"max_shared_mem": 232448}
        )
        self.get_current_stream = lambda device: 0
        self.get_current_device = lambda: 0

    def load(self, name: str, binary: bytes, shared: int, device: int) -> tuple[Any, ...]:
        """A module, a function, registers, spills, threads."""
        assert binary[:4] == b"\x7fELF"
        LOADED.append(name)
        return 1, 1, 32, 0, 1024

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    @staticmethod
    def is_active() -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Callable[..., Any]:
        raise NotImplementedError


def parameters(*sizes: int, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(n, dtype=dtype)) for n in sizes]


def scenario(make: Callable[[list[nn.Parameter]], Any], *kinds: list[nn.Parameter]) -> Any:
    """Three steps each with parameters of several kinds, gradients moving all the time."""
    before = len(LOADED)
    steps = []
    for params in kinds:
        optimizer = make(params)
        for step in range(3):
            for p in params:
                # At a multiple of 16 bytes, and past it.
                p.grad = torch.ones(p.numel() + step, dtype=p.dtype)[step:].view_as(p)
            LAUNCHED.clear()
            optimizer.step(loss=torch.tensor(1.0 + step))
            steps.append(list(LAUNCHED))
    return {"compiled": LOADED[before:], "steps": steps}


def main() -> None:
    driver.set_active(NoDriver())  # type: ignore[no-untyped-call]
    real = backends.resolve
    backends.resolve = lambda _, *dtypes: real("cuda", *dtypes)  # type: ignore[assignment]
    assert CompiledKernel is not None
    large = parameters(1, 16, 40_000, 1000)
    half = parameters(3, 5, dtype=torch.bfloat16)
    json.dump(
        {
            "all": scenario(
                lambda p: AdaptiveAdamW(p, 0.01, control=NOISY, max_grad_norm=1.0),
                parameters(1),
                large,
                parameters(*[4] * 16),
            ),
            "again": scenario(
                lambda p: AdaptiveAdamW(p, 1.0, control=NOISY, max_grad_norm=2.0, seed=1),
                parameters(1),
                parameters(*[4] * 16),
            ),
            "mixed": scenario(
                lambda p: AdaptiveAdamW(p, 0.01, control=NOISY, max_grad_norm=1.0),
                [*parameters(7), *half],
            ),
            "plain": scenario(
                lambda p: AdaptiveAdamW(p, 0.01, control=Control(noise_bounds=(0.0, 0.0))),
                parameters(16, 100),
            ),
            "sgd": scenario(lambda p: AdaptiveSGD(p, 0.01, 0.9), parameters(16, 100)),
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
