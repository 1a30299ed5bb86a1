"""Which numbers make σ work: the measurement behind `Control.plateau_trend` and `plateau_variance`.

Run it as ``python -m bench.plateau_defaults [--save]``; about a minute on one core. It records
the losses of real training, replays them through the sensors, and looks at what the law adds to
log σ per update, on average:

    drift = k_σP·E[P] − k_σr·E[max(Δ̃r, 0)]

On a plateau that must be above 0, or σ never leaves its floor; while the loss still falls it must
not be. Both parts of P are tried over a grid. The rule by which one of them is chosen was:
the worst plateau's drift as high as possible, with no recorded fall that drifts upwards.
"""

from __future__ import annotations

import argparse
import datetime
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from adaptiverl import Control
from adaptiverl.law.replay import replay
from bench.methods.base import AdamW, Stepper
from bench.run.cells import Cell, losses_of, train
from bench.studies.scenarios import end_of_fall
from bench.tables import markdown
from bench.tasks import Task
from bench.tasks.characters import Passages
from bench.tasks.disturbed import WrongLabels

Floats = NDArray[np.float64]
Pair = tuple[float, float]
RESULTS = Path(__file__).parent / "results"

BETAS = (0.01, 0.02, 0.03)
EARLIER = ((0.1, 0.05), (1.0, 0.2))
"""The numbers that the project began with."""
TRENDS = tuple(
    product((0.1, 0.3, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8, 0.9, 1.0), (0.02, 0.05, 0.1, 0.2))
)
VARIANCES = ((1.0, 0.2), (1.25, 0.1), (1.5, 0.05), (1.5, 0.1), (1.5, 0.2), (2.0, 0.1), (3.0, 0.2))
GAINS = (Control().gain_noise_plateau, Control().gain_noise_reward)
NEARLY = 0.5
"""Drifts per update, in thousandths, that differ by less are the same: batches differ by more."""
PLAIN = AdamW(name="adamw", warm_up=0.0, fused=None)


class Curve(NamedTuple):
    """A recorded loss; plateau is the step from which nothing is left to learn, if there is one."""

    name: str
    losses: list[float]
    plateau: int | None = None


class Stretch(NamedTuple):
    """A part of a curve as the sensors see it: |Δ̃ℓ|, v/S_v and max(Δ̃r, 0) per step.

    Its kind is "fall", "slow" (it still falls, slowly) or "plateau"; β is that of all averages.
    """

    curve: str
    kind: str
    beta: float
    trend: Floats
    variance: Floats
    improving: Floats


def record() -> list[Curve]:
    """Train with torch's AdamW at a constant rate; nothing of adaptiverl takes part."""
    text, labels = Passages(name="", steps=2000), WrongLabels(name="", steps=6000, wrong=0.3)
    white = list(3 + 0.1 * np.random.default_rng(0).standard_normal(20_000))
    curves = []
    for n in (4, 16, 32):
        task = replace(text, batch=n)
        curves.append(Curve(f"characters, batch {n}", losses(task, 3e-3, 0)))
    curves.append(Curve("characters, rate 10 times lower", losses(text, 3e-4, 1)))
    for n in (8, 32, 128):
        noisy = losses(replace(labels, batch=n), 1e-3, 0)
        curves.append(Curve(f"digits, 30 % wrong labels, batch {n}", noisy, plateau=3000))
    right = replace(labels, steps=4000, wrong=0.0)
    return [
        *curves,
        Curve("digits, labels right", losses(right, 1e-3, 0)),
        # The loss of a model that stands still, on real batches.
        Curve("characters, then rate 0", losses(text, 3e-3, 2, still_from=500), 700),
        Curve("white noise, Gaussian", white, 500),
    ]


def losses(task: Task, lr: float, seed: int, still_from: float = math.inf) -> list[float]:
    """Of every step at a constant rate, which is 0 from a step on."""
    problem = task.start(seed)
    stepper = Cell(task, PLAIN, lr, seed).stepper(problem.objective.parameters())
    stepper = Stepper(stepper.optimizer, lambda taken: lr if taken < still_from else 0.0)
    return losses_of(train(problem, stepper, range(task.steps)))


def stretches(curve: Curve, beta: float) -> Iterator[Stretch]:
    """The fall of a curve (its first four fifths, found after the fact), and what follows."""
    control = Control(every=1, beta_loss=beta, beta_reward=beta, beta_variance=beta)
    history = replay(curve.losses, control, lr=1e-3)
    trend = np.abs([state.loss_direction for state in history])
    variance = np.array([s.variance / (s.variance_scale or math.inf) for s in history])
    improving = np.maximum([state.reward_direction for state in history], 0)

    def part(kind: str, begin: int, end: int) -> Stretch:
        cut = slice(begin, end)
        return Stretch(curve.name, kind, beta, trend[cut], variance[cut], improving[cut])

    last = len(history)
    if not curve.name.startswith("white"):
        yield part("fall", 3, end_of_fall(curve.losses))
    if curve.plateau is None:
        yield part("slow", last // 2, last)
    else:
        yield part("plateau", curve.plateau, last)


def score(stretch: Stretch, trend: Pair, variance: Pair) -> Floats:
    """P per step."""
    flat = _sigmoid((trend[0] - stretch.trend) / trend[1])
    return flat * _sigmoid((variance[0] - stretch.variance) / variance[1])


def _sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-np.clip(x, -700, 700)))


def drift(stretch: Stretch, trend: Pair, variance: Pair) -> float:
    """What the law adds to log σ per update, on average, in thousandths."""
    p, improving = score(stretch, trend, variance).mean(), stretch.improving.mean()
    return 1000 * float(GAINS[0] * p - GAINS[1] * improving)


class Choice(NamedTuple):
    """One cell of the grid: drifts per update in thousandths, over all curves and β."""

    trend: Pair
    variance: Pair
    plateau: float
    fall: float
    slow: float


def judge(parts: Sequence[Stretch], trend: Pair, variance: Pair) -> Choice:
    """The worst of every kind: the lowest plateau, the highest fall."""

    def drifts(kind: str) -> list[float]:
        return [drift(part, trend, variance) for part in parts if part.kind == kind]

    return Choice(trend, variance, min(drifts("plateau")), max(drifts("fall")), max(drifts("slow")))


def choose(grid: Sequence[Choice]) -> Choice:
    """The rule; of the choices that it cannot tell apart, the gentlest slopes."""
    allowed = [choice for choice in grid if choice.fall <= 0]
    best = max(choice.plateau for choice in allowed)
    close = [choice for choice in allowed if choice.plateau >= best - NEARLY]
    return max(close, key=lambda choice: (choice.trend[1] * choice.variance[1], choice.plateau))


def fair_fall(trend: Pair, variance: Pair) -> tuple[float, float]:
    """Falls, in batch standard deviations per 1/β steps, at which E[Δ log α] and E[Δ log σ] are 0.

    For Gaussian batches and a steady fall of δ, Δ̃ℓ = clip((z − δ)/E|z − δ|, −1, 1).
    """
    z = np.random.default_rng(0).standard_normal(400_000)
    falls = np.linspace(0, 2, 81)
    rate, noise = [], []
    for fall in falls:
        direction = np.clip((z - fall) / np.abs(z - fall).mean(), -1, 1)
        improving, worsening = np.maximum(-direction, 0), np.maximum(direction, 0)
        rate.append(improving.mean() - 2 * worsening.mean())
        part = Stretch("", "", 0, np.abs(direction), np.ones_like(direction), improving)
        noise.append(-drift(part, trend, variance))
    return float(np.interp(0, rate, falls)), float(np.interp(0, noise, falls))


def page(curves: Sequence[Curve]) -> str:
    """All of the measurement, Markdown."""
    parts = [part for beta in BETAS for curve in curves for part in stretches(curve, beta)]
    grid = [judge(parts, *pairs) for pairs in product(TRENDS, VARIANCES)]
    chosen, now = choose(grid), (Control().plateau_trend, Control().plateau_variance)
    shown = [
        judge(parts, *EARLIER),
        *(c for c in grid if (c.trend[1], c.variance) == (chosen.trend[1], chosen.variance)),
        *(c for c in grid if c.trend == chosen.trend and c is not chosen),
    ]
    rate, noise = fair_fall(*now)
    sections = [
        "# The four numbers of the plateau score, by measurement",
        f"`python -m bench.plateau_defaults --save`, {datetime.date.today()}, torch "
        f"{torch.__version__}, CPU. Drifts are what the law adds to log σ per update, in "
        f"thousandths, with k_σP = {GAINS[0]} and k_σr = {GAINS[1]}; the worst over the curves and "
        f"β = {', '.join(map(str, BETAS))}.",
        markdown(
            ["(ε_Δ, s_Δ), (ε_v, s_v)", "worst plateau", "worst fall", "steepest slow fall"],
            [_line(choice, choice is chosen) for choice in shown],
        ),
        f"{len(grid)} cells in all; shown are the project's first numbers, the chosen slopes for "
        "every ε_Δ, and every (ε_v, s_v) beside the chosen (ε_Δ, s_Δ).\n"
        f"The rule (no fall drifts upwards, the worst plateau as high as possible; within "
        f"{NEARLY} the gentlest slopes) gives {chosen.trend}, {chosen.variance}. "
        f"`Control` has {now[0]}, {now[1]}.",
        f"## Every curve with {now[0]}, {now[1]}",
        _curves(parts, *now),
        "## Where it turns",
        "For Gaussian batches and a steady fall of δ batch standard deviations per 1/β steps, α's "
        f"push turns from cooling to heating at δ = {rate:.2f}, and σ's from rising to falling at "
        f"δ = {noise:.2f}. Between the two both rise.",
    ]
    return "\n\n".join(sections) + "\n"


def _line(choice: Choice, bold: bool) -> list[str]:
    cells = [f"{choice.trend}, {choice.variance}"]
    cells += [f"{drift:+.1f}" for drift in (choice.plateau, choice.fall, choice.slow)]
    return [f"**{cell}**" for cell in cells] if bold else cells


def _curves(parts: Sequence[Stretch], trend: Pair, variance: Pair) -> str:
    lines = []
    for curve, kind in dict.fromkeys((p.curve, p.kind) for p in parts):
        own = {p.beta: p for p in parts if (p.curve, p.kind) == (curve, kind)}
        p, improving = score(own[0.02], trend, variance).mean(), own[0.02].improving.mean()
        drifts = (f"{drift(own[b], trend, variance):+.1f}" for b in BETAS)
        lines.append([f"{curve}: {kind}", f"{p:.2f}", f"{improving:.2f}", *drifts])
    headings = ["curve", "E[P]", "E[max(Δ̃r, 0)], both at β = 0.02", *(f"β = {b}" for b in BETAS)]
    return markdown(headings, lines)


def main(arguments: Sequence[str]) -> int:
    """Measure and print; with ``--save`` also write into bench/results."""
    parser = argparse.ArgumentParser(prog="python -m bench.plateau_defaults")
    parser.add_argument("--save", action="store_true", help=f"also write into {RESULTS.name}/")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    text = page(record())
    print(text)
    if given.save:
        path = RESULTS / f"plateau-defaults-{datetime.date.today()}.md"
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
