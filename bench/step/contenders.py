"""Who is compared: torch's AdamW in three implementations, stock noise on top of it, and ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from adaptiverl import AdaptiveAdamW, Control
from bench.step.stock_noise import PlainNoise, TunedNoise
from bench.step.workspace import Workspace

LR, BETAS, EPS, WEIGHT_DECAY = 1e-4, (0.9, 0.999), 1e-8, 1e-2
SIGMA = 0.01
STEADY_NOISE = Control(noise_bounds=(SIGMA, SIGMA))
"""The controller on, σ held at its lower bound: it is drawn at every step."""
ALIGNED = Control(law="alignment", acquire_from=LR, lr_bounds=(LR, LR))
"""The alignment law at work, its search confined to the rate that everybody has."""
CLIP_SHARE = 0.5
"""Of the gradients' norm: clipping always has something to do."""


class Noise(Protocol):
    """Adds σ·RMS(g)·ξ to every gradient, in place."""

    def __call__(self, gradients: list[Tensor]) -> None:
        """To all of these."""
        ...


class Stepper(Protocol):
    """One contender at work."""

    def step(self) -> None:
        """What is timed."""
        ...

    def noise(self) -> float:
        """σ in effect; waits for the device."""
        ...


class TorchAdamW:
    """`torch.optim.AdamW`, with stock clipping and noise before it if wanted."""

    def __init__(
        self,
        workspace: Workspace,
        *,
        foreach: bool = False,
        fused: bool = False,
        noise: Callable[[list[Tensor], float], Noise] | None = None,
        clip: bool = False,
    ) -> None:
        self._workspace = workspace
        self._optimizer = torch.optim.AdamW(
            workspace.params, LR, BETAS, EPS, WEIGHT_DECAY, foreach=foreach, fused=fused
        )
        workspace.lend_moments(self._optimizer, workspace.device if fused else torch.device("cpu"))
        self._add_noise = None if noise is None else noise(workspace.gradients, SIGMA)
        self._max_norm = workspace.gradient_norm * CLIP_SHARE if clip else None

    def step(self) -> None:
        """Clip, add noise, step: the order of decisions.md 18."""
        if self._max_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._workspace.params, self._max_norm)
        if self._add_noise is not None:
            self._add_noise(self._workspace.gradients)
        self._optimizer.step()

    def noise(self) -> float:
        """σ."""
        return 0.0 if self._add_noise is None else SIGMA


class Ours:
    """`AdaptiveAdamW` told a loss before every step."""

    def __init__(self, workspace: Workspace, control: Control, *, clip: bool = False) -> None:
        self._losses = workspace.losses
        self._optimizer = AdaptiveAdamW(
            workspace.params,
            LR,
            BETAS,
            EPS,
            WEIGHT_DECAY,
            control=control,
            max_grad_norm=workspace.gradient_norm * CLIP_SHARE if clip else None,
        )
        workspace.lend_moments(self._optimizer, workspace.device)

    def step(self) -> None:
        """As in a training loop."""
        self._optimizer.observe(next(self._losses))
        self._optimizer.step()

    def noise(self) -> float:
        """σ that the last step used."""
        return self._optimizer.knobs()["noise"]


class ControllerAlone:
    """What every step of ours pays for being steered: a step of an optimizer with no gradients.

    It observes, runs the controller, and finds nothing to sweep.
    """

    def __init__(self, workspace: Workspace) -> None:
        nothing = torch.nn.Parameter(torch.empty(0, device=workspace.device))
        self._losses = workspace.losses
        self._optimizer = AdaptiveAdamW([nothing], LR, BETAS, control=STEADY_NOISE)

    def step(self) -> None:
        """No parameter is touched."""
        self._optimizer.observe(next(self._losses))
        self._optimizer.step()

    def noise(self) -> float:
        """σ that was decided, though there is nothing to add it to."""
        return self._optimizer.knobs()["noise"]


@dataclass(frozen=True)
class Contender:
    """A row of the table.

    Attributes:
        build: Makes it on a workspace.
        sigma: The noise that it must draw; checked after the run.
        rivals: Whose work it does: the contenders that its time is divided by.
    """

    build: Callable[[Workspace], Stepper]
    sigma: float
    rivals: tuple[str, ...] = ()


FUSED = "torch AdamW, fused"
OURS = "AdaptiveAdamW"
PLAIN_NOISE = "torch AdamW, fused, with noise"
TUNED_NOISE = "torch AdamW, fused, with noise, tuned"
TUNED_NOISE_AND_CLIP = "torch AdamW, fused, with noise, tuned, and clipping"

CONTENDERS: dict[str, Contender] = {
    FUSED: Contender(lambda w: TorchAdamW(w, fused=True), 0),
    "torch AdamW, foreach": Contender(lambda w: TorchAdamW(w, foreach=True), 0),
    "torch AdamW, single-tensor": Contender(lambda w: TorchAdamW(w), 0),
    OURS: Contender(lambda w: Ours(w, Control()), 0, rivals=(FUSED,)),
    "AdaptiveAdamW, alignment law": Contender(lambda w: Ours(w, ALIGNED), 0, rivals=(OURS, FUSED)),
    PLAIN_NOISE: Contender(lambda w: TorchAdamW(w, fused=True, noise=PlainNoise), SIGMA),
    TUNED_NOISE: Contender(lambda w: TorchAdamW(w, fused=True, noise=TunedNoise), SIGMA),
    "AdaptiveAdamW with noise": Contender(
        lambda w: Ours(w, STEADY_NOISE), SIGMA, rivals=(PLAIN_NOISE, TUNED_NOISE)
    ),
    TUNED_NOISE_AND_CLIP: Contender(
        lambda w: TorchAdamW(w, fused=True, noise=TunedNoise, clip=True), SIGMA
    ),
    "AdaptiveAdamW with noise and clipping": Contender(
        lambda w: Ours(w, STEADY_NOISE, clip=True), SIGMA, rivals=(TUNED_NOISE_AND_CLIP,)
    ),
    "the controller alone": Contender(ControllerAlone, SIGMA),
}
"""In the table's order. Those without noise and clipping all do the same step (decisions.md 19)."""
