"""The distilled law: f_φ by hand, both twins against the oracle, its file, and what it is asked."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from law_twin import assert_equal, both, break_law, compare, course, make
from streams import Step, alignment_stream, assert_alive, sums_of

from adaptiverl import AdaptiveAdamW, AdaptiveLion, AdaptiveSGD, Control, steer
from adaptiverl.law import distilled
from adaptiverl.weights import FEATURES, LARGEST, SHIPPED, Weights, count_of

LAYERS: list[tuple[int, ...]] = [(), (5,), (32, 32)]
STEPS = 3000
CLOSED: dict[str, Any] = {"law": "distilled", "horizon": STEPS, "lr_change": (0.8, 1.25)}


def drawn(hidden: tuple[int, ...], seed: int = 0, size: float = 3.0) -> Weights:
    """Weights under which all knobs wander."""
    rng = np.random.default_rng(seed)
    return Weights(hidden, tuple(float(x) for x in size * rng.standard_normal(count_of(hidden))))


def saying(lr: float = 0.0, momentum: float = 0.0, noise: float = 0.0, **of: float) -> Weights:
    """A linear f_φ: these numbers, and for the move of log α these weights of features."""
    rows = np.zeros((3, len(FEATURES) + 1))
    rows[:, -1] = lr, momentum, noise
    for name, weight in of.items():
        rows[0, FEATURES.index(name)] = weight
    return Weights((), tuple(rows.ravel().tolist()))


# By hand ------------------------------------------------------------------------------------------


@both
def test_a_move_is_of_a_whole_run(twin: str) -> None:
    control = Control(
        **CLOSED | {"horizon": 100},
        weights=saying(2.0, -1.0, 0.5),
        every=5,
        gain_momentum_reward=0.0,
        gain_momentum_loss=0.0,
        gain_noise_plateau=0.0,
        gain_noise_reward=0.0,
    )
    states = course(twin, control, [Step(None, 1.0)] * 10)
    first, last = states[4], states[9]
    for state, updates in ((first, 1), (last, 2)):
        assert state.log_lr == pytest.approx(math.log(1e-3) + updates * 2 * 5 / 100)
        assert state.logit_momentum == pytest.approx(math.log(9) - updates * 5 / 100)
        assert state.log_noise == pytest.approx(math.log(1e-4) + updates * 0.5 * 5 / 100)
        assert (state.move_lr, state.move_momentum, state.move_noise) == (2.0, -1.0, 0.5)
    assert last.moved_at == 10


@both
def test_a_move_is_capped_and_counts_the_steps_since_the_last(twin: str) -> None:
    control = Control.distilled(100, saying(lr=1.0))
    told = [Step(None, 1.0 if step in (5, 20) else None) for step in range(1, 21)]
    states = course(twin, control, told)
    assert states[19].log_lr - states[14].log_lr == pytest.approx(15 / 100)
    far = course(twin, replace(control, weights=saying(lr=1e3)), told)
    assert far[4].lr == pytest.approx(1.25e-3)


@both
def test_what_is_not_finite_brings_the_rate_down_by_the_cap(twin: str) -> None:
    control = Control.distilled(100, saying(lr=2.0, momentum=3.0))
    states = course(twin, control, [Step(None, 1.0)] * 4 + [Step(None, math.nan)])
    assert states[4].lr == pytest.approx(0.8e-3)
    assert states[4].momentum == states[3].momentum


@both
def test_behind_the_horizon_nothing_moves(twin: str) -> None:
    control = Control.distilled(10, saying(lr=1.0))
    states = course(twin, control, [Step(None, 1.0)] * 20)
    assert states[19].log_lr == states[9].log_lr > states[4].log_lr
    unsaid = Control.distilled("auto", saying(lr=1.0))
    assert course(twin, unsaid, [Step(None, 1.0)] * 10)[9].lr == pytest.approx(1e-3)


@both
def test_an_overshoot_is_remembered(twin: str) -> None:
    control = Control.distilled(200, saying(held=-1.0, since_hold=-2.0))
    downhill, uphill = sums_of([0.3] * 20 + [-0.3] * 80)[:20], sums_of([-0.3] * 80)
    states = course(twin, control, [Step(sums, 1.0) for sums in (*downhill, *uphill)])
    held = [int(state.held) for state in states]
    turn = held.index(1)
    assert 20 < turn < 60
    assert held == [0] * turn + [1] * (100 - turn)
    assert states[-1].held_at == turn + 1
    assert states[-1].move_lr == pytest.approx(-1 - 2 * (100 - turn - 1) / 200)
    assert states[turn - 6].move_lr == 0


def test_layers_by_hand() -> None:
    # One hidden unit: 2·e + 1, bent: x/(1+|x|); the outputs 4, −4 and 0 times it, plus 1, 0, 0.
    row = [0.0] * 9
    row[FEATURES.index("alignment_mean")], row[-1] = 2.0, 1.0
    weights = Weights((1,), (*row, 4.0, 1.0, -4.0, 0.0, 0.0, 0.0))
    numbers = make("python", Control.distilled(10, weights)).numbers
    given = [0.0] * 8
    given[FEATURES.index("alignment_mean")] = 1.0
    assert distilled.answer(numbers, given) == pytest.approx([4 * 0.75 + 1, -3.0, 0.0])


# Whole courses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", LAYERS)
def test_both_twins_are_the_oracle(hidden: tuple[int, ...]) -> None:
    steps = alignment_stream(STEPS, STEPS // 2, seed=len(hidden), rewarded=True)
    found = compare(
        steps, weights=drawn(hidden), every=3, reward="given", noise_bounds=(0.0, 0.2), **CLOSED
    )
    assert_alive(found)
    assert found["held"][-1] == 1
    for name in ("move_lr", "move_momentum", "move_noise", "noise"):
        assert np.unique(found[name]).size > 100


def test_by_epoch_and_over_a_scheduler() -> None:
    steps = alignment_stream(600, 300, seed=3)
    for more in ({"every": None}, {"mode": "modulate", "every": 4}):
        found = compare(steps, weights=drawn((5,)), **CLOSED | {"horizon": 400} | more)
        assert np.unique(found["lr"]).size > 50


@pytest.mark.parametrize(
    ("name", "substitute"),
    [
        ("bent", math.tanh),
        ("features", lambda state, control: [0.0] * 8),
        ("next_overshoot", lambda overshoot, score: overshoot),
    ],
)
def test_a_broken_law_is_found(monkeypatch: pytest.MonkeyPatch, name: str, substitute: Any) -> None:
    break_law(monkeypatch, name, substitute)
    with pytest.raises(AssertionError):
        compare(alignment_stream(400, 200, seed=1), weights=drawn((5,)), every=3, **CLOSED)


@both
def test_a_run_that_is_resumed_is_the_run(twin: str) -> None:
    control = Control.distilled(400, drawn((5,)))
    steps = alignment_stream(400, 200, seed=5)
    whole = course(twin, control, steps)
    one, other = (make(twin, control) for _ in range(2))
    states = [one.step(step) for step in steps[:133]]
    other.put(**vars(states[-1]))
    states += [other.step(step) for step in steps[133:]]
    assert_equal(states, whole)


# Around an optimizer ------------------------------------------------------------------------------


def train(make: Callable[..., Any], steps: int = 40, **more: Any) -> Any:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(6, 3))
    optimizer = make([weight], **more)
    for step in range(steps):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        loss = (x @ weight - x[:, :3]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.observe(loss)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    ("kind", "more"), [(AdaptiveAdamW, {}), (AdaptiveSGD, {"momentum": 0.9}), (AdaptiveLion, {})]
)
def test_every_optimizer_asks_it(kind: Any, more: dict[str, Any]) -> None:
    optimizer = train(kind, lr=1e-3, control=Control.distilled(40, saying(alignment=3.0)), **more)
    knobs, trace = optimizer.knobs(), optimizer.trace()
    assert knobs["move_lr"] == pytest.approx(3 * knobs["alignment"])
    assert knobs["alignment"] != 0
    assert trace["move_lr"].tolist()[-1] == knobs["move_lr"]
    assert len(trace["step"]) == 8
    assert "move_lr" not in train(kind, lr=1e-3, steps=1, **more).knobs()


def test_steer_asks_it() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(6, 3))
    inner = torch.optim.AdamW([weight], lr=1e-3)
    steering = steer(inner, control=Control.distilled(40, saying(alignment=3.0)))
    for step in range(20):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        loss = (x @ weight - x[:, :3]).square().mean()
        inner.zero_grad()
        loss.backward()
        steering.observe(loss)
        inner.step()
    knobs = steering.knobs()
    assert knobs["move_lr"] == pytest.approx(3 * knobs["alignment"])
    assert knobs["alignment"] != 0


@pytest.mark.parametrize("start", [1e-5, 1.0])
def test_the_weights_that_ship_leave_a_bad_start(start: float) -> None:
    optimizer = train(AdaptiveAdamW, 200, lr=start, control=Control.distilled(200))
    rates = optimizer.trace()["lr"]
    way = 1 if start < 1e-3 else -1
    assert float((way * (rates / start).log()).max()) > math.log(10)


# The file -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", LAYERS)
def test_weights_are_what_was_saved(tmp_path: Path, hidden: tuple[int, ...]) -> None:
    path = tmp_path / "a.json"
    drawn(hidden).save(path)
    assert Weights.load(path) == drawn(hidden)
    control = Control.distilled(100, path)
    assert control.weights == drawn(hidden)
    assert control == Control.distilled(100, drawn(hidden)) == Control.distilled(100, str(path))
    assert replace(control, every=3).weights == drawn(hidden)
    assert Control.distilled(100).weights == Weights.load(SHIPPED)


def change(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update(values)


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (change(version=2), "it is 'adaptiverl f_phi', version 2"),
        (change(format="other"), "it is 'other', version 1"),
        (lambda content: content.pop("version"), "it is no such file"),
        (lambda content: content.pop("hidden"), "it is damaged"),
        (change(numbers=[1.0]), "its checksum is"),
        (lambda content: content["numbers"].reverse(), "its checksum is"),
        (change(hidden=[4]), "numbers must be 51 for hidden=.4,., got 27"),
        (change(hidden=[64]), "layers of 1 to 32 units"),
        (change(features=["plateau"]), "for the features"),
        (change(numbers=[10**400]), "it is damaged"),
        (change(hidden=[math.inf]), "must be a tuple of whole numbers, got .inf,."),
        (change(hidden=[4.7]), "must be a tuple of whole numbers, got .4.7,."),
        (change(hidden="4"), "must be a tuple of whole numbers, got .'4',."),
    ],
)
def test_a_file_that_is_none_or_damaged(tmp_path: Path, edit: Any, found: str) -> None:
    path = tmp_path / "a.json"
    drawn(()).save(path)
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"a\.json must be .* version 1: .*{found}.* Leave"):
        Control.distilled(100, path)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Control(law="distilled"), ValueError, r"horizon must be .*got None.*10_000"),
        (Control.distilled, ValueError, r"horizon must be .*got None.*10_000"),
        (lambda: Control.distilled(0), ValueError, "horizon must be"),
        (lambda: Control.distilled(9, 3), TypeError, "weights must be a path.* got 3 of type int"),  # type: ignore[arg-type]
        (lambda: Control.distilled(9, "gone.json"), OSError, "gone.json"),
        (lambda: Control(weights="a"), ValueError, "weights is the distilled law's, got 'a'"),
        (lambda: drawn((), size=2 * LARGEST), ValueError, "numbers must be within"),
        (lambda: Weights((1, 1, 1), ()), ValueError, "at most 2 layers"),
        (lambda: Weights(16, ()), TypeError, "hidden must be a tuple of whole numbers, got 16"),  # type: ignore[arg-type]
        (
            lambda: AdaptiveSGD([torch.zeros(1)], 1.0, control=Control.distilled(9, drawn(()))),
            ValueError,
            "momentum must be above 0",
        ),
    ],
)
def test_bad_input(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
