"""What the tests of Hugging Face's Trainer, Accelerate and Lightning share.

`huggingface_runs`, `accelerate_runs` and `lightning_runs` each make a run of their framework from a
`How`; the tests over all of them see a `Run`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from host_waits import HostWaits
from tiny_models import Bigram, overflow
from torch import Tensor, nn

from adaptiverl import AdaptiveAdamW, Control

QUICK = Control(mode="modulate", every=2, noise_bounds=(0.01, 0.1))
EPOCHWISE = Control(mode="modulate", every=None, beta_loss=0.3, beta_reward=0.3, beta_variance=0.3)
KNOBS = {
    "adaptive/lr": "lr",
    "adaptive/alpha": "alpha",
    "adaptive/momentum": "momentum",
    "adaptive/noise": "noise",
}


@dataclass(frozen=True)
class How:
    """A run, in no framework's words.

    Of the training data four sequences make a batch. A scaler scales as for float16, which by
    themselves the frameworks do only where there is a GPU. After each epoch there is a validation
    and a checkpoint. `waits` is entered from the first step to the last, where otherwise the knobs
    are read at each step.
    """

    control: Control = QUICK
    model: Callable[[], nn.Module] = Bigram
    size: int = 24
    epochs: int = 1
    accumulate: int = 1
    bf16: bool = False
    scaler: bool = False
    overflows: Collection[int] = ()
    optimizer: dict[str, Any] = field(default_factory=dict)
    clip: float | None = None
    scheduled: bool = False
    validated: bool = False
    callback: dict[str, Any] = field(default_factory=dict)
    log_every: int = 2
    events: bool = False
    saves: bool = False
    waits: HostWaits | None = None


class Run:
    """A run that can be started, what every step left, and what the framework itself logged."""

    optimizer: Any

    def __init__(self, how: How) -> None:
        self.how = how
        self.model = how.model()
        self.knobs: list[dict[str, float]] = []
        self.shown: list[float] = []
        self.evaluations: list[float] = []
        self.seen: list[Tensor] = []
        self.model.register_forward_hook(self._see)
        overflow(self.model, how.overflows)

    def make_optimizer(self, params: Any) -> AdaptiveAdamW:
        return AdaptiveAdamW(params, **self.keywords)

    @property
    def keywords(self) -> dict[str, Any]:
        return {"lr": 1e-2, "control": self.how.control, **self.how.optimizer}

    @property
    def losses(self) -> list[float]:
        """Every micro-batch's, as the model returned it."""
        return [loss.item() for loss in self.seen]

    @property
    def heard(self) -> list[float]:
        return [knobs["loss"] for knobs in self.knobs]

    def listen(self, *_: Any) -> None:
        """Keep what the optimizer knows after a step."""
        if self.how.waits is None and isinstance(self.optimizer, AdaptiveAdamW):
            self.knobs.append(self.optimizer.knobs())

    def begin(self) -> None:
        if self.how.waits is not None:
            self.how.waits.__enter__()

    def end(self) -> None:
        if self.how.waits is not None:
            self.seen[-1].item()
            self.how.waits.__exit__(None, None, None)

    def _see(self, model: nn.Module, inputs: Any, outputs: Any) -> None:
        if model.training:
            self.seen.append(outputs["loss"].detach())


def scheduler_of(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, total_iters=10)


def said(run: Callable[[], object]) -> list[str]:
    """The warnings of a run that are the package's."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(w.message) for w in caught if "Control(" in str(w.message)]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's scalars by tag."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is not installed",
    )
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}
