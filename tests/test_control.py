"""`Control`: every range check with its message, pairs, presets, and the bounds in force."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import numpy as np
import pytest
import torch

from adaptiverl import AdaptiveAdamW, AdaptiveLion, AdaptiveSGD, Control
from adaptiverl.terms import search_within

INF, NAN = math.inf, math.nan
BETAS = ("beta_loss", "beta_reward", "beta_variance")
GAINS = (
    "gain_lr_reward",
    "gain_lr_loss",
    "gain_momentum_reward",
    "gain_momentum_loss",
    "gain_noise_plateau",
    "gain_noise_reward",
)
PAIRS = (
    "lr_bounds",
    "momentum_bounds",
    "noise_bounds",
    "lr_change",
    "plateau_trend",
    "plateau_variance",
)
NUMBERS = (*BETAS, *GAINS, "noise_floor", "spike_clip", "cooldown", "acquire_from")


def alone(name: str, value: Any) -> Control:
    """A control with this, and with the law that reads it."""
    arguments: dict[str, Any] = {"law": "alignment" if name == "acquire_from" else "loss"}
    return Control(**(arguments | {name: value}))


OUT_OF_RANGE: list[tuple[str, Any, str]] = [
    ("mode", "replce", "one of ('replace', 'modulate')"),
    ("mode", None, "one of ('replace', 'modulate')"),
    ("reward", "loss", "one of ('neg_loss', 'given', 'none')"),
    ("reward", None, "one of ('neg_loss', 'given', 'none')"),
    ("law", "gradient", "one of ('loss', 'alignment', 'range_test', 'bandit', 'distilled')"),
    ("law", None, "one of ('loss', 'alignment', 'range_test', 'bandit', 'distilled')"),
    ("snapshot", "cpu", "one of (None, 'host', 'device')"),
    *[("cooldown_shape", x, "one of ('linear', '1-sqrt')") for x in ("sqrt", None, 0.5)],
    *[("noise_target", x, "one of ('gradient', 'parameter')") for x in ("weights", None, "grad")],
    *[("every", x, "from 1 to 2**53, or None for epoch-wise control") for x in (0, -1)],
    *[(name, x, "in (0, 1]") for name in BETAS for x in (0, -0.1, 1.0000001, NAN, INF)],
    *[(name, x, "finite and >= 0") for name in GAINS for x in (-1e-9, NAN, INF, -INF)],
    *[
        ("lr_bounds", x, "0 < low <= high, both finite")
        for x in ((0.0, 1.0), (-1.0, 1.0), (2.0, 1.0), (1.0, INF), (NAN, 1.0), (1.0, NAN))
    ],
    *[
        ("momentum_bounds", x, "0 < low <= high < 1")
        for x in ((0.0, 0.9), (0.9, 1.0), (0.95, 0.9), (-0.5, 0.9), (NAN, 0.9), (0.5, NAN))
    ],
    *[
        ("noise_bounds", x, "0 <= low <= high, both finite")
        for x in ((-0.1, 0.1), (0.2, 0.1), (0.0, INF), (NAN, 0.1), (0.0, NAN))
    ],
    *[("noise_floor", x, "in (0, 0.1], noise_bounds[1] being 0.1") for x in (0.0, -0.1, 0.2, NAN)],
    *[
        ("lr_change", x, "0 < down <= 1 <= up, both finite")
        for x in ((0.0, 1.2), (1.1, 1.2), (0.9, 0.99), (0.9, INF), (-0.9, 1.2), (NAN, 1.2))
    ],
    *[("spike_clip", x, "> 0 (math.inf: no clipping)") for x in (0.0, -5.0, NAN)],
    *[
        (name, x, "(centre, slope), both finite, slope > 0")
        for name in ("plateau_trend", "plateau_variance")
        for x in ((0.1, 0.0), (0.1, -0.05), (NAN, 0.05), (INF, 0.05), (0.1, INF), (0.1, NAN))
    ],
    *[
        ("horizon", x, "from 1 to 2**53, 'auto' or None where nobody can say")
        for x in (0, -1, 2**53 + 1)
    ],
    *[("cooldown", x, "a share of the horizon, in [0, 1)") for x in (-0.1, 1.0, 1.1, NAN, INF)],
    *[("acquire_from", x, "finite and > 0") for x in (0.0, -1e-3, INF, NAN)],
    *[
        ("reuse", x, "(minibatches, epochs), each from 1, and 2**53 updates")
        for x in ((0, 4), (4, 0), (4, -1), (2**27, 2**27))
    ],
]


WHOLE = "a whole number of steps or None"
NOT_A_NUMBER = ["fast", "0.05", [0.1], (0.1, 0.2), 0.1j, True]
OF_ANOTHER_TYPE: list[tuple[str, Any, str]] = [
    *[(name, x, "a number") for name in NUMBERS for x in NOT_A_NUMBER],
    *[(name, None, "a number") for name in (*BETAS, *GAINS, "spike_clip")],
    *[("every", x, WHOLE) for x in (2.5, True, "10", NAN)],
    *[("horizon", x, WHOLE.replace(" or", ", 'auto' or")) for x in (2.5, True, "10", NAN)],
    *[("reuse", x, "two whole numbers, (minibatches, epochs)") for x in (4, 0.5, (4,), (4, 4, 4))],
    *[
        (name, x, "a pair of numbers")
        for name in PAIRS
        for x in (0.5, (0.5,), (0.1, 0.5, 0.9), object)
    ],
]


@pytest.mark.parametrize("name", ["every", "horizon"])
@pytest.mark.parametrize("value", [np.int64(20), np.uint8(20), torch.tensor(20)], ids=repr)
def test_a_whole_number_may_be_of_any_type_that_has_an_index(name: str, value: Any) -> None:
    control = alone(name, value)
    assert type(getattr(control, name)) is int
    assert control == alone(name, 20)


def test_a_whole_float_is_told_how_to_become_one() -> None:
    expected = r"every must be a whole number of steps or None, got 10\.0: give int\(10\.0\)"
    with pytest.raises(TypeError, match=expected):
        Control(every=10.0)  # type: ignore[arg-type]


def test_out_of_range() -> None:
    for error, refused in ((ValueError, OUT_OF_RANGE), (TypeError, OF_ANOTHER_TYPE)):
        for name, value, expected in refused:
            message = f"Control.{name} must be {expected}, got {value!r}"
            with pytest.raises(error, match=f"^{re.escape(message)}$"):
                alone(name, value)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("value", [("low", 0.5), (0.5, None), (0.1, [1.0])], ids=repr)
def test_pair_of_other_things(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"^Control\.{name} must be a number, got "):
        alone(name, value)


def test_a_change_that_is_refused_leaves_the_record() -> None:
    control = Control(every=20, lr_bounds=(1e-5, 1e-2))
    with pytest.raises(ValueError, match="lr_bounds"):
        dataclasses.replace(control, lr_bounds=(1.0, 0.5))
    with pytest.raises(dataclasses.FrozenInstanceError):
        control.every = 10  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional"):
        Control("replace")  # type: ignore[misc]
    message = r"noise_floor stands in for a lower bound of 0, got 0\.05 beside noise_bounds=\(0\.01"
    with pytest.raises(ValueError, match=message):
        Control(noise_bounds=(0.01, 0.1), noise_floor=0.05)
    assert control == Control(every=20, lr_bounds=(1e-5, 1e-2))


@pytest.mark.parametrize(("name", "value"), [("acquire_from", 1e-5), ("reuse", (4, 4))])
def test_the_law_of_losses_has_no_use_for_what_is_the_alignment_laws(name: str, value: Any) -> None:
    message = (
        f"Control.{name} is the alignment law's, got {value!r} beside law='loss': use "
        f"Control(law='alignment', {name}={value!r}), or leave it out"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Control(**{name: value})
    # The message's own advice works.
    assert getattr(Control(**{"law": "alignment", name: value}), name) == value


def test_reuse_is_what_find_lr_cannot_do_and_climb_can() -> None:
    with pytest.raises(ValueError, match=r"Use Control\.climb\(horizon, reuse=\(4, 10\)\)$"):
        dataclasses.replace(Control.find_lr(1000), reuse=(4, 10))
    assert Control.climb(1000, reuse=(4, 10)).reuse == (4, 10)


@pytest.mark.parametrize(
    "arguments",
    [
        *[{name: x} for name in BETAS for x in (1.0, 1, 1e-9)],
        *[{name: x} for name in GAINS for x in (0.0, 0, 10.0)],
        {"every": 1},
        {"every": None},
        {"lr_bounds": (1.0, 1.0)},
        {"momentum_bounds": (0.9, 0.9)},
        {"noise_bounds": (0.0, 0.0)},
        {"noise_bounds": (0.1, 0.1)},
        {"noise_floor": 0.1},
        {"lr_change": (1.0, 1.0)},
        {"spike_clip": INF},
        {"plateau_trend": (0.0, 1e-9)},
        {"plateau_variance": (-1.0, 0.2)},
        *[{"law": "alignment", "horizon": x} for x in (1, 2**53, None)],
        *[{"law": "alignment", "horizon": 10, "cooldown": x} for x in (0, 0.0, 0.5, 0.99)],
        {"law": "alignment", "acquire_from": 1e-300},
        *[{"law": law, "horizon": 10, "cooldown_shape": "1-sqrt"} for law in ("loss", "bandit")],
        # As harmless without a horizon as any default.
        {"law": "loss", "cooldown": 0.2},
    ],
    ids=str,
)
def test_edges_are_inside(arguments: dict[str, Any]) -> None:
    control = Control(**arguments)
    assert {name: getattr(control, name) for name in arguments} == arguments


def test_defaults_are_the_contract() -> None:
    assert dataclasses.asdict(Control()) == {
        "mode": "replace",
        "every": 10,
        "groups": "one",
        "reward": "neg_loss",
        "gradient_sensors": False,
        "beta_loss": 0.02,
        "beta_reward": 0.02,
        "beta_variance": 0.02,
        "gain_lr_reward": 0.05,
        "gain_lr_loss": 0.05,
        "gain_momentum_reward": 0.02,
        "gain_momentum_loss": 0.04,
        "gain_noise_plateau": 0.08,
        "gain_noise_reward": 0.06,
        "law": "loss",
        "horizon": None,
        "cooldown": 0.4,
        "cooldown_shape": "linear",
        "acquire_from": None,
        "reuse": None,
        "snapshot": None,
        "arms": None,
        "window": None,
        "discount": None,
        "weights": None,
        "lr_bounds": None,
        "momentum_bounds": None,
        "noise_bounds": (0.0, 0.1),
        "noise_target": "gradient",
        "noise_floor": None,
        "lr_change": (0.9, 1.2),
        "spike_clip": 5.0,
        "plateau_trend": (0.6, 0.2),
        "plateau_variance": (1.5, 0.1),
    }


@pytest.mark.parametrize("name", PAIRS)
def test_lists_are_pairs(name: str) -> None:
    value = (0.5, 2) if name == "lr_change" else (0.25, 0.5)
    with_tuple, with_list = (alone(name, x) for x in (value, list(value)))
    assert with_list == with_tuple
    assert hash(with_list) == hash(with_tuple)
    stored = getattr(with_list, name)
    assert isinstance(stored, tuple)
    assert [type(x) for x in stored] == [float, float]


# The bounds in force


ALIGNED = {"law": "alignment"}
BOUNDED = {"lr_bounds": (1e-5, 1e-4)}
NOISE = {"noise_bounds": (0.0, 0.2), "noise_floor": 0.01}


@pytest.mark.parametrize(
    ("arguments", "lr", "momentum", "expected"),
    [
        # 0.5/100 and 10·0.5; σ's floor is 0.1/1000; α starts at the rate itself.
        (
            {},
            0.5,
            0.9,
            {
                "lr_min": 0.005,
                "lr_max": 5.0,
                "momentum_min": 0.85,
                "momentum_max": 0.99,
                "noise_min": 0.0,
                "noise_max": 0.1,
                "noise_floor": 1e-4,
                "lr_acquire": 0.5,
            },
        ),
        *(
            ({"mode": "modulate"}, lr, 0.9, {"lr_min": 0.1, "lr_max": 10.0})
            for lr in (0.5, 0.0, 1e-30, 1e30)
        ),
        *((BOUNDED, lr, 0.9, {"lr_min": 1e-5, "lr_max": 1e-4}) for lr in (1e-5, 1e-4)),
        ({"momentum_bounds": (0.5, 0.95)}, 1.0, 0.9, {"momentum_min": 0.5, "momentum_max": 0.95}),
        (NOISE, 1.0, 0.9, {"noise_min": 0.0, "noise_max": 0.2, "noise_floor": 0.01}),
        ({"noise_bounds": (0.05, 0.2)}, 1.0, 0.9, {"noise_min": 0.05, "noise_floor": 0.05}),
        # Default bounds of the momentum widen.
        ({}, 1.0, 0.5, {"momentum_min": 0.5, "momentum_max": 0.99}),
        ({}, 1.0, 0.995, {"momentum_min": 0.85, "momentum_max": 0.995}),
        ({}, 1.0, 0.0, {"momentum_min": 0.0, "momentum_max": 0.99}),
        # The alignment law looks over decades.
        *(
            (ALIGNED | arguments, 0.5, 0.9, {"lr_min": low, "lr_max": high, "lr_acquire": begin})
            for arguments, low, high, begin in (
                ({}, 1e-4 * 0.5, 1e4 * 0.5, 0.005),
                ({"mode": "modulate"}, 1e-4, 1e4, 0.01),
                ({"acquire_from": 3.0}, 1e-4 * 0.5, 1e4 * 0.5, 3.0),
                ({"mode": "modulate", "acquire_from": 3.0}, 1e-4, 1e4, 3.0),
                ({"acquire_from": 1e-4 * 0.5}, 1e-4 * 0.5, 1e4 * 0.5, 1e-4 * 0.5),
                # A hundredth of lr is below the bound that was given: the search starts there.
                ({"lr_bounds": (0.1, 2.0)}, 0.1, 2.0, 0.1),
                ({"lr_bounds": (0.5, 0.5)}, 0.5, 0.5, 0.5),
            )
        ),
        # The range test's are rates, wherever the user's lies.
        *(
            (
                {"law": "range_test"} | arguments,
                20.0,
                0.9,
                {"lr_min": low, "lr_max": high, "lr_acquire": begin, "lr_floor": floor},
            )
            for arguments, low, high, begin, floor in (
                ({}, 1e-6, 3.0, 1e-6, 1e-4),
                ({"mode": "modulate"}, 5e-8, 0.15, 5e-8, 5e-6),
                ({"acquire_from": 1e-8}, 1e-8, 3.0, 1e-8, 1e-6),
                ({"acquire_from": 1e-3}, 1e-6, 3.0, 1e-3, 0.1),
                ({"lr_bounds": (1e-3, 0.1)}, 1e-3, 0.1, 1e-3, 1e-3),
                ({"lr_bounds": (1e-5, 5e-5)}, 1e-5, 5e-5, 1e-5, 5e-5),
                # No room for a ramp: it starts, and stays, at what was given.
                ({"horizon": 159}, 1e-6, 20.0, 20.0, 1e-4),
                ({"horizon": 400, "cooldown": 0.91}, 1e-6, 20.0, 20.0, 1e-4),
            )
        ),
    ],
    ids=str,
)
def test_limits(
    arguments: dict[str, Any], lr: float, momentum: float, expected: dict[str, float]
) -> None:
    limits = Control(**arguments).limits(lr, momentum)
    assert {name: getattr(limits, name) for name in expected} == pytest.approx(expected, rel=1e-15)


FACTOR = r"the factor 1\.0 of Control\(mode='modulate'\) must start inside.*\[2\.0, 3\.0\]"
FOUND = r"^acquire_from must start inside .*, got {}: widen the bounds or move"


@pytest.mark.parametrize(
    ("arguments", "lr", "momentum", "message"),
    [
        (BOUNDED, 1e-3, 0.9, r"lr must start inside.*\[1e-05, 0\.0001\], got 0\.001"),
        (BOUNDED, 1e-6, 0.9, r"lr must start inside.*got 1e-06"),
        ({"mode": "modulate", "lr_bounds": (2.0, 3.0)}, 1e-3, 0.9, FACTOR),
        ({"momentum_bounds": (0.8, 0.85)}, 1e-3, 0.9, r"betas\[0\] must start.*got 0\.9"),
        ({"momentum_bounds": (0.8, 0.85)}, 1e-3, 0.5, r"betas\[0\] must start.*got 0\.5"),
        ({}, 0.0, 0.9, r"lr must be finite and > 0 with .*'replace'.*got 0\.0"),
        ({}, INF, 0.9, r"lr must be finite and > 0 .*got inf"),
        ({}, NAN, 0.9, r"lr must be finite and > 0 .*got nan"),
        # 1e-4 times the one is 0, 1e4 times the other is infinite.
        (ALIGNED, 1e-322, 0.9, "leave the range of numbers: give Control"),
        (ALIGNED, 1e305, 0.9, "leave the range of numbers: give Control"),
        ({"law": "range_test", "horizon": 9, "lr_bounds": (1e-3, 0.1)}, 0.2, 0.9, r"lr must start"),
        (ALIGNED | {"acquire_from": 1e-7}, 1e-2, 0.9, FOUND.format("1e-07")),
        (ALIGNED | {"acquire_from": 1e5}, 1e-2, 0.9, FOUND.format("100000.0")),
        (
            ALIGNED | {"acquire_from": 0.5, "lr_bounds": (1e-3, 0.1)},
            1e-2,
            0.9,
            FOUND.format("0.5"),
        ),
        (
            ALIGNED | {"acquire_from": 1e-5, "mode": "modulate"},
            1e-2,
            0.9,
            FOUND.format("1e-05"),
        ),
    ],
    ids=str,
)
def test_start_outside(arguments: dict[str, Any], lr: float, momentum: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Control(**arguments).limits(lr, momentum)


def test_a_refused_start_changes_no_parameter() -> None:
    param = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    param.grad = torch.tensor([3.0, 4.0])
    control = Control(lr_bounds=(1e-5, 1e-4))
    with pytest.raises(ValueError, match="must start inside"):
        AdaptiveAdamW([param], lr=1e-3, control=control)
    assert param.tolist() == [1.0, -2.0]
    assert param.grad.tolist() == [3.0, 4.0]
    # The same tensors and the same record serve a start that is inside.
    AdaptiveAdamW([param], lr=1e-4, control=control).step()
    assert param.tolist() != [1.0, -2.0]


# Presets (method.md#presets) and ablations (method.md#study)


def changed(control: Control) -> dict[str, Any]:
    """What a record has otherwise than the defaults."""
    return {
        field.name: getattr(control, field.name)
        for field in dataclasses.fields(Control)
        if getattr(control, field.name) != getattr(Control(), field.name)
    }


STILL = {"noise_bounds": (0.0, 0.0)} | dict.fromkeys(GAINS, 0.0)
EPOCHS = {"every": None, "beta_loss": 0.3, "beta_reward": 0.3, "beta_variance": 0.3}
FINDING = STILL | {"law": "range_test"}
CLIMBING = STILL | {"law": "alignment"}


@pytest.mark.parametrize(
    ("control", "expected"),
    [
        (Control.gpt2_small(), {"lr_bounds": (1e-5, 2e-4), "momentum_bounds": (0.85, 0.99)}),
        (Control.production(), {"lr_change": (0.95, 1.05)}),
        (Control.epochwise(), EPOCHS),
        (Control.frozen(), STILL | {"mode": "modulate"}),
        (Control.find_lr(), FINDING),
        (Control.find_lr(1000), FINDING | {"horizon": 1000}),
        (Control.climb(), CLIMBING),
        (Control.climb(1000), CLIMBING | {"horizon": 1000}),
    ],
)
def test_presets_are_what_the_specification_says_and_nothing_else(
    control: Control, expected: dict[str, Any]
) -> None:
    assert changed(control) == expected


@pytest.mark.parametrize("preset", ["gpt2_small", "production", "epochwise"])
def test_a_preset_quotes_its_line(preset: str) -> None:
    assert "The specification's line" in getattr(Control, preset).__doc__


FROZEN = dataclasses.asdict(Control.frozen())


@pytest.mark.parametrize(
    ("control", "frozen", "rests", "needs_no_loss"),
    [
        (Control(), False, False, False),
        (Control.frozen(), True, True, True),
        *((Control(**(FROZEN | {name: 0.01})), False, False, False) for name in GAINS),
        (Control(law="alignment"), False, False, True),
        # No gain is above 0, yet α is to move, and nobody need tell it a loss.
        (Control(**(FROZEN | {"mode": "replace", "horizon": 9})), False, True, True),
        (Control(**(FROZEN | {"horizon": 9})), True, True, True),
        (Control.find_lr(), False, True, True),
        (Control.climb(), False, True, True),
    ],
)
def test_who_needs_a_loss(control: Control, frozen: bool, rests: bool, needs_no_loss: bool) -> None:
    found = (control.is_frozen, control.rests, control.needs_no_loss)
    assert found == (frozen, rests, needs_no_loss)


@pytest.mark.parametrize(
    ("control", "anneals"),
    [
        *((make(9), True) for make in (Control.find_lr, Control.climb)),
        *((Control(law=law, horizon=9), True) for law in ("loss", "bandit")),
        (Control(horizon="auto"), True),
        (Control(), False),
        (Control(horizon=9, cooldown=0), False),
        (Control(horizon=9, mode="modulate"), False),
        (Control.distilled(9), False),
    ],
)
def test_who_anneals_is_warned_of_steps_beyond_the_horizon(control: Control, anneals: bool) -> None:
    assert control.anneals == anneals


def test_epochwise_moves_when_told() -> None:
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = AdaptiveAdamW([param], lr=1e-3, control=Control.epochwise())
    for loss in (3.0, 2.5, 2.0):
        param.grad = torch.ones(3)
        optimizer.step()
        optimizer.update(loss)
    assert optimizer.knobs()["updates"] == 3
    assert optimizer.knobs()["lr"] > 1e-3


def run(
    control: Control, losses: list[float], lr: float = 1e-3, **options: Any
) -> dict[str, float]:
    """The knobs after so many steps on these losses, and on `reward(step)` where it is given."""
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = AdaptiveAdamW([param], lr=lr, control=control)
    for t, loss in enumerate(losses):
        param.grad = torch.ones(3)
        optimizer.observe(loss, **({"reward": options["reward"](t)} if options else {}))
        optimizer.step()
    return optimizer.knobs()


FALLING, RISING = [9.0 - 0.1 * t for t in range(40)], [1.0 + 0.1 * t for t in range(40)]


def test_loss_only_never_rises() -> None:
    control = Control(reward="none")
    assert run(control, FALLING)["lr"] == pytest.approx(1e-3, rel=1e-12)
    assert run(control, FALLING)["momentum"] == pytest.approx(0.9, rel=1e-12)
    assert run(control, RISING)["lr"] < 1e-3
    assert run(Control(), FALLING)["lr"] > 1e-3


def test_reward_only_does_not_see_the_loss() -> None:
    control = Control(reward="given", gain_lr_loss=0.0, gain_momentum_loss=0.0)
    gained: dict[str, Any] = {"reward": lambda t: 0.1 * t}
    better = run(control, RISING, **gained)
    assert better["lr"] > 1e-3
    assert better["momentum"] > 0.9
    assert better["lr"] == run(control, FALLING, **gained)["lr"]
    assert run(Control(reward="given"), RISING, **gained)["lr"] < better["lr"]


@pytest.mark.parametrize("sigma", [0.03, 0.2])
def test_frozen_noise_is_one_sigma_throughout(sigma: float) -> None:
    control = Control(noise_bounds=(sigma, sigma))
    for losses in (FALLING, RISING, [1.0] * 40):
        assert run(control, losses)["noise"] == sigma
    quiet = Control(gain_noise_plateau=0.0, gain_noise_reward=0.0)
    assert run(quiet, [1.0] * 40)["noise"] == 0
    adaptive = Control(plateau_trend=(10.0, 1.0), plateau_variance=(10.0, 1.0))
    assert run(adaptive, [1.0] * 40)["noise"] > 0


@pytest.mark.parametrize(
    ("horizon", "cooldown", "steps"),
    [
        (None, 0.4, 150),
        (159, 0.4, 0),
        (160, 0.4, 40),
        (270, 0.4, 40),
        (1000, 0.4, 150),
        (20_000, 0.4, 3000),
        (400, 0.89, 60),
        (400, 0.91, 0),
        (160, 0.0, 40),
        (1, 0.0, 0),
    ],
)
def test_the_steps_of_a_search_by_hand(horizon: int | None, cooldown: float, steps: int) -> None:
    control = Control(law="range_test", horizon=horizon, cooldown=cooldown)
    assert search_within(horizon, cooldown) == steps
    assert control.is_too_short == (steps == 0)
    assert not dataclasses.replace(control, law="alignment").is_too_short


@pytest.mark.parametrize("kind", [AdaptiveAdamW, AdaptiveSGD, AdaptiveLion])
def test_a_law_that_finds_the_rate_needs_none(kind: Any) -> None:
    options = {"momentum": 0.9} if kind is AdaptiveSGD else {}
    params = [torch.nn.Parameter(torch.ones(n)) for n in (3, 2)]
    for control in (Control.find_lr(1000), Control.climb(1000)):
        groups = [{"params": params[:1]}, {"params": params[1:], "lr": 3e-3}]
        optimizer = kind(groups, lr=None, control=control, **options)
        assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 3e-3]
    with pytest.raises(ValueError, match=r"must be a number with Control\(law='loss'\), got None"):
        kind(params, lr=None, **options)


@pytest.mark.parametrize("kind", [AdaptiveAdamW, AdaptiveSGD, AdaptiveLion])
def test_a_groups_rate_is_a_number_or_left_out(kind: Any) -> None:
    params = [torch.nn.Parameter(torch.ones(n)) for n in (3, 2)]
    none = {"params": params[1:], "lr": None}
    message = "lr of a parameter group must be a number, got None: leave it out"
    with pytest.raises(ValueError, match=message):
        kind([none, {"params": params[:1]}], lr=1e-3)
    optimizer = kind(params[:1], lr=1e-3)
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group(none)
    params[0].grad = torch.ones(3)
    optimizer.step(loss=1.0)
    assert len(optimizer.param_groups) == 1


def test_a_run_too_short_for_its_search_is_told_so_when_it_is_built() -> None:
    param, control = torch.nn.Parameter(torch.ones(3)), Control.find_lr(40)
    with pytest.warns(UserWarning, match=r"horizon=40, cooldown=0\.4\) leaves the search") as told:
        optimizer = AdaptiveAdamW([param], lr=2e-3, weight_decay=0.0, control=control)
    assert told[0].filename == __file__
    for _ in range(10):
        param.grad = torch.ones(3)
        optimizer.step()
    # No search, and a warm-up of 0.15·40 = 6 steps from a tenth: a factor of 10^(1/6) in each.
    warm = sum(10 ** (-j / 6) for j in range(6))
    assert optimizer.knobs()["lr"] == pytest.approx(2e-3)
    assert param.tolist() == pytest.approx([1 - 2e-3 * (4 + warm)] * 3, rel=1e-6)
