"""Does the loop hunt? The spectrum of α's moves, over the cadence K (method.md#cadence).

Hunting is a cycle: α rises, the loss answers late, α falls, and so on. It shows as a line in the
spectrum of the moves; Fisher's test says whether the largest line is more than chance.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adaptiverl import Control
from bench.studies.scenarios import Columns, watched
from bench.tasks import TASKS, Task

Floats = NDArray[np.float64]
CADENCES = (1, 2, 5, 10, 20, 50)
CHANCE = 0.001
LOWEST = 1e-6  # α's lower bound over its start: far away, for a knob at its bound does not move


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
    setting: str
    every: int  # K
    line: float  # the spectrum's largest over what chance explains, median over the seeds
    period: float  # of that line, in steps


def moves(trace: Columns, control: Control) -> Floats:
    up = control.gain_lr_reward * np.array(trace["reward_direction"])
    down = control.gain_lr_loss * np.maximum(trace["loss_direction"], 0)
    return up - down


def spectrum(series: Floats) -> Floats:
    time = np.arange(len(series))
    detrended = series - np.polyval(np.polyfit(time, series, 1), time)
    return np.abs(np.fft.rfft(detrended))[1:] ** 2


def line_over_chance(power: Floats) -> float:
    """Fisher's g over its critical value at `CHANCE`; 0 where nothing moves."""
    count = len(power)
    critical = 1 - (CHANCE / count) ** (1 / (count - 1))
    total = float(power.sum())
    return float(power.max()) / total / critical if total > 0 else 0.0


def watch(setting: Setting, every: int) -> Watched:
    """Train with every seed at the cadence K = ``every``; look at the second half of each run."""
    control = Control(every=every, lr_bounds=(setting.lr * LOWEST, setting.lr * 100))
    half = max(8, setting.task.steps // 2 // every)
    rows = []
    for seed in setting.seeds:
        series = moves(watched(setting.task, setting.lr, seed, control)[0], control)[-half:]
        power = spectrum(series)
        rows.append((line_over_chance(power), len(series) * every / (1 + int(power.argmax()))))
    line, period = (float(x) for x in np.median(np.array(rows), axis=0))
    return Watched(setting.name, every, line, period)


def hunts(row: Watched) -> bool:
    return row.line > 1
