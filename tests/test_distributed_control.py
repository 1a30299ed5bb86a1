"""Many ranks decide as one: the mean of what they observed, and never a wait for ever."""

from __future__ import annotations

import copy
import math
import os
import pickle
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rank_jobs import ZeroRedundancyOptimizer
from ranks import Crew, Failed, bits, counted_collectives, crew_in
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from adaptiverl import AdaptiveAdamW, AdaptiveSGD, Control, steer
from adaptiverl.controller import Controller
from adaptiverl.ranks.dtensors import to_local

STEPS = 24
EVERY_STEP = Control(every=1)


def make(control: Control = EVERY_STEP, **options: Any) -> AdaptiveAdamW:
    param = nn.Parameter(torch.linspace(-1, 1, 6).reshape(2, 3))
    return AdaptiveAdamW([param], lr=1e-2, control=control, **options)


def take_step(optimizer: Any, *losses: float | Tensor, rewards: Any = None) -> None:
    for param in optimizer.param_groups[0]["params"]:
        param.grad = torch.ones_like(param)
    for loss in losses:
        optimizer.observe(loss, rewards)
    optimizer.step()


def memory_of(optimizer: Any) -> bytes:
    return bits(optimizer._controller.memory)


def losses_of(rank: int, step: int) -> list[float]:
    """One to three micro-batches, and losses, that differ between the ranks."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    count = 1 + (step + rank) % 3
    values = 3 / (1 + 0.1 * step) + torch.rand(count, generator=generator, dtype=torch.float64)
    return values.tolist()


def average(rank: int, size: int, algorithm: str) -> tuple[bytes, dict[str, float], list[float]]:
    """Memory and knobs after steps on losses of one's own; and those losses' means."""
    if algorithm == "adamw":
        optimizer: Any = make()
    else:
        param = nn.Parameter(torch.ones(3))
        optimizer = AdaptiveSGD([param], lr=0.1, momentum=0.9, control=EVERY_STEP)
    for step in range(STEPS):
        take_step(optimizer, *losses_of(rank, step))
    means = [sum(losses_of(rank, s)) / len(losses_of(rank, s)) for s in range(STEPS)]
    return memory_of(optimizer), optimizer.knobs(), means


def steer_together(rank: int, size: int) -> tuple[bytes, dict[str, float]]:
    """torch's own optimizer, whose ranks observe other losses and have other gradients."""
    param = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.NAdam([param], lr=1e-2)
    control = Control(law="alignment", every=1, horizon=50, noise_bounds=(0.0, 0.0))
    steered = steer(optimizer, control)
    for step in range(STEPS):
        param.grad = torch.tensor([1.0, float(rank), float(step)])
        for loss in losses_of(rank, step):
            steered.observe(loss)
        optimizer.step()
    return memory_of(steered), steered.knobs()


def choose_arms(rank: int, size: int) -> tuple[bytes, dict[str, float]]:
    """Windows of losses of one's own, one of them not finite on one rank alone."""
    optimizer = make(Control.bandit([Control(every=1), Control(every=2)], window=3))
    for step in range(STEPS):
        bad = [math.nan] if (rank, step) == (1, 10) else []
        take_step(optimizer, *losses_of(rank, step), *bad)
    return memory_of(optimizer), optimizer.knobs()


def ask_the_network(rank: int, size: int) -> tuple[bytes, dict[str, float]]:
    """Losses of one's own, as above; the sums of gradients are each rank's whole."""
    optimizer = make(Control.distilled(STEPS))
    for step in range(STEPS):
        bad = [math.nan] if (rank, step) == (1, 10) else []
        take_step(optimizer, *losses_of(rank, step), *bad)
    return memory_of(optimizer), optimizer.knobs()


def average_rewards(rank: int, size: int) -> tuple[bytes, dict[str, float]]:
    """Rewards arrive on some ranks, at some steps, at some of the micro-batches."""
    optimizer = make(Control(every=1, reward="given"))
    for step in range(12):
        for param in optimizer.param_groups[0]["params"]:
            param.grad = torch.ones_like(param)
        optimizer.observe(2.0 - 0.1 * step)
        if (step + rank) % 3 == 0:
            optimizer.observe(2.0 - 0.1 * step, 10.0 * rank + step)
        optimizer.step()
    return memory_of(optimizer), optimizer.knobs()


def bad_losses(rank: int, size: int, bad: float) -> tuple[bytes, dict[str, float]]:
    """The last rank's loss is not finite at one step."""
    optimizer = make()
    for step in range(6):
        take_step(optimizer, bad if rank == size - 1 and step == 3 else 2.0 - 0.1 * step)
    return memory_of(optimizer), optimizer.knobs()


def some_observe(rank: int, size: int, observers: list[int]) -> tuple[bytes, dict[str, float], Any]:
    """Only some ranks observe, and at step 4 nobody does."""
    optimizer = make()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(12):
            take_step(optimizer, *([2.0 + rank] if rank in observers and step != 4 else []))
    told = [str(w.message) for w in caught if "never told a loss" in str(w.message)]
    return memory_of(optimizer), optimizer.knobs(), told


def first_step_at_rate_zero(rank: int, size: int) -> tuple[bytes, dict[str, float]]:
    """A warm-up from 0, and one rank alone observes: its first step decides nothing, on any."""
    optimizer = make()
    optimizer.warns_of_schedulers = False  # that a scheduler and the law both pull, as here
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 4))
    assert optimizer.param_groups[0]["lr"] == 0
    for step in range(6):
        take_step(optimizer, *([2.0 - 0.1 * step] if rank == 0 else []))
        warmup.step()
    return memory_of(optimizer), optimizer.knobs()


def rate_zero(
    rank: int, size: int, how: str, law: Any, observer: int | None
) -> tuple[bytes, dict[str, float], list[bool]]:
    """Two steps at a rate of 0, where rank 0's gradients are all zero, and four that train."""
    options: dict[str, Any] = {"lr": 1e-2, "max_grad_norm": 0.5}
    if law == "loss":
        options["control"] = Control(every=1, noise_bounds=(0.1, 0.1))
    else:
        options |= {
            "control": Control.climb(50),
            "max_grad_norm": None if how == "zero" else 0.5,
        }
    params: list[Any] = [nn.Parameter(torch.ones(4, 3)) for _ in range(size)]
    if how == "fsdp":
        mesh = init_device_mesh("cpu", (size,))
        params = [nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])) for p in params]
    if how == "zero":
        lr = options.pop("lr")
        own_part: Any = partial(AdaptiveAdamW, **options)
        outer: Any = ZeroRedundancyOptimizer(params, own_part, lr=lr)
        optimizer = outer.optim
    else:
        outer = optimizer = AdaptiveAdamW(params, **options)
    own = [p for group in optimizer.param_groups for p in group["params"]]
    moved = []
    for step in range(6):
        outer.param_groups[0]["lr"] = 1e-2 if step > 1 else 0.0
        for param in params:
            here = param.to_local() if how == "fsdp" else param
            zero = step < 2 and rank == 0 and any(param is p for p in own)
            grad = torch.zeros_like(here) if zero else torch.full_like(here, 0.1 + step)
            sharded = how == "fsdp"
            param.grad = DTensor.from_local(grad, mesh, [Shard(0)]) if sharded else grad
        before = [bits(to_local(p)) for p in own]
        if step > 1 or rank == observer:
            outer.step(loss=3.0 if step > 1 else 9.0 + step)
        else:
            outer.step()
        moved.append([bits(to_local(p)) for p in own] != before)
    return memory_of(optimizer), optimizer.knobs(), moved


def state_made_alone(rank: int, size: int, when: str) -> tuple[bytes, dict[str, float], int]:
    """One rank asks for a state dict that the others do not ask for; or that costs them no step.

    While training that is a rank with nothing to train, whose state stays empty.
    """
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    early = when == "before training"
    if not early and rank == 1:
        model.requires_grad_(False)
    optimizer = AdaptiveAdamW(model.parameters(), lr=1e-2, control=EVERY_STEP, max_grad_norm=1.0)
    steps: list[int] = []
    optimizer.register_step_post_hook(lambda *_: steps.append(1))
    made = 0
    for step in range(6):
        if (step == 0 and rank == 0) if early else step in (2, 4):
            before, taken = memory_of(optimizer), len(steps)
            with counted_collectives() as seen:
                get_optimizer_state_dict(model, optimizer)
            made = len(steps) - taken
            assert (seen, memory_of(optimizer)) == ([], before)
        if early or rank == 0:
            model(torch.ones(4, 3)).square().mean().backward()
        optimizer.step(loss=3.0 - 0.1 * step)
        optimizer.zero_grad()
    return memory_of(optimizer), optimizer.knobs(), made


def epochwise(rank: int, size: int) -> tuple[bytes, dict[str, float], list[Any]]:
    optimizer = make(Control(every=None))
    with counted_collectives() as seen:
        for epoch in range(4):
            take_step(optimizer)
            optimizer.update(3.0 - 0.5 * epoch + rank)
    return memory_of(optimizer), optimizer.knobs(), seen


def pulses(rank: int, size: int, law: str) -> tuple[bytes, dict[str, float], list[Any]]:
    """Held-out losses that worsen by their mean alone; the last one is one rank's NaN."""
    optimizer = make(EVERY_STEP if law == "loss" else Control.climb(60))
    for step in range(STEPS):
        take_step(optimizer, 9.0 - 0.1 * step * (1 - rank))
        with counted_collectives() as seen:
            optimizer.pulse(step * rank + 1.0 if step < STEPS - 1 else (1.0, math.nan)[rank])
    state = optimizer._controller.read()
    decided = [x for n, x in vars(state).items() if "pulse" in n or n.startswith("log_lr")]
    return bits(torch.tensor(decided, dtype=torch.float64)), optimizer.knobs(), seen


def collectives(rank: int, size: int) -> dict[str, list[Any]]:
    """Every collective of a step, by what kind of step it is."""
    found: dict[str, list[Any]] = {}

    def count(name: str, optimizer: Any, *losses: float) -> None:
        with counted_collectives() as seen:
            take_step(optimizer, *losses)
        found[name] = seen

    count("observed", make(), 1.0 + rank)
    count("three micro-batches", make(), 1.0, 2.0, 3.0)
    count("frozen", make(Control.frozen()), 1.0)
    count("alone", make(process_group=False), 1.0)
    count("epoch-wise control", make(Control(every=None)))
    count("noise and clipping", make(Control(noise_bounds=(0.1, 0.1)), max_grad_norm=1.0), 1.0)
    rehearsal = make()
    rehearsal.param_groups[0]["lr"] = 0.0
    for param in rehearsal.param_groups[0]["params"]:
        param.grad = torch.zeros_like(param)
    with counted_collectives() as seen:
        rehearsal.step()
    found["making state for a checkpoint"] = seen
    return found


def groups(rank: int, size: int) -> dict[str, Any]:
    """Two groups of two decide apart; what is no group of this rank's is refused."""
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    mine, other = pairs[rank // 2], pairs[1 - rank // 2]
    with pytest.raises(ValueError, match="process_group must be a group that this rank is in"):
        make(process_group=other)
    for wrong in (True, "nccl", [0, 1]):
        with pytest.raises(TypeError, match=r"process_group must be .* got .* of type"):
            make(process_group=wrong)
    optimizer = make(process_group=mine)
    for step in range(6):
        take_step(optimizer, 5.0 - 0.2 * step + rank)
    with pytest.raises(TypeError, match=r"save optimizer.state_dict\(\)"):
        pickle.dumps(optimizer)
    twin = copy.deepcopy(optimizer)
    take_step(optimizer, 1.0 * rank)
    take_step(twin, 1.0 * rank)
    assert memory_of(twin) == memory_of(optimizer)
    again = pickle.loads(pickle.dumps(make(process_group=False)))
    with counted_collectives() as seen:
        take_step(again, 1.0)
    assert seen == []
    return {"memory": memory_of(optimizer), "knobs": optimizer.knobs()}


def process_id(rank: int, size: int) -> int:
    return os.getpid()


def deadlock(rank: int, size: int) -> None:
    """One rank waits for one that never comes."""
    if rank == 0:
        dist.all_reduce(torch.ones(1))
    else:
        time.sleep(3600)


SENSED = ("alpha", "momentum", "noise", "loss_mean", "variance", "reward_mean", "plateau")


def same(results: list[Any]) -> bool:
    """Every rank's first item, its controller's memory, bit for bit."""
    return len({result[0] for result in results}) == 1


def alone(losses: list[float], control: Control, start: tuple[float, float] = (1e-2, 0.9)) -> Any:
    """One rank's controller after these losses."""
    controller = Controller(control, *start)
    groups = torch.tensor([[start[0], 0.9, 0.999, 1e-8, 1e-2]], dtype=torch.float64)
    effective = torch.zeros((1, 2), dtype=torch.float64)
    for loss in losses:
        controller.observe(loss)
        controller.advance(groups, effective)
    return controller.read()


@pytest.mark.parametrize("size", [2, 4])
def test_all_ranks_decide_by_the_mean_of_their_means(crew: Crew, size: int) -> None:
    results = crew.run(size, average, "adamw")
    assert same(results)
    means = torch.tensor([means for _, _, means in results], dtype=torch.float64)
    assert len(set(means[:, 0].tolist())) == size, "the ranks' losses must differ"
    expected = alone(means.mean(dim=0).tolist(), EVERY_STEP)
    knobs = results[0][1]
    assert knobs["updates"] == STEPS
    for name in SENSED:
        value = expected.lr if name == "alpha" else getattr(expected, name)
        assert knobs[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name


def test_all_ranks_choose_the_same_arms(crew: Crew) -> None:
    results = crew.run(2, choose_arms)
    assert same(results)
    knobs = results[0][1]
    assert knobs["arm_draws"] == 1 + (STEPS - 1) // 3
    assert min(knobs["arm_count0"], knobs["arm_count1"]) > 0
    assert knobs["nonfinite"] == 1


def test_all_ranks_ask_the_network_alike(crew: Crew) -> None:
    results = crew.run(2, ask_the_network)
    assert same(results)
    knobs = results[0][1]
    assert knobs["move_lr"] != 0
    assert knobs["nonfinite"] == 1


def test_ranks_steer_torchs_optimizer_alike(crew: Crew) -> None:
    results = crew.run(2, steer_together)
    assert same(results)
    assert results[0][1]["step"] == STEPS
    assert results[0][1]["alignment"] != 0


def test_sgd_decides_by_the_mean_too(crew: Crew) -> None:
    results = crew.run(2, average, "sgd")
    assert same(results)
    assert results[0][1]["updates"] == STEPS


def test_rewards_are_averaged_over_the_ranks_that_have_one(crew: Crew) -> None:
    results = crew.run(2, average_rewards)
    assert same(results)
    # At step 11 rank 1 alone has one; at step 10 nobody, and the last of all is kept.
    assert results[0][1]["reward"] == 10.0 + 11


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_ranks_bad_loss_is_everybodys(crew: Crew, bad: float) -> None:
    results = crew.run(2, bad_losses, bad)
    assert same(results)
    knobs = results[0][1]
    assert knobs["nonfinite"] == 1
    # The reflex of method.md#non-finite in the midst of falling losses.
    expected = alone([2.0, 1.9, 1.8, bad, 1.6, 1.5], EVERY_STEP)
    assert knobs["alpha"] == pytest.approx(expected.lr, rel=1e-9)


@pytest.mark.parametrize("observers", [[0], [1], [0, 2]])
def test_ranks_without_an_observation_follow_the_others(crew: Crew, observers: list[int]) -> None:
    results = crew.run(3, some_observe, observers)
    assert same(results)
    knobs = results[0][1]
    assert knobs["loss"] == pytest.approx(2.0 + sum(observers) / len(observers), rel=1e-12)
    assert knobs["updates"] == 11, "at the step that nobody observed, nothing is decided"
    for rank, (_, _, told) in enumerate(results):
        assert len(told) == (rank not in observers)
        assert all("on this rank" in text for text in told)


def test_a_warm_up_from_zero_that_one_rank_observes(crew: Crew) -> None:
    results = crew.run(2, first_step_at_rate_zero)
    assert same(results)
    # At a rate of 0 nobody meets, so that a step to make state may come on one rank alone.
    assert results[0][1]["updates"] == 5


@pytest.mark.parametrize("observer", [None, 0, 1])
@pytest.mark.parametrize("law", ["loss", "alignment"])
@pytest.mark.parametrize("how", ["plain", "zero", "fsdp"])
def test_whether_ranks_meet_is_not_for_one_ranks_gradients_to_say(
    crew: Crew, how: str, law: str, observer: int | None
) -> None:
    """At a rate of 0; one rank's are all zero, as those of a checkpoint library's step."""
    results = crew.run(2, rate_zero, how, law, observer, limit=20.0)
    assert same(results)
    for _, knobs, moved in results:
        assert knobs["step"] == 4, "steps at a rate of 0 do not count"
        assert knobs["loss"] == 3.0
        assert moved == [False, False, True, True, True, True]


@pytest.mark.parametrize("when", ["before training", "while training"])
def test_state_may_be_made_on_one_rank_alone(crew: Crew, when: str) -> None:
    (memory, knobs, made), (other, _, others) = crew.run(2, state_made_alone, when, limit=20.0)
    assert memory == other
    assert knobs["step"] == 6
    assert (made, others) == ((1, 0) if when == "before training" else (0, 1))


def test_epochwise_updates_meet_when_they_are_called(crew: Crew) -> None:
    results = crew.run(2, epochwise)
    assert same(results)
    _, knobs, seen = results[0]
    assert knobs["updates"] == 4
    assert knobs["loss"] == 3.0 - 1.5 + 0.5
    assert seen == [(2, 4, torch.float64)] * 4


@pytest.mark.parametrize("law", ["loss", "alignment"])
def test_all_ranks_cut_by_the_mean_of_their_pulses(crew: Crew, law: str) -> None:
    results = crew.run(2, pulses, law)
    assert same(results)
    _, knobs, seen = results[0]
    assert seen == [(2, 4, torch.float64)]
    # The first four are read and not judged; then a cut at once, and one in five readings.
    assert (knobs["pulse_readings"], knobs["pulse_cuts"]) == (STEPS - 1, 4)
    assert math.isnan(knobs["pulse"])
    assert results[0][1]["lr"] == results[1][1]["lr"] < 1e-3


def test_collectives_of_a_step(crew: Crew) -> None:
    once = [(2, 4, torch.float64)]
    for found in crew.run(2, collectives):
        assert found == {
            "observed": once,
            "three micro-batches": once,
            "frozen": [],
            "alone": [],
            "epoch-wise control": [],
            "noise and clipping": once,
            "making state for a checkpoint": [],
        }


def test_groups_decide_apart_and_wrong_ones_are_refused(crew: Crew) -> None:
    results = crew.run(4, groups)
    memories = [result["memory"] for result in results]
    assert memories[0] == memories[1] != memories[2] == memories[3]


def test_a_job_that_hangs_fails_and_is_killed(tmp_path: Path) -> None:
    with crew_in(tmp_path) as crew:
        pids = crew.run(2, process_id)
        with pytest.raises(Failed, match="hung"):
            crew.run(2, deadlock, limit=2.0)
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
