"""Does the loop hunt? Sign changes and the spectrum of α's moves, over the cadence K (§2, §3).

Hunting is a cycle: α rises, the loss answers late, α falls, and so on. It shows as a line in the
spectrum of the moves. Fisher's test says whether the largest line is more than chance: the share
that it has of the whole power, over the share that white noise exceeds once in a thousand times
(once in a hundred would be met by chance in a table of so many rows).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adaptiverl import AdaptiveAdamW, Control
from bench.scenarios.tasks import Characters, Digits, Task, losses_of

CADENCES = (1, 2, 5, 10, 20, 50)
CHANCE = 0.001
LOWEST = 1e-6
"""α's lower bound over its start: far away, for a knob at its bound does not move."""


class Quadratic:
    """½·mean(h·(x − noise·ξ)²) in 200 dimensions, h from 0.01 to 1; ξ is standard normal.

    Args:
        seed: Of the start and of ξ.
        noise: 0: every batch is the same, and the loop between α and the loss is all there is.
    """

    def __init__(self, seed: int, noise: float) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.curvature, self.noise = torch.logspace(-2, 0, 200), noise
        self.model = nn.ParameterList([3 * torch.randn(200, generator=self.generator)])

    def loss(self, disturbed: bool = False) -> Tensor:
        """Return the next batch's loss."""
        x = self.model[0]
        target = self.noise * torch.randn(x.shape, generator=self.generator)
        return (0.5 * self.curvature * (x - target) ** 2).mean()


@dataclass(frozen=True)
class Setting:
    """A task to watch: its name, how to make it, its rate, its length and its seeds."""

    name: str
    make: Callable[[int], Task]
    lr: float
    steps: int
    seeds: tuple[int, ...]


SETTINGS = (
    Setting(
        "quadratic, every batch alike", lambda seed: Quadratic(seed, 0.0), 1e-2, 8000, (0, 1, 2)
    ),
    Setting("quadratic, noisy batches", lambda seed: Quadratic(seed, 0.3), 1e-2, 8000, (0, 1)),
    Setting("digits, 10 % wrong labels", lambda seed: Digits(seed, wrong=0.1), 1e-3, 8000, (0, 1)),
    Setting("characters", Characters, 1e-3, 2000, (0,)),
)


@dataclass(frozen=True)
class Watched:
    """How α moved, over one cadence and the seeds of a setting.

    Attributes:
        setting: Its name.
        every: K.
        changes: Sign changes per 100 updates in what the law adds to log α.
        changes_per_step: The same per 100 optimizer steps.
        line: The spectrum's largest line over what chance explains; above 1 it hunts. The median
            over the seeds.
        period: Of that line, in optimizer steps.
        wander: Standard deviation of log α within stretches of 500 steps; NaN where α spent most
            of its time at its lower bound, and could not.
        log_lr: log α/α₀ at the updates of the second half, of the first seed.
    """

    setting: str
    every: int
    changes: float
    changes_per_step: float
    line: float
    period: float
    wander: float
    log_lr: list[float]


def moves(trace: dict[str, Tensor], control: Control) -> NDArray[np.float64]:
    """What the law adds to log α at each update, before the change cap and the bounds."""
    up = control.gain_lr_reward * trace["reward_direction"]
    down = control.gain_lr_loss * trace["loss_direction"].clamp(min=0)
    return (up - down).numpy()


def sign_changes(series: NDArray[np.float64]) -> float:
    """Of 100 neighbours, how many have opposite signs."""
    signs = np.sign(series)
    return 100 * float(np.mean(signs[1:] * signs[:-1] < 0))


def spectrum(series: NDArray[np.float64]) -> NDArray[np.float64]:
    """Power at 1, 2, … cycles over the whole series; a straight trend is taken out."""
    time = np.arange(len(series))
    detrended = series - np.polyval(np.polyfit(time, series, 1), time)
    return np.abs(np.fft.rfft(detrended))[1:] ** 2


def line_over_chance(power: NDArray[np.float64]) -> float:
    """Fisher's g over its critical value at `CHANCE`; 0 where nothing moves."""
    count = len(power)
    critical = 1 - (CHANCE / count) ** (1 / (count - 1))
    total = float(power.sum())
    return float(power.max()) / total / critical if total > 0 else 0.0


def wander(log_lr: NDArray[np.float64], every: int, stretch: int = 500) -> float:
    """Standard deviation of log α within stretches of so many steps, averaged over them."""
    size = max(2, stretch // every)
    # A shorter course is one stretch.
    starts = range(0, max(1, len(log_lr) - size + 1), size)
    return float(np.mean([log_lr[i : i + size].std() for i in starts]))


def watch(setting: Setting, every: int, gain: float = 1.0) -> Watched:
    """Train with every seed; look at the second half of each run.

    Args:
        setting: What to train.
        every: K.
        gain: α's gains are multiplied by this.
    """
    base = Control()
    control = Control(
        every=every,
        gain_lr_reward=gain * base.gain_lr_reward,
        gain_lr_loss=gain * base.gain_lr_loss,
        lr_bounds=(setting.lr * LOWEST, setting.lr * 100),
    )
    rows, courses = [], []
    for seed in setting.seeds:
        task = setting.make(seed)
        optimizer = AdaptiveAdamW(
            task.model.parameters(), lr=setting.lr, control=control, seed=seed
        )
        losses_of(task, optimizer, setting.steps)
        trace = dict(optimizer.trace())
        half = max(8, setting.steps // 2 // every)
        series = moves(trace, control)[-half:]
        power = spectrum(series)
        period = len(series) * every / (1 + int(power.argmax()))
        log_lr = (trace["lr"] / setting.lr).log().numpy()[-half:]
        pinned = np.mean(log_lr < math.log(LOWEST) + 0.5) > 0.5
        spread = math.nan if pinned else wander(log_lr, every)
        rows.append((sign_changes(series), line_over_chance(power), period, spread))
        courses.append(log_lr.tolist())
    changes, line, period, spread = (float(x) for x in np.median(np.array(rows), axis=0))
    name = setting.name
    return Watched(name, every, changes, changes / every, line, period, spread, courses[0])


def hunts(row: Watched) -> bool:
    """Whether the largest line is more than chance."""
    return row.line > 1
