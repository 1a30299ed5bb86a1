"""A controller for each parameter group, `Control(groups="own")` (method.md#groups)."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import recorded_graph
import torch
from rank_jobs import BATCH, Products, ZeroRedundancyOptimizer, coefficients
from ranks import Crew, bits, counted_collectives
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from training import assert_differ, assert_same

from adaptiverl import AdaptiveAdamW, AdaptiveLion, AdaptiveSGD, Control, steer
from adaptiverl.step import memory

SGD = partial(AdaptiveSGD, momentum=0.9)
KINDS = {"adamw": AdaptiveAdamW, "sgd": SGD, "lion": AdaptiveLion}
FIND = Control.climb(400, groups="own")
SILENT = Control(groups="own", noise_bounds=(0.0, 0.0))
NOISY = Control(groups="own", every=3, noise_bounds=(0.05, 0.1))
STEPS = 60


class Run:
    """Two tensors of one loss, whose curvatures are far apart, so that their rates part."""

    def __init__(
        self,
        control: Control,
        kind: Any = AdaptiveAdamW,
        rates: Sequence[float] = (0.01, 0.03),
        **options: Any,
    ) -> None:
        generator = torch.Generator().manual_seed(1)
        self.net = nn.Module()
        for name, size in (("first", 40), ("second", 17)):
            value = torch.randn(size, generator=generator)
            self.net.register_parameter(name, nn.Parameter(value))
        self.params = list(self.net.parameters())
        groups = [{"params": [p], "lr": lr} for p, lr in zip(self.params, rates, strict=True)]
        self.optimizer = kind(groups, lr=0.01, control=control, **options)
        self.steps = 0

    def gradients(self) -> float:
        """A noisy bowl's at this step; its loss."""
        generator = torch.Generator().manual_seed(100 + self.steps)
        loss = torch.zeros(())
        for param, curvature in zip(self.params, (1.0, 50.0), strict=True):
            target = torch.randn(param.shape, generator=generator) * 0.3
            loss = loss + curvature * ((param - target) ** 2).mean()
        self.optimizer.zero_grad()
        loss.backward()
        return float(loss.detach())

    def step(self, count: int = 1) -> Run:
        for _ in range(count):
            loss = self.gradients()
            self.optimizer.step(loss=loss)
            self.steps += 1
        return self

    def end(self) -> list[Tensor]:
        memories = [one.memory.clone() for one in self.optimizer._controllers]
        return [p.detach().clone() for p in self.params] + memories


class Apart:
    """The same by an optimizer of each tensor's own, which hear the same losses."""

    def __init__(self, control: Control, kind: Any) -> None:
        self.run = Run(control, kind)
        single = replace(control, groups="one")
        pairs = zip(self.run.params, (0.01, 0.03), strict=True)
        self.each = [kind([p], lr=lr, control=single) for p, lr in pairs]

    def step(self, count: int) -> None:
        for _ in range(count):
            loss = self.run.gradients()
            for optimizer in self.each:
                optimizer.step(loss=loss)
            self.run.steps += 1

    def end(self) -> list[Tensor]:
        memories = [one._controller.memory.clone() for one in self.each]
        return [p.detach().clone() for p in self.run.params] + memories


# What it is


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("law", ["alignment", "loss", "bandit"])
def test_groups_move_as_optimizers_of_their_own_that_hear_the_same_losses(
    kind: Any, law: Any
) -> None:
    control = FIND if law == "alignment" else replace(SILENT, law=law)
    together, apart = Run(control, kind), Apart(control, kind)
    together.step(STEPS)
    apart.step(STEPS)
    assert_same(together.end(), apart.end())
    if control.finds_lr:
        first, second = (together.optimizer.knobs(g)["alpha"] for g in (0, 1))
        assert second / first != pytest.approx(3), "the rates did not part: a test of nothing"


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("control", [FIND, NOISY], ids=["alignment", "noise"])
def test_of_one_group_it_is_the_one_controller_to_the_bit(kind: Any, control: Control) -> None:
    ends = []
    for choice in ("one", "own"):
        run = Run(replace(control, groups=choice), kind)
        params, options = run.params, {"control": replace(control, groups=choice), "seed": 5}
        run.optimizer = kind(params, lr=0.02, max_grad_norm=1.0, **options)
        ends.append(run.step(20).end())
    assert_same(*ends)


@pytest.mark.parametrize("target", ["gradient", "parameter"])
def test_the_noise_of_a_parameter_is_what_it_is_under_one_controller(target: Any) -> None:
    """Losses alone move all controllers alike, so that each element of noise can be compared."""
    runs = [
        Run(replace(NOISY, groups=choice, noise_target=target), seed=7).step(20)
        for choice in ("one", "own")
    ]
    assert_same(*([p.detach() for p in run.params] for run in runs))
    assert runs[0].optimizer.knobs()["noise"] > 0


def test_clipping_is_by_the_norm_of_all_groups() -> None:
    ends = []
    for choice in ("one", "own"):
        run = Run(replace(Control(), groups=choice), max_grad_norm=0.1)
        ends.append([p.detach() for p in run.step(5).params])
    assert_same(*ends)


def test_released_gradients_are_stepped_by_their_groups_controllers() -> None:
    whole, released = Run(FIND), Run(FIND)
    released.optimizer.release_gradients(released.net)
    for run in (whole, released):
        for _ in range(STEPS):
            # Told before the backward pass, when gradients are released: the law of losses rests.
            run.gradients()
            run.optimizer.step()
            run.steps += 1
    assert_same(whole.end(), released.end())


def test_epochwise_every_controller_hears_the_loss() -> None:
    run = Run(Control(groups="own", every=None, beta_loss=0.3))
    for loss in (3.0, 2.0, 1.5, 2.5):
        run.optimizer.update(loss)
    first, second = (run.optimizer.knobs(g) for g in (0, 1))
    assert (first["updates"], second["updates"]) == (4, 4)
    assert second["alpha"] == pytest.approx(3 * first["alpha"]) != 0.03


def test_bounds_are_those_of_each_groups_own_rate() -> None:
    """One controller bounds the first group's rate; here no group's leaves them."""
    bounds = Control(groups="own", lr_bounds=(0.009, 0.031), every=1, gain_lr_loss=1.0)
    run = Run(bounds).step(30)
    for group in (0, 1):
        assert 0.009 <= run.optimizer.knobs(group)["lr"] <= 0.031


def test_a_step_that_a_scaler_skips_changes_no_controller() -> None:
    run = Run(FIND).step(3)
    before = run.end()
    run.gradients()
    run.optimizer.grad_scale, run.optimizer.found_inf = torch.ones(()), torch.ones(())
    run.optimizer.step(loss=9.0)
    assert_same(run.end(), before)
    run.optimizer.found_inf = torch.zeros(())
    run.gradients()
    run.optimizer.step(loss=9.0)
    assert [run.optimizer.knobs(g)["loss"] for g in (0, 1)] == [9.0, 9.0]


def test_a_graph_captures_a_step_of_all_controllers() -> None:
    """Nothing of it is the host's: replays are plain steps, to the bit."""
    ends = []
    with recorded_graph.stand_in():
        for graphed in (False, True):
            run = Run(replace(NOISY, law="alignment", horizon=400), max_grad_norm=1.0)
            for place in (0, 1):
                run.optimizer._log.announcements_of(place)._silent = True  # it would wait
            run.step()
            loss = torch.tensor(2.0)

            def work(run: Run = run, loss: Tensor = loss) -> None:
                run.optimizer.observe(loss)
                run.optimizer.step()

            take: Callable[[], Any] = work
            if graphed:
                take = recorded_graph.capture(work, run.optimizer, loss).replay
            for n in range(8):
                loss.fill_(2.0 - n / 8)
                take()
            ends.append(run.end())
    assert_same(*ends)


# What the user asks


def test_knobs_and_trace_are_each_groups() -> None:
    run = Run(replace(FIND, every=5)).step(STEPS)
    for group, rate in enumerate((0.01, 0.03)):
        knobs, trace = run.optimizer.knobs(group), run.optimizer.trace(group)
        assert trace["lr"][-1] == knobs["alpha"] == pytest.approx(knobs["lr"])
        assert run.optimizer.knobs(group)["alpha"] != rate
    assert run.optimizer.knobs() == run.optimizer.knobs(0)
    assert_differ(run.optimizer.trace(0)["lr"], run.optimizer.trace(1)["lr"])


def test_with_one_controller_a_group_has_its_rate_and_the_sensors_of_all() -> None:
    run = Run(Control()).step(20)
    first, second = (run.optimizer.knobs(g) for g in (0, 1))
    assert second["lr"] == pytest.approx(3 * first["lr"])
    assert {**second, "lr": 0} == {**first, "lr": 0}


def test_a_group_may_be_told_by_any_whole_number() -> None:
    run = Run(FIND).step()
    assert run.optimizer.knobs(torch.tensor(1)) == run.optimizer.knobs(1)


@pytest.mark.parametrize("group", [2, -1, True, "1"])
@pytest.mark.parametrize("ask", ["knobs", "trace"])
def test_a_group_that_there_is_not_is_refused(ask: str, group: Any) -> None:
    with pytest.raises(ValueError, match=rf"{ask}\(group\) .* from 0 to 1, got {group!r}"):
        getattr(Run(FIND).optimizer, ask)(group)


def test_what_is_found_is_said_with_its_group(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "adaptiverl"):
        Run(Control.climb(40, groups="own")).step(42)
    lines = [record.getMessage() for record in caplog.records]
    held = [line for line in lines if "holds the learning rate" in line]
    assert sorted(line.split(" holds")[0] for line in held) == [
        "AdaptiveAdamW (parameter group 0)",
        "AdaptiveAdamW (parameter group 1)",
    ]
    assert len([line for line in lines if "beyond Control(horizon=40)" in line]) == 1


def test_a_range_test_and_steer_are_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"got 'own'.*Control.climb\(horizon, groups='own'\)"):
        replace(Control.find_lr(1000), groups="own")
    with pytest.raises(ValueError, match=r"Control.groups must be one of .*, got 'all'"):
        Control(groups="all")  # type: ignore[arg-type]
    plain = torch.optim.Adam([nn.Parameter(torch.ones(2))], lr=0.1)
    with pytest.raises(ValueError, match=r"got Control\(groups='own'\): steer several"):
        steer(plain, FIND)


def test_a_group_that_starts_outside_the_bounds_is_named_and_not_added() -> None:
    control = Control(groups="own", lr_bounds=(1e-3, 2e-2))
    with pytest.raises(ValueError, match=r"parameter group 1, .*\[0.001, 0.02\], got 0.03"):
        Run(control)
    run = Run(control, rates=(0.01, 0.01))
    with pytest.raises(ValueError, match="parameter group 2, "):
        run.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": 1.0})
    assert len(run.optimizer.param_groups) == len(run.optimizer._controllers) == 2


@pytest.mark.parametrize("groups", ["one", "own"])
@pytest.mark.parametrize(
    ("betas", "message"), [((1.0, 0.9), r"betas\[0\] .* got 1.0"), ((0.9, -1), r"betas\[1\]")]
)
def test_a_group_whose_momentum_is_none_is_not_added(
    groups: Any, betas: tuple[float, float], message: str
) -> None:
    run = Run(replace(FIND, groups=groups)).step()
    before = len(run.optimizer._controllers)
    with pytest.raises(ValueError, match=message):
        run.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "betas": betas})
    assert len(run.optimizer.param_groups) == 2
    assert len(run.optimizer._controllers) == before
    run.step()


def test_groups_that_were_put_there_by_hand_are_refused() -> None:
    run = Run(FIND).step()
    before = run.end()
    run.optimizer.param_groups.append(dict(run.optimizer.param_groups[0], params=[]))
    run.gradients()
    with pytest.raises(RuntimeError, match=r"2 controllers for 3 .* use add_param_group"):
        run.optimizer.step()
    assert_same(run.end(), before)


# Groups that come later, or have no rate


def test_a_later_group_goes_on_from_the_first_at_the_same_factor() -> None:
    run = Run(FIND).step(STEPS)
    run.optimizer.observe(1.0)
    run.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))], "lr": 0.1})
    first, late = run.optimizer.knobs(0), run.optimizer.knobs(2)
    assert late["lr"] == pytest.approx(10 * first["lr"])
    assert (late["step"], late["loss_mean"]) == (first["step"], first["loss_mean"])
    assert run.optimizer._controller.observed == 1, "what was observed was lost"
    assert run.optimizer._controllers[2].read().aligned_pending == 0, "it has the first's sums"


def test_a_group_at_a_rate_of_0_does_not_search_before_it_has_one() -> None:
    """It starts from the constructor's rate. Its directions move nothing, so none is too long."""
    run = Run(FIND, rates=(0.0, 0.03)).step(30)
    frozen, second = (run.optimizer.knobs(g) for g in (0, 1))
    assert (frozen["lr"], frozen["step"]) == (0.0, 30.0)
    assert frozen["alpha"] == pytest.approx(0.01 / 100)
    assert second["alpha"] > 10 * 0.03 / 100
    run.optimizer.param_groups[0]["lr"] = 0.01
    run.step(5)
    assert frozen["alpha"] < run.optimizer.knobs(0)["lr"] < 0.01


# Checkpoints


def by_dict(old: Run, new: Run) -> None:
    new.optimizer.load_state_dict(copy.deepcopy(old.optimizer.state_dict()))


def by_pickle(old: Run, new: Run) -> None:
    new.optimizer, new.net = pickle.loads(pickle.dumps((old.optimizer, old.net)))
    new.params = list(new.net.parameters())


@pytest.mark.parametrize("save", [by_dict, by_pickle])
@pytest.mark.parametrize("control", [FIND, Control.bandit(window=12)], ids=lambda c: c.law)
def test_a_resumed_run_is_the_run(save: Callable[..., None], control: Control) -> None:
    """In the middle of a search, or of a window."""
    control = replace(control, groups="own")
    run, resumed = Run(control).step(25), Run(control)
    for mine, theirs in zip(resumed.params, run.params, strict=True):
        mine.data.copy_(theirs.data)
    save(run, resumed)
    resumed.steps = run.steps
    assert_same(run.step(30).end(), resumed.step(30).end())


def test_from_one_to_own_every_rate_goes_on_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    bounded = replace(FIND, lr_bounds=(1e-5, 1.0))
    one, own = Run(replace(bounded, groups="one")).step(STEPS), Run(bounded)
    with caplog.at_level(logging.INFO, "adaptiverl"):
        by_dict(one, own)
    assert "each goes on from it, at the rate that was in effect" in caplog.text
    for group in (0, 1):
        expected = one.optimizer.knobs(group)["lr"]
        assert own.optimizer.knobs(group)["lr"] == pytest.approx(expected)
        assert own.optimizer.knobs(group)["alpha"] == pytest.approx(expected)  # in its own unit


def test_from_own_to_one_it_warns_and_goes_on_from_the_first() -> None:
    own, one = Run(FIND).step(STEPS), Run(replace(FIND, groups="one"))
    with pytest.warns(UserWarning, match=r"for each of its 2 .*Load it with Control\(groups='own"):
        by_dict(own, one)
    assert one.optimizer.knobs()["lr"] == own.optimizer.knobs()["lr"]
    assert one.optimizer.knobs(1)["lr"] == pytest.approx(3 * one.optimizer.knobs()["lr"])


def test_from_own_to_one_is_no_matter_where_all_moved_alike() -> None:
    own, one = Run(SILENT).step(STEPS), Run(replace(SILENT, groups="one"))
    by_dict(own, one)  # without a warning, which is an error here
    for group in (0, 1):
        rate = own.optimizer.knobs(group)["lr"]
        assert one.optimizer.knobs(group)["lr"] == pytest.approx(rate)


def test_a_damaged_memory_of_one_group_leaves_all_as_they_were() -> None:
    run = Run(FIND).step(3)
    before, saved = run.end(), copy.deepcopy(run.optimizer.state_dict())
    saved["param_groups"][1][memory.STATE_KEY][5] = float("nan")
    with pytest.raises(ValueError, match="nothing was changed"):
        run.optimizer.load_state_dict(saved)
    assert_same(run.end(), before)


def test_torchs_checkpoint_starts_every_controller_afresh() -> None:
    run = Run(FIND).step(5)
    groups = [{"params": [p], "lr": lr} for p, lr in zip(run.params, (0.01, 0.03), strict=True)]
    plain = torch.optim.AdamW(groups)
    run.optimizer.load_state_dict(plain.state_dict())
    assert [run.optimizer.knobs(g)["step"] for g in (0, 1)] == [0, 0]


def test_a_horizon_that_is_said_late_is_every_controllers() -> None:
    run = Run(Control.climb("auto", groups="own"))
    run.optimizer.set_horizon(10)
    run.step(10)
    assert [run.optimizer.knobs(g)["lr"] for g in (0, 1)] == [0.0, 0.0]


# Ranks

HEARS = replace(FIND, every=3, gain_momentum_loss=0.04)


def on_ranks(rank: int, size: int, wrapper: str) -> tuple[list[Any], list[bytes], list[float]]:
    """What the collectives of a step add up; every controller's memory, and weights; elements."""
    model = Products()
    net: Any = model
    if wrapper == "ddp":
        net = DistributedDataParallel(model)
    elif wrapper == "fsdp":
        fully_shard(model)
    params = list(model.parameters())
    groups = [{"params": params[:1]}, {"params": params[1:]}]
    make: Any = partial(AdaptiveAdamW, lr=1e-2, control=HEARS, seed=3)
    optimizer: Any = make(groups)
    if wrapper == "zero":
        net = DistributedDataParallel(model)
        optimizer = ZeroRedundancyOptimizer(groups, make, lr=1e-2)
    inner = optimizer.optim if wrapper == "zero" else optimizer
    share = slice(rank * BATCH // size, (rank + 1) * BATCH // size)
    ours = []
    for step in range(8):
        optimizer.zero_grad()
        net(*(c[share] for c in coefficients(step, exact=True))).mean().backward()
        inner.observe(2.0 + rank - 0.01 * step)
        with counted_collectives() as seen:
            optimizer.step()
        ours = [numbers for _, numbers, _ in seen if numbers in (4, 8)]
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    sizes = [one.read().aligned_elements for one in inner._controllers]
    return ours, [*(bits(one.memory) for one in inner._controllers), *map(bits, whole)], sizes


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp", "zero"])
def test_ranks_agree_to_the_bit_and_meet_once_for_all_controllers(crew: Crew, wrapper: str) -> None:
    results = crew.run(2, on_ranks, wrapper)
    assert results[0] == results[1]
    assert results[0][0] == [4, 8]  # losses, and both groups' sums together
    first, second = results[0][1][:2]
    assert first != second
    # Of how many elements, as the sums are: of ZeRO's the mean over ranks, which is half of all.
    numels = [p.numel() for p in Products().parameters()]
    expected = [numels[0], sum(numels[1:])]
    assert results[0][2] == [n / 2 if wrapper == "zero" else n for n in expected]
