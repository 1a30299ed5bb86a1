"""Ranks that run out of batches at different times: as one rank that knows what is still there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from rank_jobs import Perceptron, ZeroRedundancyOptimizer, digest, samples
from ranks import Crew, counted_collectives, crew_in
from torch import Tensor, nn
from torch.distributed.algorithms.join import Join, Joinable, JoinHook
from torch.nn.parallel import DistributedDataParallel

from adaptiverl import AdaptiveAdamW, AdaptiveLion, AdaptiveSGD, Control

LATER = 3
"""Steps that all ranks take together after the join"""
NOISY = Control(every=1, noise_bounds=(0.05, 0.2))
KINDS: dict[str, Callable[[Any], Any]] = {
    "adamw": lambda params: AdaptiveAdamW(params, lr=1e-2, eps=1e-2, control=NOISY, seed=3),
    "climb": lambda params: AdaptiveAdamW(
        params, lr=1e-3, control=Control.climb(20), max_grad_norm=1.0
    ),
    "sgd": lambda params: AdaptiveSGD(params, lr=0.1, momentum=0.9, control=Control(every=2)),
    "lion": lambda params: AdaptiveLion(params, lr=1e-3, control=Control(every=1)),
}


class Case(NamedTuple):
    """How uneven batches are trained."""

    kind: str = "adamw"
    batches: tuple[int, ...] = (4, 7)
    """Of every rank"""
    micro: int = 1
    """Batches of a step"""
    syncs: bool = False
    """Whether DDP adds up the gradients of every micro-batch, not only of a step's last one"""
    how: str = "model.join"
    divide_by_initial: bool = True


def loss_of(model: nn.Module, rank: int, batch: int) -> Tensor:
    x, y = samples(4, seed=100 * batch + rank, dtype=torch.float64)
    return (model(x) - y).square().mean()


def joined(case: Case, model: Any, optimizer: Any) -> Any:
    if case.how == "model.join":
        return model.join(divide_by_initial_world_size=case.divide_by_initial)
    if case.how == "disabled":
        return model.join(enable=False)
    if case.how == "accelerate":
        return uneven_inputs_of_accelerate(model)
    parts = [optimizer, model] if case.how == "wrong order" else [model, optimizer]
    return Join(parts, divide_by_initial_world_size=case.divide_by_initial)


def uneven_inputs_of_accelerate(model: Any) -> Any:
    """Accelerate's context as on several GPUs; on CPUs alone it would do nothing."""
    from accelerate import Accelerator

    class OnGpus(Accelerator):
        multi_device = True

    return OnGpus(cpu=True).join_uneven_inputs([model], even_batches=False)


def train(rank: int, size: int, case: Case) -> tuple[str, list[Tensor], dict[str, float]]:
    """Uneven batches in a join, then even ones without it."""
    model: Any = DistributedDataParallel(Perceptron(torch.float64))
    optimizer = KINDS[case.kind](model.parameters())
    with joined(case, model, optimizer):
        for batch in range(case.batches[rank]):
            is_last = (batch + 1) % case.micro == 0
            with nullcontext() if is_last or case.syncs else model.no_sync():
                loss = loss_of(model, rank, batch)
                loss.backward()
            if not optimizer.control.needs_no_loss:
                optimizer.observe(loss)
            if is_last:
                optimizer.step()
                optimizer.zero_grad()
    for batch in range(50, 50 + LATER):
        loss = loss_of(model, rank, batch)
        loss.backward()
        optimizer.step(loss=None if optimizer.control.needs_no_loss else loss)
        optimizer.zero_grad()
    found = [p.detach().clone() for p in model.parameters()]
    return digest(optimizer, model.parameters()), found, optimizer.knobs()


def alone(case: Case) -> tuple[list[Tensor], dict[str, float]]:
    """The same on one rank: gradients divided by hand, the losses' mean over who is there."""
    model = Perceptron(torch.float64)
    optimizer = KINDS[case.kind](model.parameters())
    steps = [range(start, start + case.micro) for start in range(0, max(case.batches), case.micro)]
    for micro in [*steps, *(range(b, b + 1) for b in range(50, 50 + LATER))]:
        later = micro.start >= 50
        there = [r for r, count in enumerate(case.batches) if later or micro.start < count]
        losses = [torch.stack([loss_of(model, r, b) for b in micro]) for r in there]
        count = len(case.batches) if case.divide_by_initial or later else len(there)
        (torch.stack([own.sum() for own in losses]).sum() / count).backward()
        mean = torch.stack([own.mean() for own in losses]).mean()
        optimizer.step(loss=None if optimizer.control.needs_no_loss else mean)
        optimizer.zero_grad()
    return [p.detach() for p in model.parameters()], optimizer.knobs()


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    with crew_in(tmp_path_factory.mktemp("meetings")) as crew:
        yield crew


@pytest.mark.parametrize(
    "case",
    [
        *(Case(kind) for kind in KINDS),
        Case(batches=(5, 2, 0)),
        Case(batches=(3, 3)),
        Case(divide_by_initial=False),
        Case(batches=(8, 4), micro=2),
        Case("sgd", batches=(2, 8), micro=2, syncs=True, divide_by_initial=False),
        Case("climb", how="Join"),
        Case(how="accelerate"),
        Case(batches=(3, 3), how="disabled"),
    ],
    ids=str,
)
def test_uneven_ranks_are_as_one_that_counts_who_is_there(crew: Crew, case: Case) -> None:
    results = crew.run(len(case.batches), train, case)
    assert len({digest for digest, _, _ in results}) == 1, "replicas, their state and their knobs"
    params, knobs = alone(case)
    for found, expected in zip(results[0][1], params, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert results[0][2] == pytest.approx(knobs, rel=1e-7, abs=1e-12, nan_ok=True)


def refused(rank: int, size: int, what: str) -> str:
    """What a join says that cannot end well, before any rank waits."""
    models = dist.new_group([0, 1])
    if rank == 2:
        return ""
    model: Any = DistributedDataParallel(Perceptron(torch.float64), process_group=models)
    optimizer = AdaptiveAdamW(model.parameters(), process_group=models if what == "order" else None)
    case = Case(how="wrong order" if what == "order" else "model.join")
    try:
        with joined(case, model, optimizer):
            loss = loss_of(model, rank, 0)
            loss.backward()
            optimizer.step(loss=loss)
    except ValueError as error:
        return str(error)
    return "ended"


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("ranks", ["ranks [0, 1] may leave", "on ranks [0, 1, 2]: those would wait", "or False"]),
        ("order", ["Join([model, optimizer])"]),
    ],
)
def test_a_join_that_would_wait_for_ever_is_refused(crew: Crew, what: str, said: list[str]) -> None:
    for answer in crew.run(3, refused, what)[:2]:
        for part in said:
            assert part in answer


def collectives(rank: int, size: int) -> dict[str, list[Any]]:
    """What is added up inside a join and after it, by an optimizer and without one."""
    found = {}
    for name, joins, control in [
        ("in a join", True, Control(every=1)),
        ("frozen", True, Control.frozen()),
        ("no join", False, Control(every=1)),
    ]:
        model = nn.Linear(6, 1)
        with ExitStack() as stack:
            if joins:
                stack.enter_context(Join([Nothing()]))
            optimizer = AdaptiveAdamW(model.parameters(), control=control)
            loss = loss_of(model.double(), rank, 0)
            loss.backward()
            seen = stack.enter_context(counted_collectives())
            optimizer.step(loss=loss)
            found[name] = list(seen)
    return found


class Nothing(Joinable):
    """A joinable without collectives of its own."""

    def __init__(self) -> None:
        super().__init__()

    def join_hook(self, **_: Any) -> JoinHook:
        return JoinHook()

    @property
    def join_device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def join_process_group(self) -> Any:
        return dist.group.WORLD


def test_only_a_meeting_in_a_join_is_announced(crew: Crew) -> None:
    # A joined rank does not know which meeting it is in: in a join all have the longest one's size.
    meeting, longest = (2, 4, torch.float64), (2, 5, torch.float64)
    for found in crew.run(2, collectives):
        assert found == {
            "in a join": [(2, 1, torch.float32), longest],
            "frozen": [],
            "no join": [meeting],
        }


def zero(rank: int, size: int) -> tuple[list[Tensor], float]:
    """ZeRO's own hook steps for the ranks that have left."""
    model: Any = DistributedDataParallel(Perceptron(torch.float64))
    optimizer = ZeroRedundancyOptimizer(model.parameters(), AdaptiveAdamW, lr=1e-2)
    with Join([model, optimizer]):
        for batch in range((2, 5)[rank]):
            loss = loss_of(model, rank, batch)
            loss.backward()
            optimizer.optim.observe(loss)
            optimizer.step()
            optimizer.zero_grad()
    return [p.detach() for p in model.parameters()], optimizer.optim.knobs()["step"]


def test_zeros_own_way_to_join_goes_on_working(crew: Crew) -> None:
    (params, steps), (others, _) = crew.run(2, zero)
    assert steps == 5
    for one, other in zip(params, others, strict=True):
        assert torch.equal(one, other)


def stepped_alone(rank: int, size: int) -> str:
    """One rank takes a step more than the other, which ends; no join."""
    param = nn.Parameter(torch.ones(3))
    optimizer = AdaptiveAdamW([param], control=Control(every=1))
    for _ in range(1 + rank):
        param.grad = torch.ones(3)
        try:
            optimizer.step(loss=1.0)
        except RuntimeError as error:
            return str(error)
    dist.destroy_process_group()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return "ended"


def test_ranks_that_lose_each_other_hear_why_that_may_be(crew: Crew) -> None:
    ended, said = crew.run(2, stepped_alone)
    assert ended == "ended"
    assert "every rank has to take every step" in said
    assert "process_group=False" in said
    assert "with model.join()" in said
