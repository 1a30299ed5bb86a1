"""The four situations of the specification's §7, and what it predicts for each, as measurements."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from adaptiverl import Control
from bench.methods import METHODS
from bench.run.cells import Cell, losses_of, train
from bench.tasks import TASKS, Task
from bench.tasks.characters import Disturbed

Columns = dict[str, list[float]]
FALL = 0.8  # early improvement lasts until this share of the loss's whole fall is done
SMOOTH = 25  # steps on either side over which a loss is averaged to find that point, after the fact
FELT = 200  # steps after a disturbance in which the knobs must have answered: four times 1/β
AT_FLOOR = 1.5
"""σ counts as being at its floor up to this multiple of it; σ_max is a thousand times as much."""


class Finding(NamedTuple):
    """One prediction of §7 against one run: the number it starts from and the one that decides."""

    claim: str
    before: float
    after: float
    holds: bool


@dataclass(frozen=True, kw_only=True)
class Scenario:
    name: str
    title: str
    situation: str
    prediction: str  # §7's line
    task: Task  # what is trained, for how long, and when it is disturbed
    lr: float = 1e-3  # the starting rate
    judge: Callable[[Columns, list[float], Scenario], list[Finding]]
    limit: str = ""  # why some of it is not expected here; empty where all of it is

    @property
    def disturbance(self) -> tuple[int, int]:
        """First and last disturbed step; the last is below the first where there is none."""
        return self.task.between if isinstance(self.task, Disturbed) else (0, -1)


@dataclass(frozen=True)
class Outcome:
    scenario: Scenario
    seed: int
    trace: Columns
    losses: list[float]
    findings: list[Finding]


def run(scenario: Scenario, seed: int, control: Control | None = None) -> Outcome:
    """Train once with `AdaptiveAdamW` as a user gets it, or with another `Control`, and judge."""
    trace, losses = watched(scenario.task, scenario.lr, seed, control or Control())
    return Outcome(scenario, seed, trace, losses, scenario.judge(trace, losses, scenario))


def watched(task: Task, lr: float, seed: int, control: Control) -> tuple[Columns, list[float]]:
    method = replace(METHODS["loss"], control=lambda horizon: control)  # type: ignore[call-arg]
    problem = task.start(seed)
    stepper = Cell(task, method, lr, seed).stepper(problem.objective.parameters())
    losses = losses_of(train(problem, stepper, range(task.steps)))
    return {name: column.tolist() for name, column in stepper.optimizer.trace().items()}, losses


def end_of_fall(losses: list[float]) -> int:
    """The step by which `FALL` of the loss's whole fall is done, found after the fact."""
    curve = torch.tensor(losses, dtype=torch.float64)
    smooth = curve.unfold(0, 2 * SMOOTH + 1, 1).mean(1)
    high, low = float(curve[:3].mean()), float(smooth.min())
    reached = (smooth <= high - FALL * (high - low)).nonzero()
    return int(reached[0]) + SMOOTH + 1


def at(trace: Columns, column: str, step: float) -> float:
    return [value for s, value in zip(trace["step"], trace[column], strict=True) if s <= step][-1]


def between(trace: Columns, column: str, first: float, last: float) -> list[float]:
    pairs = zip(trace["step"], trace[column], strict=True)
    return [value for step, value in pairs if first <= step <= last]


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def lifted(noise: float) -> float:
    """σ, and its positive floor where no noise is drawn: what log σ starts from."""
    floor = Control().limits(1.0, 0.9).noise_floor
    return max(noise, floor)


# What §7 predicts, line by line


def judge_improvement(trace: Columns, losses: list[float], scenario: Scenario) -> list[Finding]:
    end = end_of_fall(losses)
    rate, momentum = at(trace, "lr", end), at(trace, "momentum", end)
    noise = max(lifted(value) for value in between(trace, "noise", 0, end))
    return [
        Finding("α rises", scenario.lr, rate, rate > 1.1 * scenario.lr),
        Finding("μ rises", 0.9, momentum, momentum > 0.905),
        Finding("σ stays at its floor", lifted(0), noise, noise <= AT_FLOOR * lifted(0)),
    ]


def judge_plateau(trace: Columns, losses: list[float], scenario: Scenario) -> list[Finding]:
    end, begin = end_of_fall(losses), min(1000, scenario.task.steps / 4)
    falling = mean(between(trace, "plateau", 0, end))
    flat = mean(between(trace, "plateau", begin, scenario.task.steps))
    before, after = (lifted(at(trace, "noise", step)) for step in (begin, scenario.task.steps))
    rate, cooled = (at(trace, "lr", step) for step in (begin, scenario.task.steps))
    return [
        Finding("P is higher than during the fall", falling, flat, flat > falling),
        # Ten times is far beyond what a random walk of as many steps would do.
        Finding("σ rises, at least tenfold", before, after, after > 10 * before),
        Finding("α holds or cools", rate, cooled, cooled <= 1.1 * rate),
    ]


def judge_regression(trace: Columns, losses: list[float], scenario: Scenario) -> list[Finding]:
    first, last = scenario.disturbance
    rate, momentum = at(trace, "lr", first - 1), at(trace, "momentum", first - 1)
    cooled = min(between(trace, "lr", first, last))
    slowed = min(between(trace, "momentum", first, last))
    before = lifted(at(trace, "noise", first - 1))
    peak = max(map(lifted, between(trace, "noise", first, last + FELT / 4)))
    decayed = min(map(lifted, between(trace, "noise", last + FELT / 4, last + 2 * FELT)))
    return [
        Finding("α falls, by a third or more", rate, cooled, cooled < rate / 1.5),
        Finding("μ falls", momentum, slowed, slowed < momentum),
        Finding("σ increases for a while", before, peak, peak > 1.2 * before),
        Finding("σ decays as improvement resumes", peak, decayed, decayed < peak / 1.2),
    ]


def judge_shift(trace: Columns, losses: list[float], scenario: Scenario) -> list[Finding]:
    first, _ = scenario.disturbance
    rate, momentum = at(trace, "lr", first - 1), at(trace, "momentum", first - 1)
    dip = min(between(trace, "lr", first, first + FELT))
    slowed = min(between(trace, "momentum", first, first + FELT))
    before = lifted(at(trace, "noise", first - 1))
    bump = max(map(lifted, between(trace, "noise", first, first + FELT)))
    recovered = max(between(trace, "lr", first + FELT, scenario.task.steps))
    return [
        Finding("α dips, by a fifth or more", rate, dip, dip < 0.8 * rate),
        Finding("μ dips", momentum, slowed, slowed < momentum),
        Finding("σ bumps", before, bump, bump > 1.2 * before),
        Finding("α recovers from the dip", dip, recovered, recovered > 1.25 * dip),
    ]


IMPROVEMENT = Scenario(
    name="improvement",
    title="Early improvement: a small GPT learns Python's sources",
    situation="a GPT of one block starts to learn Python's sources, at a rate a few times too low",
    prediction="Early training (improvement): α ↑, μ ↑, σ ↓ → 0",
    task=TASKS["code"],
    lr=3e-4,
    judge=judge_improvement,
)
PLATEAU = Scenario(
    name="plateau",
    title="A true plateau: 30 % of the labels are wrong, drawn anew for every batch",
    situation=(
        "a perceptron learns handwritten digits of which 30 % carry a wrong label, drawn anew for "
        "every batch: after a few hundred steps nothing is left to learn"
    ),
    prediction="Plateau: P ↑ ⇒ σ ↑ (gentle exploration); α holds or cools",
    task=TASKS["labels-wrong-30"],
    judge=judge_plateau,
)
REGRESSION = Scenario(
    name="regression",
    title="Regression: all labels are wrong for 200 steps",
    situation="a perceptron learns handwritten digits, and for 200 steps every label is random",
    prediction=(
        "Regression (loss trend ↑): α ↓, μ ↓ (less inertia), σ may increase briefly to search, "
        "then decay as improvement resumes"
    ),
    task=TASKS["labels-break"],
    judge=judge_regression,
)
SHIFT = Scenario(
    name="shift",
    title="Distribution shift: from one step to the next the text is in another language",
    situation=(
        "a GPT of one block learns English prose, and from one step to the next every character "
        "stands for another, as if the language had changed"
    ),
    prediction="Distribution shift: brief dip in α, μ + bump in σ, then recovery",
    task=TASKS["prose-to-cipher"],
    judge=judge_shift,
)
SCENARIOS = (IMPROVEMENT, PLATEAU, REGRESSION, SHIFT)

LATE = replace(
    REGRESSION,
    name="late-regression",
    title="A limit: the labels go wrong after a long plateau",
    situation=(
        "the same perceptron learns digits with 20 % wrong labels for 4,000 steps, most of them a "
        "plateau, and then every label is random for 200 steps"
    ),
    task=TASKS["labels-break-late"],
    limit=(
        "On the plateau α and μ have already cooled to their lower bounds, or nearly, so there is "
        "little left to give way with."
    ),
)
MILD = replace(
    SHIFT,
    name="mild-shift",
    title="A limit: the text changes, but the loss hardly does",
    situation="the same GPT learns English prose, and then goes on with Python's sources",
    task=TASKS["prose-to-code"],
    limit=(
        "The loss rises by less than its batches' noise, and the loss is all that the controller "
        "sees: what α does is what it does on slow progress anyway."
    ),
)
LIMITS = (LATE, MILD)
"""Where §7 does not happen, or only in part; found while looking for the four above."""
