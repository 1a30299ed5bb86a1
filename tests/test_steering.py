"""`steer`: the controller over torch's own optimizers, and what it shares with ours."""

from __future__ import annotations

import copy
import math
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from host_waits import AT_HOME, HostWaits
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR
from training import BUSY, assert_differ, assert_same, parameters, quadratic, values

import adaptiverl
from adaptiverl import AdaptiveAdamW, AdaptiveSGD, Control, steer
from adaptiverl.steering import Steering, direction, steering_of
from adaptiverl.steering.direction import Direction

optim = torch.optim
SHORT = pytest.mark.filterwarnings("ignore:.*leaves the search for a learning rate")
SEARCH = Control.find_lr(200)
CONTROLS = {
    "loss": BUSY,
    "parameter noise": Control(every=2, noise_bounds=(0.01, 0.1), noise_target="parameter"),
    "climb": Control.climb(60),
    "ramp": SEARCH,
}


class Run:
    """One or several optimizers over the same parameters, steered together."""

    def __init__(
        self,
        make: Callable[[list[nn.Parameter]], Sequence[optim.Optimizer]],
        control: Control,
        **how: Any,
    ) -> None:
        self.params = parameters((4, 3), (5, 2), (6,))
        self.optimizers = list(make(self.params))
        self.steered = steer(self.optimizers, control, **how)
        self.used: list[float] = []
        for one in self.optimizers:
            one.register_step_pre_hook(self._see)

    def _see(self, one: optim.Optimizer, *_: Any) -> None:
        self.used.append(float(one.param_groups[0]["lr"]))

    def train(self, steps: int, first: int = 0, after: Callable[[], object] | None = None) -> None:
        for step in range(first, first + steps):
            loss = quadratic(self.params, step)
            for one in self.optimizers:
                one.zero_grad()
            loss.backward()
            self.steered.observe(loss)
            for one in self.optimizers:
                one.step()
            if after is not None:
                after()

    def saved(self) -> Any:
        return copy.deepcopy(([o.state_dict() for o in self.optimizers], values(self.params)))

    def load(self, saved: Any) -> None:
        states, at = copy.deepcopy(saved)
        with torch.no_grad():
            for param, value in zip(self.params, at, strict=True):
                param.copy_(value)
        for one, state in zip(self.optimizers, states, strict=True):
            one.load_state_dict(state)


def muon_and_adamw(params: list[nn.Parameter]) -> list[optim.Optimizer]:
    matrices, rest = [p for p in params if p.dim() == 2], [p for p in params if p.dim() != 2]
    return [optim.Muon(matrices, lr=1e-2), optim.AdamW(rest, lr=1e-2)]


def alone(kind: Callable[..., Any], **how: Any) -> Callable[[list[nn.Parameter]], Any]:
    return lambda params: [kind(params, **{"lr": 1e-2, **how})]


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], Any]] = {
    "sgd": alone(optim.SGD, momentum=0.9),
    "sgd without momentum": alone(optim.SGD),
    "adamw": alone(optim.AdamW),
    "adamw, fused": alone(optim.AdamW, fused=True),
    "nadam": alone(optim.NAdam),
    "adafactor": alone(optim.Adafactor),
    "adagrad": alone(optim.Adagrad),
    "rmsprop": alone(optim.RMSprop),
    "muon and adamw": muon_and_adamw,
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


# --- the same controller as ours ------------------------------------------------------------------


SWAYED = Control(every=2, plateau_trend=(10.0, 1.0), plateau_variance=(10.0, 1.0))
LIKE_OURS = {
    "replace": SWAYED,
    "modulate": replace(SWAYED, mode="modulate"),
    "bandit": Control.bandit([SWAYED, replace(SWAYED, every=3)], window=5),
    "pulses": replace(SWAYED, lr_bounds=(1e-8, 1.0)),
}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", LIKE_OURS)
def test_sgd_has_adaptive_sgds_rates(name: str, momentum: float) -> None:
    control = LIKE_OURS[name]
    ours = AdaptiveSGD(parameters((3,)), lr=1e-2, momentum=momentum, control=control, seed=5)
    torchs = optim.SGD(parameters((3,)), lr=1e-2, momentum=momentum)
    steered = steer(torchs, control, seed=5)
    schedules = [ExponentialLR(o, 0.9) for o in (ours, torchs) if name == "modulate"]
    for step in range(30):
        loss = 2.0 + (-1) ** step / (step + 1)  # the same numbers for both, whatever they do
        for one, told in ((ours, ours), (torchs, steered)):
            param = one.param_groups[0]["params"][0]
            param.grad = torch.full_like(param, 0.1 * step)
            told.observe(loss)
            one.step()
            if name == "pulses":
                told.pulse(1.0 + step)
        for schedule in schedules:
            schedule.step()
        assert steered.knobs() == pytest.approx(ours.knobs(), nan_ok=True, rel=0, abs=0)
        pair = [one.param_groups[0]["params"][0] for one in (torchs, ours)]
        torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-6)
    knobs = ours.knobs()
    assert knobs["noise"] > 0, "noise was drawn"
    assert knobs.get("pulse_cuts", 0) > 0 or name != "pulses"
    assert knobs.get("arm_draws", 0) > 4 or name != "bandit"
    assert_same(steered.trace(), ours.trace())


@pytest.mark.parametrize("make", [Control.find_lr, Control.climb])
def test_a_rate_is_found_near_adaptive_adamws(make: Any) -> None:
    def batch(step: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(32, 8, generator=torch.Generator().manual_seed(step))
        return x, torch.tanh(x @ torch.linspace(-1, 1, 24).view(8, 3))

    def trained(of: Callable[[Any], tuple[optim.Optimizer, Any]]) -> dict[str, float]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
        optimizer, told = of(model.parameters())
        for step in range(150):
            x, y = batch(step)
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            optimizer.step()
        knobs: dict[str, float] = told.knobs()
        return knobs

    def ours(params: Any) -> Any:
        optimizer = AdaptiveAdamW(params, lr=1e-4, control=make(250))
        return optimizer, optimizer

    def torchs(params: Any) -> Any:
        optimizer = optim.AdamW(params, lr=1e-4)
        return optimizer, steer(optimizer, make(250))

    expected, found = trained(ours), trained(torchs)
    assert expected["held"] == found["held"] == 1
    # The direction is told from rounded parameters, decay and all: not the same to the bit.
    assert found["alpha"] == pytest.approx(expected["alpha"], rel=0.02)


# --- any optimizer --------------------------------------------------------------------------------


@SHORT
@every_optimizer
@pytest.mark.parametrize("law", CONTROLS)
def test_it_trains_and_resumes_to_the_bit(make: Any, law: str) -> None:
    control, at, steps = CONTROLS[law], 13, 110 if law == "ramp" else 45
    whole = Run(make, control)
    whole.train(at)
    saved = whole.saved()
    whole.train(steps - at, first=at)
    resumed = Run(make, control)
    resumed.load(saved)
    resumed.train(steps - at, first=at)
    assert resumed.used == whole.used[len(whole.used) - len(resumed.used) :]
    assert_same(resumed.saved(), whole.saved())
    assert len(set(whole.used)) > 3, "the rate moved"
    begun, ended = quadratic(parameters((4, 3), (5, 2), (6,)), 0), quadratic(whole.params, 0)
    assert ended < begun, "it trains"
    assert {group["lr"] for one in whole.optimizers for group in one.param_groups} == {1e-2}


@every_optimizer
def test_without_gains_and_noise_it_is_torchs(make: Any) -> None:
    steered = Run(make, Control.frozen())
    steered.train(5)
    params = parameters((4, 3), (5, 2), (6,))
    plain = make(params)
    for step in range(5):
        for one in plain:
            one.zero_grad()
        quadratic(params, step).backward()
        for one in plain:
            one.step()
    assert_same(values(steered.params), values(params))


def test_several_optimizers_decide_once() -> None:
    together = Run(muon_and_adamw, Control(every=2, noise_bounds=(0.0, 0.0)))
    together.train(6)
    assert together.steered.knobs()["step"] == 6
    first, second = together.used[::2], together.used[1::2]
    assert first == second
    assert together.steered.knobs()["updates"] == 3


def test_several_optimizers_are_one_direction() -> None:
    """Two of one kind find what one over all parameters finds."""

    def split(params: list[nn.Parameter]) -> list[optim.Optimizer]:
        return [optim.AdamW(params[:1], lr=1e-2), optim.AdamW(params[1:], lr=1e-2)]

    one, two = (Run(make, Control.climb(40)) for make in (alone(optim.AdamW), split))
    one.train(20)
    two.train(20)
    assert two.used[::2] == pytest.approx(one.used, rel=1e-9)
    assert len(set(one.used)) > 10


def test_a_schedule_is_multiplied_and_never_compounds() -> None:
    run = Run(alone(optim.NAdam), Control(mode="modulate", every=2))
    schedule = CosineAnnealingLR(run.optimizers[0], T_max=20)
    alphas, rates = [], []

    def after() -> None:
        rates.append(schedule.get_last_lr()[0])
        schedule.step()
        alphas.append(run.steered.knobs()["alpha"])

    run.train(12, after=after)
    assert rates == pytest.approx([5e-3 * (1 + math.cos(math.pi * i / 20)) for i in range(12)])
    assert run.used == pytest.approx([lr * a for lr, a in zip(rates, alphas, strict=True)])
    assert len(set(alphas)) > 3


def test_a_rate_in_a_tensor_is_written_in_place() -> None:
    lr, beta = torch.tensor(1e-2), torch.tensor(0.9)
    make = alone(
        optim.Adam, lr=lr, betas=(beta, torch.tensor(0.999)), capturable=False, foreach=False
    )
    run = Run(make, Control(every=1, noise_bounds=(0.0, 0.0)))
    run.train(5)
    group = run.optimizers[0].param_groups[0]
    assert group["lr"] is lr
    assert group["betas"][0] is beta
    assert lr == torch.tensor(1e-2)
    assert beta == torch.tensor(0.9)
    numbers = Run(alone(optim.Adam, foreach=False), Control(every=1, noise_bounds=(0.0, 0.0)))
    numbers.train(5)
    assert run.used == pytest.approx(numbers.used, rel=1e-6)
    assert len(set(numbers.used)) == 5


def test_with_rates_in_tensors_the_steering_reads_no_value() -> None:
    run = Run(alone(optim.Adam, lr=torch.tensor(1e-2), foreach=False), Control.climb(60))
    run.train(3)
    with HostWaits(adaptiverl) as waits:
        for step in range(3, 6):
            quadratic(run.params, step).backward()
            run.optimizers[0].step()
    read = waits.of("adaptiverl")
    assert not [file for file in read if file.startswith("steering/")]
    assert read.keys() <= AT_HOME | {"step/groups.py"}, "a rate that lies on the host is read there"


def test_groups_keep_their_ratio() -> None:
    def two_groups(params: list[nn.Parameter]) -> list[optim.Optimizer]:
        groups: list[Any] = [{"params": params[:1]}, {"params": params[1:], "lr": 3e-2}]
        return [optim.RAdam(groups, lr=1e-2)]

    run = Run(two_groups, Control(every=1, noise_bounds=(0.0, 0.0)))
    seen = []
    run.optimizers[0].register_step_pre_hook(
        lambda one, *_: seen.append([group["lr"] for group in one.param_groups])
    )
    run.train(6)
    assert [second / first for first, second in seen] == pytest.approx([3.0] * 6)
    run.optimizers[0].add_param_group({"params": parameters((2,))})
    run.train(1, first=6)


# --- the search -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [alone(optim.NAdam), alone(optim.Adagrad), muon_and_adamw])
def test_the_range_test_goes_back_and_begins_anew(make: Any) -> None:
    run = Run(make, SEARCH)
    start, untouched = values(run.params), copy.deepcopy(run.optimizers[0].state_dict()["state"])
    for step in range(120):
        run.train(1, first=step)
        if run.steered.knobs()["held"]:
            break
    assert 10 < step < 110
    assert_same(values(run.params), start)
    assert_same(run.optimizers[0].state_dict()["state"], untouched)
    assert all(param.grad is not None for param in run.params), "they are the user's again"
    run.train(1, first=step + 1)
    assert_differ(values(run.params), start)
    assert "search_start" not in run.optimizers[0].state_dict()["adaptive_search"]


def test_a_search_is_saved_alone_too() -> None:
    """For checkpoint libraries that keep `state` and `param_groups` and nothing beside them."""
    whole = Run(alone(optim.NAdam), SEARCH)
    whole.train(9)
    (states,), at = whole.saved()
    states.pop("adaptive_search")
    steering = copy.deepcopy(whole.steered.state_dict())
    resumed = Run(alone(optim.NAdam), SEARCH)
    resumed.load(([states], at))
    resumed.steered.load_state_dict(steering)
    whole.train(60, first=9)
    resumed.train(60, first=9)
    assert_same(resumed.saved(), whole.saved())


def test_a_direction_by_hand() -> None:
    param = nn.Parameter(torch.tensor([1.0, 2.0]))
    other = nn.Parameter(torch.tensor([5.0]))
    groups = [
        {"params": [param], "lr": 0.1},
        {"params": [other], "lr": 0.5, "maximize": True},
    ]
    followed = Direction(seed=0, first=0)
    assert followed.begin_step(groups) is None
    with torch.no_grad():
        param.sub_(0.1 * torch.tensor([3.0, -1.0]))
        other.add_(0.5 * 2.0)
    followed.end_step([0.1, torch.tensor(0.5)], None)
    param.grad, other.grad = torch.tensor([1.0, 4.0]), torch.tensor([10.0])
    sums = followed.begin_step(groups)
    # g·u = 3 − 4 and, uphill being wanted there, −(10·−2); |g|² = 1 + 16 + 100; |u|² = 9 + 1 + 4.
    assert sums is not None
    assert sums.tolist() == pytest.approx([-1 + 20, 117, 14], rel=1e-5)
    skipped = followed.last
    with torch.no_grad():
        param.add_(7)
    followed.end_step([0.1, 0.5], torch.tensor(0.0))
    assert_same(followed.last, skipped)
    other.grad = None
    sums = followed.begin_step(groups)
    assert sums is not None
    assert sums.tolist() == pytest.approx([-1, 17, 14], rel=1e-5)


def test_a_sample_stands_for_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def sums(seed: int) -> Tensor:
        param = nn.Parameter(torch.zeros(50_000))
        param.grad = torch.randn(50_000, generator=torch.Generator().manual_seed(1))
        followed = Direction(seed, first=3)
        followed.begin_step([{"params": [param]}])
        with torch.no_grad():
            noise = torch.randn(50_000, generator=torch.Generator().manual_seed(2))
            param.sub_(param.grad + noise)
        followed.end_step([1.0], None)
        found = followed.begin_step([{"params": [param]}])
        assert found is not None
        return found

    whole = sums(0)
    monkeypatch.setattr(direction, "SAMPLE", 8192)
    assert_same(sums(0), sums(0))
    assert_differ(sums(0), sums(1))
    for seed in range(4):
        torch.testing.assert_close(sums(seed), whole, rtol=0.06, atol=0)


# --- what a step may be ---------------------------------------------------------------------------


def test_a_closure_is_the_step() -> None:
    def trained(in_closure: bool) -> Run:
        run = Run(alone(optim.NAdam), Control(every=1))
        for step in range(6):

            def closure(step: int = step) -> Tensor:
                run.optimizers[0].zero_grad()
                loss = quadratic(run.params, step)
                loss.backward()
                return loss

            if in_closure:
                assert run.optimizers[0].step(closure) > 0  # type: ignore[arg-type, operator]
            else:
                run.steered.observe(closure())
                run.optimizers[0].step()
        return run

    assert_same(trained(True).saved(), trained(False).saved())


def test_a_closure_is_evaluated_once() -> None:
    class Twice(optim.SGD):
        def step(self, closure: Any = None) -> Any:  # type: ignore[override]
            closure()
            return super().step(closure)

    param = nn.Parameter(torch.ones(2))
    steer(Twice([param], lr=0.1))
    optimizer = Twice([nn.Parameter(torch.ones(2))], lr=0.1)
    steer(optimizer)
    with pytest.raises(RuntimeError, match="Twice evaluates its closure more than once"):
        optimizer.step(lambda: torch.tensor(1.0))


def test_a_step_that_calls_its_bases_is_one() -> None:
    optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)  # from now on torch has wrapped its step

    class Derived(optim.SGD):
        def step(self, closure: Any = None) -> Any:  # type: ignore[override]
            return super().step(closure)

    run = Run(alone(Derived), Control(every=1, noise_bounds=(0.0, 0.0)))
    run.train(4)
    assert run.steered.knobs()["step"] == 4
    assert run.optimizers[0].param_groups[0]["lr"] == 1e-2
    plain = Run(alone(optim.SGD), Control(every=1, noise_bounds=(0.0, 0.0)))
    plain.train(4)
    assert_same(values(run.params), values(plain.params))


def test_a_step_that_raises_leaves_the_users_rates_to_the_next() -> None:
    class Fails(optim.SGD):
        fails = False

        def step(self, closure: Any = None) -> Any:  # type: ignore[override]
            if self.fails:
                raise KeyError("halfway")
            return super().step(closure)

    run = Run(alone(Fails), Control(every=1, noise_bounds=(0.0, 0.0)))
    run.train(3)
    run.optimizers[0].fails = True  # type: ignore[attr-defined]
    with pytest.raises(KeyError):
        run.train(1, first=3)
    run.optimizers[0].fails = False  # type: ignore[attr-defined]
    run.train(2, first=4)
    assert run.optimizers[0].param_groups[0]["lr"] == 1e-2
    assert run.used[-1] == pytest.approx(1e-2 * run.steered.knobs()["alpha"] / 1e-2)


@pytest.mark.parametrize("fused", [False, True])
def test_a_scalers_skipped_step_decides_nothing(fused: bool) -> None:
    run = Run(alone(optim.AdamW, fused=fused), Control.climb(40))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    knobs = []
    for step in range(6):
        run.optimizers[0].zero_grad()
        loss = quadratic(run.params, step)
        scaler.scale(loss).backward()
        if step in (2, 3):
            run.params[0].grad.fill_(torch.inf)  # type: ignore[union-attr]
        scaler.step(run.optimizers[0])
        scaler.update()
        knobs.append(run.steered.knobs())
    assert [k["step"] for k in knobs] == [1, 2, 2, 2, 3, 4]
    assert all(torch.isfinite(p).all() for p in run.params)
    assert len({k["alignment"] for k in knobs}) > 2


def test_epoch_wise_control_and_a_reward() -> None:
    control = Control(every=None, reward="given", noise_bounds=(0.0, 0.0))
    optimizer = optim.NAdam(parameters((2,)), lr=1e-2)
    steered = steer(optimizer, control)
    for loss in (2.0, 3.0, 4.0):
        steered.update(loss, reward=-loss)
    assert steered.knobs()["updates"] == 3
    assert steered.knobs()["lr"] < 1e-2
    with pytest.raises(ValueError, match=r"observe\(\) has no effect with Control\(every=None\)"):
        steered.observe(1.0)
    stepwise = steer(optim.NAdam(parameters((2,))))
    with pytest.raises(ValueError, match=r"update\(\) is for Control\(every=None\)"):
        stepwise.update(1.0)


def test_sparse_gradients_are_followed() -> None:
    table = nn.Embedding(6, 2, sparse=True)
    optimizer = optim.SparseAdam(table.parameters(), lr=1e-2)
    steered = steer(optimizer, Control.climb(40))
    for _ in range(8):
        optimizer.zero_grad()
        table(torch.tensor([0, 3])).square().sum().backward()
        optimizer.step()
    assert steered.knobs()["alignment"] > 0.5


# --- the run's length, and letting go -------------------------------------------------------------


def test_an_automatic_horizon() -> None:
    told, auto = (Run(alone(optim.NAdam), Control.climb(x)) for x in (20, "auto"))
    with pytest.raises(ValueError, match=r"horizon='auto'.*set_horizon\(steps\)"):
        auto.train(1)
    auto = Run(alone(optim.NAdam), Control.climb("auto"))
    auto.steered.set_horizon(20)
    told.train(8)
    auto.train(8)
    saved = auto.saved()
    assert saved[0][0]["param_groups"][0]["horizon"] == 20
    resumed = Run(alone(optim.NAdam), Control.climb("auto"))
    resumed.load(saved)
    for run in (told, auto, resumed):
        run.train(12, first=8)
        assert_same(values(run.params), values(told.params))
    with pytest.raises(ValueError, match=r"set_horizon\(9\) is for Control\(horizon='auto'\)"):
        told.steered.set_horizon(9)


def test_an_automatic_horizon_comes_with_the_checkpoint_in_mid_search() -> None:
    whole, resumed = (Run(alone(optim.NAdam), Control.find_lr("auto")) for _ in range(2))
    whole.steered.set_horizon(200)
    whole.train(9)
    resumed.load(whole.saved())  # which nobody told a number
    assert "search_start" in resumed.steered.state_dict()
    whole.train(60, first=9)
    resumed.train(60, first=9)
    assert_same(resumed.saved(), whole.saved())


def test_a_checkpoint_without_a_controller_starts_it_afresh() -> None:
    run = Run(alone(optim.NAdam), Control(every=1))
    plain = copy.deepcopy(optim.NAdam(parameters((4, 3), (5, 2), (6,)), lr=1e-2).state_dict())
    run.train(5)
    assert run.steered.knobs()["alpha"] != 1e-2
    run.optimizers[0].load_state_dict(plain)
    assert run.steered.knobs()["alpha"] == pytest.approx(1e-2)
    assert run.steered.knobs()["step"] == 0


def test_a_damaged_memory_is_refused_and_nothing_changes() -> None:
    run = Run(alone(optim.NAdam), Control(every=1))
    run.train(3)
    (state,), _ = run.saved()
    state["param_groups"][0]["adaptive_state"][0] = 99.0
    before = run.saved()
    with pytest.raises(ValueError, match="nothing was changed"):
        run.optimizers[0].load_state_dict(state)
    assert_same(run.saved(), before)


def put(name: str, value: Any) -> Callable[[Any], None]:
    return lambda search: search.__setitem__(name, value)


def put_in_start(name: str, value: Any) -> Callable[[Any], None]:
    return lambda search: search["search_start"].__setitem__(name, value)


DAMAGED_SEARCHES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "directions": (put("directions", [3]), "directions that must be a list of flat tensors"),
    "start": (put("search_start", None), "search_start that must be a dictionary, got None"),
    "states": (put_in_start("states", []), r"\['states'\] that must be a list of 3, got 0"),
    "no states": (lambda s: s["search_start"].pop("states"), "must be a list of 3, got None"),
    "few": (lambda s: s["search_start"]["params"].pop(), "must be a list of 3, got 2 entries"),
    "shape": (
        put_in_start("params", [torch.zeros(2)] * 3),
        r"\['params'\]\[0\] that must be a tensor of shape \(4, 3\), got one of shape \(2,\)",
    ),
}


@pytest.mark.parametrize(
    ("damage", "message"), DAMAGED_SEARCHES.values(), ids=DAMAGED_SEARCHES.keys()
)
def test_a_damaged_search_is_refused_and_nothing_changes(
    damage: Callable[[Any], Any], message: str
) -> None:
    run = Run(alone(optim.NAdam), SEARCH)
    run.train(3)
    (state,), _ = run.saved()
    alone_state = copy.deepcopy(run.steered.state_dict())
    run.train(3, first=3)
    before, before_alone = run.saved(), copy.deepcopy(run.steered.state_dict())
    damage(state["adaptive_search"])
    damage(alone_state)
    with pytest.raises(ValueError, match=f"{message}.*nothing was changed$"):
        run.optimizers[0].load_state_dict(state)
    with pytest.raises(ValueError, match=f"{message}.*nothing was changed$"):
        run.steered.load_state_dict(alone_state)
    assert_same(run.saved(), before)
    assert_same(run.steered.state_dict(), before_alone)


def test_a_direction_of_other_parameters_counts_as_none() -> None:
    run = Run(alone(optim.NAdam), SEARCH)
    run.train(3)
    (state,), at = run.saved()
    state["adaptive_search"]["directions"] = [torch.zeros(5)]
    run.load(([state], at))
    run.train(3, first=3)
    assert run.steered.knobs()["step"] == 6


@pytest.mark.parametrize("where", [0, 1])
def test_a_group_that_is_added_in_mid_search(where: int) -> None:
    """The others go back to where they were; it stays where it is."""
    later = nn.Parameter(torch.ones(7))
    run = Run(muon_and_adamw, SEARCH)
    start = values(run.params)
    run.train(5)
    if where == 0:
        later = nn.Parameter(torch.ones(2, 2))
    run.optimizers[where].add_param_group({"params": [later], "lr": 1e-2})
    run.train(1, first=5)
    resumed = Run(muon_and_adamw, SEARCH)
    resumed.optimizers[where].add_param_group({"params": [later], "lr": 1e-2})
    resumed.load(run.saved())
    for step in range(6, 120):
        for one in (run, resumed):
            one.train(1, first=step)
        if run.steered.knobs()["held"]:
            break
    for one in (run, resumed):
        assert_same(values(one.params), start)


def test_removed_it_is_torchs_again() -> None:
    run = Run(alone(optim.NAdam), Control(every=1))
    run.train(4)
    optimizer = run.optimizers[0]
    assert steering_of(optimizer) is run.steered
    run.steered.remove()
    assert steering_of(optimizer) is None
    run.used.clear()
    run.train(2, first=4)
    assert run.used == [1e-2, 1e-2]
    assert set(optimizer.state_dict()) == {"state", "param_groups"}
    assert not {"adaptive_state", "horizon"} & set(optimizer.state_dict()["param_groups"][0])
    steer(optimizer)


def test_a_copy_of_an_optimizer_is_not_steered() -> None:
    run = Run(alone(optim.NAdam), Control(every=1))
    run.train(3)
    copied = copy.deepcopy(run.optimizers[0])
    assert steering_of(copied) is None
    again = steer(copied, Control(every=1))
    assert again.knobs()["alpha"] == run.steered.knobs()["alpha"], "its memory is in the groups"


# --- what is refused ------------------------------------------------------------------------------


def wrapped(optimizer: Any) -> Any:
    outer = type("Wrapper", (), {})()
    outer.optimizer = optimizer
    return outer


def test_a_wrapper_is_looked_through() -> None:
    optimizer = optim.SGD(parameters((2,)), lr=0.1)
    assert isinstance(steer(wrapped(wrapped(optimizer))), Steering)
    assert steering_of(optimizer) is not None


def refused() -> Iterator[tuple[str, Callable[[], Any], type[Exception], str]]:
    def sgd(**how: Any) -> Any:
        return optim.SGD(parameters((2,)), **{"lr": 0.1, **how})

    def without_lr() -> Any:
        optimizer = sgd()
        del optimizer.param_groups[0]["lr"]
        return optimizer

    def with_lr(lr: Any) -> Any:
        optimizer = sgd()
        optimizer.param_groups[0]["lr"] = lr
        return optimizer

    def load_horizon(optimizer: Any) -> None:
        steer(optimizer, Control.climb("auto"))
        state = optimizer.state_dict()
        state["param_groups"][0]["horizon"] = "x"
        optimizer.load_state_dict(state)

    def added_half() -> None:
        optimizer = sgd()
        steer(optimizer, Control.climb(10_000))
        optimizer.add_param_group({"params": half})
        optimizer.step()

    def steered() -> Any:
        optimizer = sgd()
        steer(optimizer)
        return optimizer

    half = [nn.Parameter(torch.ones(2, dtype=torch.bfloat16))]
    yield "model", lambda: steer(nn.Linear(1, 1)), TypeError, "takes a torch.optim.Optimizer"  # type: ignore[arg-type]
    yield "nothing", lambda: steer([]), ValueError, "got an empty list"
    yield "twice", lambda: steer([(o := sgd()), o]), ValueError, "the same optimizer twice"
    yield "ours", lambda: steer(AdaptiveAdamW(parameters((2,)))), ValueError, "has a controller of"
    yield (
        "steered",
        lambda: steer(steered()),
        ValueError,
        r"SGD that is steered already.*remove\(\)",
    )
    yield "lbfgs", lambda: steer(optim.LBFGS(parameters((2,)))), ValueError, "not take LBFGS"
    yield "no lr", lambda: steer(without_lr()), ValueError, "group 0 has no lr"
    yield "text", lambda: steer(with_lr("x")), ValueError, "group 0 has lr='x': give it a number"
    yield (
        "memory of nothing",
        lambda: steer(sgd()).load_state_dict({"state": {}}),
        ValueError,
        r"got the keys \['state'\].*nothing was changed",
    )
    yield "a list", lambda: steer(sgd()).load_state_dict([]), TypeError, "dictionary, got list"  # type: ignore[arg-type]
    for name, copied in (("copied", copy.deepcopy), ("pickled", pickle.dumps)):
        yield name, partial(copied, steer(sgd())), TypeError, "neither copied nor pickled"
    yield "horizon", partial(load_horizon, sgd()), ValueError, "horizon of group 0 must be a whole"
    yield "half later", added_half, ValueError, "torch.bfloat16 rounds most of it away"
    yield "zero", lambda: steer(sgd(lr=0.0)), ValueError, r"lr must be finite and > 0"
    yield "control", lambda: steer(sgd(), 3), TypeError, "control must be a Control, got 3"  # type: ignore[arg-type]
    find = partial(steer, optim.SGD(half, lr=0.1), Control.climb(10))
    yield "half", find, ValueError, "torch.bfloat16 rounds most of it away"


@pytest.mark.parametrize(
    ("call", "error", "message"), [pytest.param(*rest, id=name) for name, *rest in refused()]
)
def test_what_is_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_what_is_refused_is_not_touched() -> None:
    good, bad = optim.SGD(parameters((2,)), lr=0.1), optim.LBFGS(parameters((2,)))
    with pytest.raises(ValueError, match=re.escape("LBFGS")):
        steer([good, bad])
    assert steering_of(good) is None
    assert not good._optimizer_step_pre_hooks
    assert "adaptive_state" not in good.param_groups[0]
