"""What a method is: a way to train from a given starting rate, told how long the run will be."""

import importlib.util
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

COOLDOWN = 0.4

Decay = Literal["none", "cosine", "linear", "cooldown"]
Schedule = Callable[[int], float]
Parameters = Sequence[nn.Parameter]


@dataclass
class Stepper:
    """A method at work on one model: an optimizer, and a rate for every step."""

    optimizer: Any  # any of torch's kind
    schedule: Schedule | None = None  # maps the number of steps taken to the rate of the next
    taken: int = field(init=False, default=0)

    def step(self, loss: Tensor) -> None:
        """Use and clear the gradients that ``loss`` left."""
        if self.schedule is not None:
            set_rate(self.optimizer, self.schedule(self.taken))
        self.show(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.taken += 1

    def show(self, loss: Tensor) -> None:
        """Tell the optimizer the loss before its step; most are not told."""

    @contextmanager
    def judged(self) -> Iterator[None]:
        """The parameters are as they are to be judged meanwhile, and then as they were."""
        yield

    def finish(self) -> None:
        """Leave the parameters as they are to be judged."""


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A way to train. The fields in its ``repr`` are its definition."""

    is_ours: ClassVar[bool] = False  # whether it depends on this project's code

    name: str  # on the command line and in the rows
    title: str = field(default="", repr=False)  # for people
    betas: tuple[float, float] = (0.9, 0.999)  # of the moments
    weight_decay: float = 1e-2  # decoupled, as in AdamW
    warm_up: float = 0.05  # share of the run over which the rate rises linearly; one step at least
    has_horizon: bool = False  # what it does, warm-up apart, depends on the steps it is told
    fixed_rate: float | None = None  # the only rate it starts from; None: whatever it is told
    package: str = field(default="", repr=False)  # what has to be installed for it

    def missing(self) -> str | None:
        """Why this method cannot run here, with what would help; ``None`` where it can."""
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"it needs {self.package} from PyPI, which requirements.txt installs"
        return None

    @abstractmethod
    def start(self, parameters: Parameters, rate: float, horizon: int, seed: int) -> Stepper:
        """Make the optimizer of one run."""

    def shared(self) -> dict[str, Any]:
        return {"betas": self.betas, "weight_decay": self.weight_decay}

    def warm_up_steps(self, horizon: int) -> int:
        """How long the rate rises at the start: 0 without a warm-up, else 1 at least."""
        return max(1, round(self.warm_up * horizon)) if self.warm_up else 0

    def schedule(self, rate: float, horizon: int, decay: Decay) -> Schedule:
        """The rate of every step: a warm-up to ``rate``, then a decay to zero at ``horizon``."""
        rise = self.warm_up_steps(horizon)
        rest = max(1, horizon - rise)

        def factor(taken: int) -> float:
            if taken < rise:
                return (taken + 1) / rise
            left = min(1.0, max(0.0, (horizon - taken) / rest))
            if decay == "cosine":
                return 0.5 * (1 - math.cos(math.pi * left))
            if decay == "cooldown":
                return min(1.0, max(0.0, (horizon - taken) / (COOLDOWN * horizon)))
            return left if decay == "linear" else 1.0

        return lambda taken: rate * factor(taken)


@dataclass(frozen=True, kw_only=True)
class AdamW(Method):
    """torch's, at a rate that is a function of the step: what most people use."""

    decay: Decay = "none"  # how the rate comes down after the warm-up
    fused: bool | None = True  # torch's fastest form; None: whatever torch takes

    def start(self, parameters: Parameters, rate: float, horizon: int, seed: int) -> Stepper:
        return Stepper(self.optimizer(parameters, rate), self.schedule(rate, horizon, self.decay))

    def optimizer(self, parameters: Parameters, rate: float) -> torch.optim.AdamW:
        return torch.optim.AdamW(parameters, lr=rate, fused=self.fused, **self.shared())


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
