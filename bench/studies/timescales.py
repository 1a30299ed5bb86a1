"""Does the loop hunt? Sign changes and the spectrum of α's moves, over the cadence K (§2, §3).

Hunting is a cycle: α rises, the loss answers late, α falls, and so on. It shows as a line in the
spectrum of the moves. Fisher's test says whether the largest line is more than chance: the share
that it has of the whole power, over the share that white noise exceeds once in a thousand times
(once in a hundred would be met by chance in a table of so many rows).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adaptiverl import Control
from bench.studies.scenarios import Columns, watched
from bench.tasks import TASKS, Task

Floats = NDArray[np.float64]
CADENCES = (1, 2, 5, 10, 20, 50)
CHANCE = 0.001
LOWEST = 1e-6
"""α's lower bound over its start: far away, for a knob at its bound does not move."""


class Setting(NamedTuple):
    name: str
    task: Task
    lr: float
    seeds: tuple[int, ...]


SETTINGS = (
    Setting("quadratic, every batch alike", TASKS["quadratic"], 1e-2, (0, 1, 2)),
    Setting("quadratic, noisy batches", TASKS["quadratic-noisy"], 1e-2, (0, 1)),
    Setting("digits, 10 % wrong labels", TASKS["labels-wrong-10"], 1e-3, (0, 1)),
    Setting("characters", TASKS["code-long"], 1e-3, (0,)),
)


class Watched(NamedTuple):
    """How α moved at one cadence: medians over the seeds of a setting.

    Sign changes of what the law adds to log α are per 100 updates and per 100 steps; the
    spectrum's largest line is over what chance explains, its period in steps; log α wanders within
    500 steps, and not at all (NaN) where it lay at its lower bound.
    """

    setting: str
    every: int
    changes: float
    changes_per_step: float
    line: float
    period: float
    wander: float


def moves(trace: Columns, control: Control) -> Floats:
    """What the law adds to log α at each update, before the change cap and the bounds."""
    up = control.gain_lr_reward * np.array(trace["reward_direction"])
    down = control.gain_lr_loss * np.maximum(trace["loss_direction"], 0)
    return up - down


def sign_changes(series: Floats) -> float:
    """Of 100 neighbours, how many have opposite signs."""
    signs = np.sign(series)
    return 100 * float(np.mean(signs[1:] * signs[:-1] < 0))


def spectrum(series: Floats) -> Floats:
    """Power at 1, 2, … cycles over the whole series; a straight trend is taken out."""
    time = np.arange(len(series))
    detrended = series - np.polyval(np.polyfit(time, series, 1), time)
    return np.abs(np.fft.rfft(detrended))[1:] ** 2


def line_over_chance(power: Floats) -> float:
    """Fisher's g over its critical value at `CHANCE`; 0 where nothing moves."""
    count = len(power)
    critical = 1 - (CHANCE / count) ** (1 / (count - 1))
    total = float(power.sum())
    return float(power.max()) / total / critical if total > 0 else 0.0


def wander(log_lr: Floats, every: int, stretch: int = 500) -> float:
    """Standard deviation of log α within stretches of so many steps, averaged over them."""
    size = max(2, stretch // every)
    # A shorter course is one stretch.
    starts = range(0, max(1, len(log_lr) - size + 1), size)
    return float(np.mean([log_lr[i : i + size].std() for i in starts]))


def watch(setting: Setting, every: int) -> Watched:
    """Train with every seed at the cadence K = ``every``; look at the second half of each run."""
    control = Control(every=every, lr_bounds=(setting.lr * LOWEST, setting.lr * 100))
    half = max(8, setting.task.steps // 2 // every)
    rows = []
    for seed in setting.seeds:
        trace, _ = watched(setting.task, setting.lr, seed, control)
        series = moves(trace, control)[-half:]
        power = spectrum(series)
        period = len(series) * every / (1 + int(power.argmax()))
        log_lr = np.log(np.array(trace["lr"]) / setting.lr)[-half:]
        pinned = np.mean(log_lr < math.log(LOWEST) + 0.5) > 0.5
        spread = math.nan if pinned else wander(log_lr, every)
        rows.append((sign_changes(series), line_over_chance(power), period, spread))
    changes, line, period, spread = (float(x) for x in np.median(np.array(rows), axis=0))
    name = setting.name
    return Watched(name, every, changes, changes / every, line, period, spread)


def hunts(row: Watched) -> bool:
    return row.line > 1
