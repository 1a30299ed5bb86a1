"""Which numbers make σ work: the measurement behind `Control.plateau_trend` and `plateau_variance`.

Run it as ``python -m bench.plateau_defaults [--save]``; about two minutes on one core. It records
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
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from adaptiverl import Control
from adaptiverl.law.arithmetic import ratio
from adaptiverl.law.replay import replay
from bench.scenarios.scenarios import PLATEAU, end_of_fall, run
from bench.scenarios.tasks import Characters, Digits, Task, losses_of

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


@dataclass(frozen=True)
class Curve:
    """A recorded loss.

    Attributes:
        name: What was trained.
        losses: Of every step.
        plateau: The step from which nothing is left to learn; None where there always is.
    """

    name: str
    losses: list[float]
    plateau: int | None


@dataclass(frozen=True)
class Stretch:
    """A part of a curve as the sensors see it.

    Attributes:
        curve: Its name.
        kind: "fall", "slow" (it still falls, slowly) or "plateau".
        beta: β of all three averages.
        trend: |Δ̃ℓ| per step.
        variance: v/S_v per step.
        improving: max(Δ̃r, 0) per step.
    """

    curve: str
    kind: str
    beta: float
    trend: Floats
    variance: Floats
    improving: Floats


def record() -> list[Curve]:
    """Train with torch's AdamW at a constant rate; nothing of adaptiverl takes part."""
    curves = []
    for batch in (4, 16, 32):
        curves.append(_curve(f"characters, batch {batch}", Characters(0, batch=batch), 3e-3, 2000))
    curves.append(_curve("characters, rate 10 times lower", Characters(1), 3e-4, 2000))
    for batch in (8, 32, 128):
        task = Digits(0, batch=batch, wrong=0.3)
        name = f"digits, 30 % wrong labels, batch {batch}"
        curves.append(_curve(name, task, 1e-3, 6000, plateau=3000))
    curves.append(_curve("digits, labels right", Digits(0), 1e-3, 4000))
    curves.append(_stopped())
    white = np.random.default_rng(0).standard_normal(20_000)
    curves.append(Curve("white noise, Gaussian", list(3 + 0.1 * white), 500))
    return curves


def _curve(name: str, task: Task, lr: float, steps: int, plateau: int | None = None) -> Curve:
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=lr)
    return Curve(name, losses_of(task, optimizer, steps), plateau)


def _stopped() -> Curve:
    """A GPT whose rate is turned to 0: the loss of a model that stands still, on real batches."""
    task = Characters(2)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=3e-3)
    losses = losses_of(task, optimizer, 500)
    optimizer.param_groups[0]["lr"] = 0.0
    return Curve("characters, then rate 0", losses + losses_of(task, optimizer, 1500), 700)


def stretches(curve: Curve, beta: float) -> Iterator[Stretch]:
    """The fall of a curve (its first four fifths, found after the fact), and what follows."""
    control = Control(every=1, beta_loss=beta, beta_reward=beta, beta_variance=beta)
    history = replay(curve.losses, control, lr=1e-3)
    trend = np.abs([state.loss_direction for state in history])
    variance = np.array([ratio(s.variance, s.variance_scale) for s in history])
    improving = np.maximum([state.reward_direction for state in history], 0)

    def part(kind: str, begin: int, end: int) -> Stretch:
        cut = slice(begin, end)
        return Stretch(curve.name, kind, beta, trend[cut], variance[cut], improving[cut])

    last = len(history)
    if curve.name.startswith("white"):
        yield part("plateau", curve.plateau or 0, last)
        return
    yield part("fall", 3, end_of_fall(curve.losses))
    if curve.plateau is None:
        yield part("slow", last // 2, last)
    else:
        yield part("plateau", curve.plateau, last)


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + e^−x)."""
    return 1 / (1 + np.exp(-np.clip(x, -700, 700)))


def score(stretch: Stretch, trend: Pair, variance: Pair) -> Floats:
    """P per step."""
    flat = sigmoid((trend[0] - stretch.trend) / trend[1])
    return flat * sigmoid((variance[0] - stretch.variance) / variance[1])


def drift(stretch: Stretch, trend: Pair, variance: Pair) -> float:
    """What the law adds to log σ per update, on average, in thousandths."""
    p, improving = score(stretch, trend, variance).mean(), stretch.improving.mean()
    return 1000 * float(GAINS[0] * p - GAINS[1] * improving)


@dataclass(frozen=True)
class Choice:
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
        surprise = z - fall
        direction = np.clip(surprise / np.abs(surprise).mean(), -1, 1)
        improving, worsening = np.maximum(-direction, 0).mean(), np.maximum(direction, 0).mean()
        rate.append(improving - 2 * worsening)
        ones = np.ones_like(direction)
        part = Stretch("", "", 0, np.abs(direction), ones, np.maximum(-direction, 0))
        noise.append(-drift(part, trend, variance))
    return float(np.interp(0, rate, falls)), float(np.interp(0, noise, falls))


def closed_loop(trend: Pair, variance: Pair, every: int, seeds: Sequence[int]) -> list[Floats]:
    """σ at a quarter, a half and the end of the plateau scenario, closed loop, per seed."""
    control = replace(Control(), every=every, plateau_trend=trend, plateau_variance=variance)
    courses = []
    for seed in seeds:
        noise = np.array(run(PLATEAU, seed, control).trace["noise"])
        courses.append(noise[[len(noise) // 4, len(noise) // 2, len(noise) - 1]])
    return courses


# The page


def page(curves: Sequence[Curve]) -> str:
    """All of the measurement, Markdown."""
    parts = [part for beta in BETAS for curve in curves for part in stretches(curve, beta)]
    grid = [judge(parts, trend, variance) for trend in TRENDS for variance in VARIANCES]
    chosen = choose(grid)
    now = (Control().plateau_trend, Control().plateau_variance)
    lines = [
        "# The four numbers of the plateau score, by measurement",
        "",
        f"`python -m bench.plateau_defaults --save`, {datetime.date.today()}, torch "
        f"{torch.__version__}, CPU. Drifts are what the law adds to log σ per update, in "
        f"thousandths, with k_σP = {GAINS[0]} and k_σr = {GAINS[1]}; the worst over the curves and "
        f"β = {', '.join(map(str, BETAS))}.",
        "",
        *_necessary(parts),
        "## The grid",
        "",
        "| (ε_Δ, s_Δ) | (ε_v, s_v) | worst plateau | worst fall | steepest slow fall |",
        "|---|---|---:|---:|---:|",
    ]
    shown = [judge(parts, *EARLIER)]
    for center in dict.fromkeys(trend[0] for trend in TRENDS):
        same = [c for c in grid if c.trend[0] == center and c.variance == chosen.variance]
        shown += [c for c in same if c.trend[1] == chosen.trend[1]]
    others = [c for c in grid if c.trend == chosen.trend and c is not chosen]
    for choice in [*shown, *others]:
        mark = "**" if choice is chosen else ""
        cells = [f"{choice.plateau:+.1f}", f"{choice.fall:+.1f}", f"{choice.slow:+.1f}"]
        row = [str(choice.trend), str(choice.variance), *cells]
        lines.append("| " + " | ".join(f"{mark}{cell}{mark}" for cell in row) + " |")
    lines += [
        "",
        f"{len(grid)} cells in all; shown are the project's first numbers, the chosen slopes for "
        "every ε_Δ, and every (ε_v, s_v) beside the chosen (ε_Δ, s_Δ).",
        f"The rule (no fall drifts upwards, the worst plateau as high as possible; within "
        f"{NEARLY} the gentlest slopes) gives {chosen.trend}, {chosen.variance}. "
        f"`Control` has {now[0]}, {now[1]}.",
        "",
        *_curve_table(parts, *now),
        *_gaussian(*now),
        *_loops(*now),
    ]
    return "\n".join(lines) + "\n"


def _necessary(parts: Sequence[Stretch]) -> list[str]:
    white = [p for p in parts if p.curve.startswith("white")]
    improving = float(np.mean([p.improving.mean() for p in white]))
    needed = GAINS[1] / GAINS[0] * improving
    earlier = float(np.mean([score(p, *EARLIER).mean() for p in white]))
    return [
        "## What E[P] must exceed",
        "",
        "Gaussian batches around a level: Δ̃ℓ = clip(z·√(π/2), −1, 1), so E[max(Δ̃r, 0)] = "
        f"½·(√(π/2)·√(2/π)·(1 − e^(−1/π)) + P(|z| > √(2/π))) = 0.349 (measured {improving:.3f}), "
        f"and σ rises only if E[P] > {GAINS[1]}/{GAINS[0]}·0.349 = {needed:.3f}. With "
        f"(ε_Δ, s_Δ), (ε_v, s_v) = {EARLIER[0]}, {EARLIER[1]} it is {earlier:.3f}: few steps have "
        "|Δ̃ℓ| < 0.1, for one batch is what Δ̃ℓ sees, and v/S_v, which is 1 on average, halves P. "
        "While the loss falls at full speed Δ̃r = 1, and E[P] must stay below 0.75.",
        "",
    ]


def _curve_table(parts: Sequence[Stretch], trend: Pair, variance: Pair) -> list[str]:
    lines = [
        f"## Every curve with {trend}, {variance}",
        "",
        "| curve | part | E[P] | E[max(Δ̃r, 0)] | " + " | ".join(f"β = {b}" for b in BETAS) + " |",
        "|---|---|---:|---:|" + "---:|" * len(BETAS),
    ]
    for curve, kind in dict.fromkeys((p.curve, p.kind) for p in parts):
        own = {p.beta: p for p in parts if (p.curve, p.kind) == (curve, kind)}
        middle = own[0.02]
        drifts = " | ".join(f"{drift(own[b], trend, variance):+.1f}" for b in BETAS)
        p, improving = score(middle, trend, variance).mean(), middle.improving.mean()
        lines.append(f"| {curve} | {kind} | {p:.2f} | {improving:.2f} | {drifts} |")
    return [*lines, "", "E[P] and E[max(Δ̃r, 0)] are those at β = 0.02.", ""]


def _gaussian(trend: Pair, variance: Pair) -> list[str]:
    rate, noise = fair_fall(trend, variance)
    still = np.abs(
        np.clip(np.random.default_rng(1).standard_normal(400_000) * math.sqrt(math.pi / 2), -1, 1)
    )
    # E[max(Δ̃r, 0)] is half of E|Δ̃r|, by symmetry.
    part = Stretch("", "", 0, still, np.ones_like(still), still / 2)
    gain = drift(part, trend, variance) / 1000
    return [
        "## Where it turns",
        "",
        "For Gaussian batches and a steady fall of δ batch standard deviations per 1/β steps, α's "
        f"push turns from cooling to heating at δ = {rate:.2f}, and σ's from rising to falling at "
        f"δ = {noise:.2f}. Between the two both rise. Neither depends on the batches' noise "
        "itself, for everything is measured in units of it; a fall that is slow in these units is "
        f"a plateau to the sensors. On a plateau σ takes {math.log(1 / 1e-3) / gain:.0f} updates "
        "from its floor to σ_max, a thousand times as much.",
        "",
    ]


def _loops(trend: Pair, variance: Pair) -> list[str]:
    lines = [
        "## Closed loop",
        "",
        "The plateau of `make scenarios` (digits, 30 % of the labels wrong, 12,000 steps), σ at a "
        "quarter, at half and at the end; it starts at its floor, where no noise is drawn.",
        "",
        "| numbers | K | seed 0 | seed 1 |",
        "|---|---:|---|---|",
    ]
    for numbers, every in (
        (EARLIER, 10),
        ((trend, variance), 5),
        ((trend, variance), 10),
        ((trend, variance), 20),
    ):
        courses = closed_loop(*numbers, every, (0, 1))
        cells = " | ".join(", ".join(f"{x:.2g}" for x in course) for course in courses)
        lines.append(f"| {numbers[0]}, {numbers[1]} | {every} | {cells} |")
    return lines


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
