"""The clock: every contender once per round, in an order that is shuffled anew for each round."""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from bench.step import machine
from bench.step.contenders import CONTENDERS, Stepper
from bench.step.shapes import MODELS
from bench.step.workspace import Workspace

WARMUP_ROUNDS = 2


@dataclass(frozen=True)
class Measurement:
    """What one run measured.

    Attributes:
        parameters: Key of `MODELS`.
        device: What the step ran on.
        elements: Numbers in all parameters together.
        tensors: How many parameters.
        seconds: By contender, the seconds of its step in each round.
        sigma: By contender, the noise in effect at the end.
        load: The machine's load average when it began.
    """

    parameters: str
    device: torch.device
    elements: int
    tensors: int
    seconds: dict[str, list[float]]
    sigma: dict[str, float]
    load: float

    @property
    def rounds(self) -> int:
        """Steps measured of each contender."""
        return len(next(iter(self.seconds.values())))


def measure(parameters: str, rounds: int, device: torch.device) -> Measurement:
    """Build every contender on shared memory and time `rounds` steps of each.

    Args:
        parameters: Key of `MODELS`.
        rounds: At least 2.
        device: CPU or CUDA.

    Raises:
        ValueError: Unknown parameters, or too few rounds.
        RuntimeError: A contender drew noise that it should not, or none that it should.
    """
    if parameters not in MODELS:
        raise ValueError(f"parameters must be one of {', '.join(MODELS)}, got {parameters!r}")
    if rounds < 2:
        raise ValueError(f"rounds must be 2 or more, got {rounds}: one shows no spread")
    load = machine.load()
    workspace = Workspace(MODELS[parameters].shapes, device)
    steppers = {name: contender.build(workspace) for name, contender in CONTENDERS.items()}
    seconds = time_rounds(workspace, steppers, rounds)
    return Measurement(
        parameters=parameters,
        device=device,
        elements=workspace.elements,
        tensors=len(workspace.params),
        seconds=seconds,
        sigma=_checked_noise(steppers),
        load=load,
    )


def time_rounds(
    workspace: Workspace, steppers: Mapping[str, Stepper], rounds: int
) -> dict[str, list[float]]:
    """Seconds per step, by contender and round; the warm-up's are dropped."""
    seconds: dict[str, list[float]] = {name: [] for name in steppers}
    order = list(steppers)
    shuffle = random.Random(0).shuffle
    collecting = gc.isenabled()
    gc.disable()
    try:
        for number in range(-WARMUP_ROUNDS, rounds):
            shuffle(order)
            for name in order:
                elapsed = _time_step(workspace, steppers[name])
                if number >= 0:
                    seconds[name].append(elapsed)
    finally:
        if collecting:
            gc.enable()
    return seconds


def _time_step(workspace: Workspace, stepper: Stepper) -> float:
    workspace.restore_gradients()
    workspace.synchronize()
    start = time.perf_counter()
    stepper.step()
    workspace.synchronize()
    return time.perf_counter() - start


def _checked_noise(steppers: Mapping[str, Stepper]) -> dict[str, float]:
    sigma = {name: stepper.noise() for name, stepper in steppers.items()}
    for name, value in sigma.items():
        expected = CONTENDERS[name].sigma
        if not math.isclose(value, expected, rel_tol=1e-9):
            raise RuntimeError(
                f"{name!r} ended with σ = {value!r}, expected {expected!r}: its times are of "
                "another step than its name says"
            )
    return sigma
