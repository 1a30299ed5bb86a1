"""§7 on real training, shortened; the measures behind the report, by hand; the report itself."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptiverl import Control
from adaptiverl.law.replay import replay
from adaptiverl.layout import TRACE_COLUMNS
from bench import scenarios
from bench.studies import timescales
from bench.studies.scenarios import (
    IMPROVEMENT,
    PLATEAU,
    REGRESSION,
    SHIFT,
    Outcome,
    Scenario,
    at,
    between,
    end_of_fall,
    run,
)
from bench.studies.timescales import SETTINGS, Watched, hunts, line_over_chance, watch

ROOT = Path(__file__).resolve().parents[1]
SEED = 7
STILL = Control(
    gain_lr_reward=0,
    gain_lr_loss=0,
    gain_momentum_reward=0,
    gain_momentum_loss=0,
    gain_noise_plateau=0,
    gain_noise_reward=0,
)
EAGER = Control(plateau_trend=(1.5, 0.1), plateau_variance=(9.0, 0.1), gain_noise_reward=0)
# The numbers that the project began with.
EARLIER = Control(plateau_trend=(0.1, 0.05), plateau_variance=(1.0, 0.2))


def shortened(scenario: Scenario, **changes: Any) -> Scenario:
    return replace(scenario, task=replace(scenario.task, **changes))


SHORT = {
    "improvement": shortened(IMPROVEMENT, steps=300),
    "plateau": shortened(PLATEAU, steps=4000),
    "regression": shortened(REGRESSION, steps=1000),
    "shift": shortened(SHIFT, steps=700, between=(301, 700)),
}


def claims(outcome: Outcome) -> dict[str, bool]:
    return {finding.claim: finding.holds for finding in outcome.findings}


# --- What §7 predicts -------------------------------------------------------------------------


@cache
def trained(name: str) -> Outcome:
    return run(SHORT[name], SEED)


def steered(name: str, control: Control) -> dict[str, bool]:
    """What is claimed of the knobs that another control makes of the same losses."""
    scenario, losses = SHORT[name], trained(name).losses
    states = replay(losses, control, lr=scenario.lr)
    updates = [s for before, s in itertools.pairwise(states) if s.updates > before.updates]
    trace = {column: [getattr(s, column) for s in updates] for column in TRACE_COLUMNS}
    return {finding.claim: finding.holds for finding in scenario.judge(trace, losses, scenario)}


@pytest.mark.parametrize("name", SHORT)
def test_the_knobs_move_as_the_specification_predicts(name: str) -> None:
    outcome = trained(name)
    assert all(claims(outcome).values()), outcome.findings
    assert len(outcome.findings) >= 3
    assert len(outcome.losses) == SHORT[name].task.steps
    assert steered(name, Control()) == claims(outcome), "a replay is the run"


@pytest.mark.parametrize("name", ["improvement", "regression", "shift"])
def test_knobs_that_do_not_move_are_found_out(name: str) -> None:
    moving = [holds for claim, holds in steered(name, STILL).items() if "stays" not in claim]
    assert not any(moving), moving


@pytest.mark.parametrize(
    ("name", "control", "claim"),
    [
        ("plateau", EARLIER, "σ rises, at least tenfold"),
        ("improvement", EAGER, "σ stays at its floor"),
    ],
)
def test_a_noise_that_moves_at_the_wrong_time_is_found_out(
    name: str, control: Control, claim: str
) -> None:
    assert not steered(name, control)[claim]


# --- The plateau score's numbers --------------------------------------------------------------

BATCHES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "Gaussian": lambda rng, n: rng.standard_normal(n),
    "uniform": lambda rng, n: rng.uniform(-1, 1, n),
    "heavy-tailed": lambda rng, n: rng.standard_t(3, n),
    "skewed": lambda rng, n: rng.gamma(2.0, size=n),
    "correlated": lambda rng, n: np.convolve(rng.standard_normal(n), [0.8, 0.4, 0.2], "same"),
}


def noise_drift(losses: np.ndarray, beta: float, control: Control) -> float:
    """What the law adds to log σ per update, on average over all but the first 500 losses."""
    control = replace(control, every=1, beta_loss=beta, beta_reward=beta, beta_variance=beta)
    states = replay(losses.tolist(), control, lr=1e-3)[500:]
    rise = control.gain_noise_plateau * np.mean([s.plateau for s in states])
    fall = control.gain_noise_reward * np.mean([max(s.reward_direction, 0) for s in states])
    return float(rise - fall)


@pytest.mark.parametrize("beta", [0.01, 0.03])
@pytest.mark.parametrize("name", BATCHES)
def test_noise_rises_on_a_plateau_and_falls_in_a_fall(name: str, beta: float) -> None:
    batches = BATCHES[name](np.random.default_rng(0), 2000)
    batches /= batches.std()
    assert noise_drift(3 + 0.1 * batches, beta, Control()) > 0.004
    # One standard deviation of the batches per 1/β steps.
    falling = 100 - 0.1 * beta * np.arange(2000) + 0.1 * batches
    assert noise_drift(falling, beta, Control()) < -0.002
    assert noise_drift(3 + 0.1 * batches, beta, EARLIER) < -0.01


def test_the_defaults_are_those_of_the_measurement() -> None:
    reports = sorted((ROOT / "bench/results").glob("plateau-defaults-*.md"))
    found = re.search(r"gives (\(.*?\), \(.*?\))\. `Control` has \1\.", reports[-1].read_text())
    assert found is not None
    assert found[1] == f"{Control().plateau_trend}, {Control().plateau_variance}"


# --- Looking at a run -------------------------------------------------------------------------

TRACE = {"step": [10.0, 20.0, 30.0], "lr": [1.0, 2.0, 3.0]}


def test_at_and_between() -> None:
    assert [at(TRACE, "lr", step) for step in (10, 19, 20, 99)] == [1, 1, 2, 3]
    assert between(TRACE, "lr", 15, 30) == [2, 3]


def test_end_of_fall() -> None:
    # A straight fall from 10 to 0 in 1000 steps, then flat: four fifths are done after 800.
    losses = [max(10 - n / 100, 0.0) for n in range(1500)]
    assert end_of_fall(losses) == pytest.approx(800, abs=3)


# --- Two time-scales --------------------------------------------------------------------------


def test_a_cycle_is_a_line_and_noise_is_none() -> None:
    time = np.arange(400)
    noise = np.random.default_rng(0).standard_normal(400)
    cycle = timescales.spectrum(np.sin(2 * np.pi * time / 50) + 0.5 * noise + 0.01 * time)
    assert line_over_chance(cycle) > 3
    assert 1 + int(cycle.argmax()) == 8
    assert line_over_chance(timescales.spectrum(noise)) < 1
    assert line_over_chance(np.zeros(100)) == 0


def test_hunting_vanishes_as_the_cadence_grows() -> None:
    """Where nothing but the loop between α and the loss moves α."""
    setting = SETTINGS[0]._replace(task=replace(SETTINGS[0].task, steps=4000), seeds=(0,))
    every_step, seldom = watch(setting, 1), watch(setting, 20)
    assert hunts(every_step)
    assert 20 < every_step.period < 120
    assert not hunts(seldom)


def test_batch_noise_passes_as_a_coin() -> None:
    noisy = replace(SETTINGS[1].task, steps=3000)
    row = watch(SETTINGS[1]._replace(task=noisy, seeds=(0,)), 5)
    assert not hunts(row)


def test_a_loss_that_stops_dead_reads_as_falling() -> None:
    """A known limit of the law: method.md#loss-sensor."""
    losses = [0.7 + (3 * math.exp(-step / 30) if step < 100 else 0) for step in range(3100)]
    states = replay(losses, Control(), lr=1e-3)
    assert (states[-1].loss_mean - 0.7) / math.ulp(0.7) == pytest.approx(1 / (2 * 0.02), abs=1)
    assert states[-1].loss_direction < -0.99
    assert math.log(states[-1].lr / states[1100].lr) > 0.5


# --- The report -------------------------------------------------------------------------------


def brief(scenario: Scenario) -> Scenario:
    return shortened(scenario, steps=300, between=(101, 150))


def row(line: float, every: int = 1) -> Watched:
    return Watched("a quadratic", every, line, 50.0)


def test_the_page_says_what_happened_and_what_did_not() -> None:
    outcome = run(brief(REGRESSION), 0)
    held, half, failed, _ = outcome.findings
    outcomes = [
        replace(
            outcome,
            findings=[f._replace(holds=h) for f, h in zip(outcome.findings, holds, strict=True)],
        )
        for holds in ((True, True, False, True), (True, False, False, True))
    ]
    text = scenarios.page(outcomes, [row(2.0), row(0.5, 20)], "Settings.")
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines()}
    assert lines[held.claim].endswith("| happens |")
    assert lines[half.claim].endswith("| **only in 1 of 2** |")
    assert lines[failed.claim].endswith("| **does not happen** |")
    assert "| a quadratic | 1 | **2.00** | 50 |" in text
    assert "| a quadratic | 20 | 0.50 | 50 |" in text


@pytest.mark.parametrize("holds", [True, False])
def test_the_command_writes_everything(
    holds: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    done = run(brief(REGRESSION), SEED)

    def staged(scenario: Scenario, seed: int) -> Outcome:
        # A limit may fail without a word: here it always does.
        findings = [f._replace(holds=holds and not scenario.limit) for f in done.findings]
        return replace(done, scenario=scenario, seed=seed, findings=findings)

    never = replace(REGRESSION, name="never", limit="It cannot.")
    for name, value in {
        "run": staged,
        "watch": lambda setting, every: row(0.5, every),
        "SCENARIOS": (REGRESSION,),
        "LIMITS": (never,),
        "SEEDS": (SEED,),
        "SETTINGS": SETTINGS[:1],
        "CADENCES": (1, 10),
    }.items():
        monkeypatch.setattr(scenarios, name, value)
    status = scenarios.main(["--out", str(tmp_path / "out")])
    assert status == int(not holds)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"README.md", "regression.png", "never.png", "timescales.png"}
    said = capsys.readouterr().out
    assert (f"regression, seed {SEED}: does not happen: α falls" in said) is not holds
    assert (f"regression, seed {SEED}: as §7 predicts" in said) is holds
    assert f"never, seed {SEED} (a known limit): does not happen: α falls" in said
    assert "It cannot." in (tmp_path / "out/README.md").read_text(encoding="utf-8")
