"""What kernels read by address: who keeps it, under CUDA graphs and on several streams."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import pytest
import recorded_graph
import torch
from gpu_checks import (
    ALIGNED,
    BUSY,
    assert_other_bits,
    assert_same_bits,
    everything,
    losses,
    set_gradients,
)
from recorded_graph import Freed, RecordedGraph, capture
from torch import Tensor, nn

from adaptiverl import AdaptiveAdamW, AdaptiveSGD, Control, backends, devices
from adaptiverl.step import groups, workspace
from adaptiverl.step.bucket import AddressTable, Bucket
from adaptiverl.step.clipping import GradientScale
from adaptiverl.step.entries import COLUMNS, GRAD, NUMEL
from adaptiverl.step.groups import GroupTable
from adaptiverl.step.workspace import DeviceTable, Workspace

CPU = torch.device("cpu")
EVERYTHING = replace(ALIGNED, noise_bounds=(0.0, 0.1))
"""The controller's sums and the noise's both"""
ADDRESSES = slice(COLUMNS.index("param"), COLUMNS.index("mu_product") + 1)
SGD = partial(AdaptiveSGD, momentum=0.9)
OUTLIVE_STREAM = devices.outlive_stream
"""The stand-in has no streams to wait for"""


@pytest.fixture(autouse=True)
def stand_in() -> Iterator[None]:
    gc.freeze()  # a collection then looks at what the test has made, and is quick
    with recorded_graph.stand_in():
        yield
    gc.unfreeze()


class Run:
    """A few tensors, stepped plainly or by graphs."""

    def __init__(self, make: Callable[..., Any] = AdaptiveAdamW, **options: Any) -> None:
        generator = torch.Generator().manual_seed(2)
        self.params = [nn.Parameter(torch.randn(n, generator=generator)) for n in (40, 3, 17)]
        options = {"control": BUSY, "max_grad_norm": 1.0, "seed": 3} | options
        self.optimizer = make(self.params, 0.01, **options)
        self.optimizer._log.announcements._silent = True  # it reads, and so would wait
        set_gradients(self.params, 0)
        self.grads = [p.grad for p in self.params if p.grad is not None]
        self.loss = losses(1, CPU)[0]

    def step(self, absent: tuple[int, ...] = ()) -> None:
        for i, (p, grad) in enumerate(zip(self.params, self.grads, strict=True)):
            p.grad = None if i in absent else grad
        self.optimizer.observe(self.loss)
        self.optimizer.step()

    def capture(self, absent: tuple[int, ...] = (), *more: Tensor) -> RecordedGraph:
        return capture(lambda: self.step(absent), self.optimizer, self.loss, *more)

    def end(self) -> list[Tensor]:
        return everything(self.optimizer, self.params)


# The stand-in itself


def test_a_capture_records_and_a_replay_does_it() -> None:
    run = Run()
    run.step()
    before = run.end()
    graph = run.capture()
    assert_same_bits(before, run.end())
    graph.replay()
    assert_other_bits(before, run.end())


def test_the_stand_in_notices_freed_memory_and_a_wait() -> None:
    run = Run()
    run.step()
    numbers = [torch.ones(3)]
    graph = capture(lambda: numbers[0].add_(1), run.optimizer, *numbers)
    graph.replay()
    assert numbers[0].tolist() == [2, 2, 2]
    del numbers[0]
    with pytest.raises(Freed, match=r"add_.* reads a freed tensor, torch.float32 of size .*3"):
        graph.replay()
    with pytest.raises(RuntimeError, match="the host waits"):
        capture(lambda: run.loss.item(), run.optimizer, run.loss)


@pytest.mark.parametrize(
    ("control", "knob", "least"),
    [
        (Control.bandit(window=10), "arm_draws", 4),
        (Control.bandit([BUSY], window=2), "arm_draws", 4),
        (Control.bandit([BUSY, replace(BUSY, every=1)], window=2), "arm_draws", 4),
        (Control.distilled(60), "move_lr", 1e-9),
    ],
    ids=["usual arms", "one arm", "two arms", "distilled"],
)
def test_a_law_decides_within_a_graph(control: Control, knob: str, least: float) -> None:
    """What a replay draws and learns is what a plain step would: nothing of it is the host's."""
    ends = []
    for graphed in (False, True):
        run = Run(control=control)
        run.step()
        step = run.capture().replay if graphed else run.step
        for n in range(45):
            run.loss.fill_(3.0 - 0.05 * n + (n % 3) / 4)
            step()
        ends.append(run.end())
        assert abs(run.optimizer.knobs()[knob]) >= least
    assert_same_bits(*ends)


# Lifetimes


def addresses_in(graph: RecordedGraph) -> set[int]:
    """What the address tables name that a graph's operators get."""
    found: set[int] = set()
    for call, leaves, _, _ in graph.calls:
        for leaf in leaves:
            if not isinstance(leaf, (Tensor, recorded_graph.Reference)):
                continue
            rows = leaf if isinstance(leaf, Tensor) else leaf.follow(str(call))
            if rows.dtype == torch.int64 and rows.shape[1:] == (len(COLUMNS),):
                found |= set(rows[:, ADDRESSES].flatten().tolist())
    return found - {0}


def is_within(address: int, tensors: list[Tensor]) -> bool:
    """Whether an address lies in one of these; a counter lies in a vector of all."""
    return any(t.data_ptr() <= address < t.data_ptr() + t.nbytes for t in tensors)


@pytest.mark.parametrize("control", [BUSY, EVERYTHING], ids=["loss", "alignment"])
@pytest.mark.parametrize(
    ("make", "captured"),
    [(AdaptiveAdamW, ()), (AdaptiveAdamW, (1,)), (SGD, (0, 2))],
    ids=["fewer", "both", "more"],
)
def test_steps_of_other_tensors_leave_a_graph_what_it_reads(
    make: Callable[..., Any], captured: tuple[int, ...], control: Any
) -> None:
    ends = []
    for graphed in (False, True):
        run = Run(make, control=control)
        run.step()
        run.step(captured)
        graph = run.capture(captured) if graphed else None
        for absent in ((0,), captured, (), captured, (1, 2), captured, captured, (2,)):
            if graph is not None and absent == captured:
                gc.collect()
                graph.replay()
                alive = recorded_graph.device_memory(run.optimizer, run.loss, *run.grads)
                assert all(is_within(address, alive) for address in addresses_in(graph))
            else:
                run.step(absent)
        ends.append(run.end())
    assert_same_bits(ends[0], ends[1])


def test_two_graphs_of_other_tensors_live_side_by_side() -> None:
    ends = []
    for graphed in (False, True):
        run, graphs = Run(), {}
        for absent in ((), (1,)):
            run.step(absent)
            if graphed:
                graphs[absent] = run.capture(absent)
        for absent in ((), (1,), (), (2,), (1,), (), (1,)):
            work = graphs[absent].replay if absent in graphs else None
            if work is None:
                run.step(absent)
            else:
                work()
        ends.append(run.end())
    assert_same_bits(ends[0], ends[1])


def test_all_that_an_operator_gets_is_owned() -> None:
    run = Run(control=EVERYTHING)
    run.step()
    graph = run.capture()
    owned = recorded_graph.device_memory(run.optimizer, run.loss)
    storages = {t.untyped_storage().data_ptr() for t in owned}
    names = set()
    for call, leaves, _, _ in graph.calls:
        names.add(str(call).split(".")[1])
        for leaf in leaves:
            if isinstance(leaf, recorded_graph.Reference):
                assert leaf.follow("").untyped_storage().data_ptr() in storages, call
    assert names >= {"observe_", "advance_", "sum_squares_", "adamw_step_", "reduce_alignment_"}
    places = {place[0] for place in run.optimizer._round.workspace._pieces}  # type: ignore[index]
    assert places == {"rows", "squares", "sums", "numbers", "effective", "counters"}


def test_the_scratch_and_the_factor_of_triton_are_owned() -> None:
    pytest.importorskip("triton", reason="the backend needs triton, which CPU wheels do not bring")
    run, backend, launched = Run(), backends.triton_backend(), []
    run.step()
    owner = Workspace()
    bucket = Bucket(backend, CPU, (), workspace=owner)
    bucket.start()
    entries = run.optimizer._round.plan._entries
    bucket.entries = entries.of(run.optimizer.param_groups, run.optimizer.state)
    decision = mock.Mock(aligned=True)
    scratch = backend._scratch(bucket, decision)
    scale = GradientScale(0.5, owner)
    with mock.patch.object(backend, "gradient_scale", lambda *given: launched.append(given)):
        factor = scale([bucket], {CPU: torch.ones(3, dtype=torch.float64)}, None)
    limit = launched[0][1]
    assert factor is launched[0][3]
    assert (factor, limit) == (1.0, 0.5)
    held = {id(t) for piece in owner._pieces.values() for t in piece.tensors}
    assert held >= {id(t) for t in (*scratch, factor, limit)}
    assert backend._scratch(bucket, decision) is scratch


def test_what_an_ended_graph_had_goes_with_the_next_step() -> None:
    run = Run()
    run.step()
    graph = run.capture()
    squares = weakref.ref(run.optimizer._round.plan._squares[CPU])
    run.step((1,))
    run.step((2,))
    gc.collect()
    assert squares() is not None
    graph.replay()
    del graph
    run.step()
    gc.collect()
    assert squares() is None
    assert run.optimizer._round.workspace._captured == []


@pytest.mark.parametrize("moves", [False, True], ids=["standing", "moving"])
def test_recapturing_does_not_leak(moves: bool) -> None:
    run = Run()
    kept = []
    for _ in range(4):
        run.step()
        if moves:
            run.grads = [grad.clone() for grad in run.grads]
        graph = run.capture((), *run.grads)
        graph.replay()
        kept.append(len(run.optimizer._round.workspace._captured))
        del graph
    assert kept == [1 + moves] * 4


def test_where_nobody_tells_a_graphs_end_all_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run()
    monkeypatch.setattr(workspace, "watch_capture", lambda device: lambda: False)
    for _ in range(3):
        run.step()
        run.capture()
    run.step((1,))
    assert len(run.optimizer._round.workspace._captured) == 3


def test_the_operators_that_tell_a_graphs_end() -> None:
    operators = torch.ops.adaptiverl
    if not hasattr(operators, "watch_capture"):
        pytest.skip("built without nvcc: nobody tells when a graph ends")
    assert operators.capture_has_ended(1 << 40) is False
    with pytest.raises(RuntimeError, match="needs a stream that is capturing"):
        operators.watch_capture(0)


# What a capture may not make


def _other_count(run: Run) -> None:
    run.capture((1,))


def _other_sizes(run: Run) -> None:
    run.params[0].data = torch.ones(7)
    run.grads[0] = torch.ones(7)
    run.optimizer.state[run.params[0]].update(exp_avg=torch.zeros(7), exp_avg_sq=torch.zeros(7))
    run.capture((), run.params[0].data, run.grads[0])


def _other_groups(run: Run) -> None:
    run.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]})
    run.capture()


def _nowhere_for_sums(run: Run) -> None:
    run.optimizer._round.workspace.drop(("squares", CPU))
    run.optimizer._round.plan._last = None
    run.capture()


@pytest.mark.parametrize("spoil", [_other_count, _other_sizes, _other_groups, _nowhere_for_sums])
def test_a_capture_makes_no_memory(spoil: Callable[[Run], None]) -> None:
    run = Run()
    with pytest.raises(RuntimeError, match="take a step with the same parameters"):
        run.capture()  # its first step
    run.step()
    untouched = [*run.params[1:], run.optimizer._controller.memory]
    before = [t.detach().clone() for t in untouched]
    with pytest.raises(RuntimeError, match="take a step with the same parameters"):
        spoil(run)
    assert_same_bits(before, [t.detach() for t in untouched])
    run.step()


def test_addresses_may_change_once_per_capture() -> None:
    table = AddressTable(CPU, Workspace(), "rows")
    wanted = torch.arange(2 * len(COLUMNS)).view(2, len(COLUMNS))
    before = table.refresh(wanted)
    moved, again = (wanted + n * (torch.arange(len(COLUMNS)) == GRAD) for n in (16, 32))
    with mock.patch.object(recorded_graph.STREAM, "capturing", RecordedGraph()):
        with pytest.raises(RuntimeError, match="take a step with the same parameters"):
            table.refresh(wanted + (torch.arange(len(COLUMNS)) == NUMEL))
        assert torch.equal(table.refresh(moved), moved)
        with pytest.raises(RuntimeError, match="once per capture"):
            table.refresh(again)
    assert table.refresh(wanted) is before
    assert torch.equal(before, wanted)


# What is recorded is not done


@pytest.mark.parametrize("replays", [0, 1], ids=["before", "after"])
@pytest.mark.parametrize("then", [0.02, 0.005, 0.01])
def test_a_plain_step_uses_the_rate_that_it_is_given(replays: int, then: float) -> None:
    """Beside a graph with another rate, be it replayed or not."""
    control, ends = replace(BUSY, mode="modulate"), []
    for graphed in (False, True):
        run = Run(control=control)
        (group,) = run.optimizer.param_groups
        run.step()
        group["lr"] = 0.02
        graph = run.capture() if graphed else None
        for _ in range(replays):
            run.step() if graph is None else graph.replay()
        group["lr"] = then
        run.step()
        group["lr"] = 0.02
        run.step() if graph is None else graph.replay()
        group["lr"] = then
        run.step()
        ends.append(run.end())
    assert_same_bits(ends[0], ends[1])


def numbers_of(group: dict[str, Any]) -> list[Any]:
    return [group["lr"], 0.9, 0.999, 1e-8, group["weight_decay"]]


def test_numbers_are_written_once_and_never_over() -> None:
    table = GroupTable(CPU, numbers_of, Workspace())
    table.refresh([{"lr": 0.5, "weight_decay": 0.1}])
    first, kept = table.numbers, table.numbers.clone()
    table.refresh([{"lr": 0.5, "weight_decay": 0.1}])
    assert table.numbers is first
    table.refresh([{"lr": 0.25, "weight_decay": 0.1}])
    assert table.numbers[0].tolist() == [0.25, 0.9, 0.999, 1e-8, 0.1]
    assert torch.equal(first, kept)


def test_a_rate_that_lives_on_a_device_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By plain steps and by replays; what the host knows is a constant of the graph."""
    monkeypatch.setattr(groups, "on_accelerator", lambda x: isinstance(x, Tensor))
    ends = []
    for graphed in (False, True):
        lr = torch.tensor(0.01)
        run = Run(control=replace(BUSY, mode="modulate"))
        (group,) = run.optimizer.param_groups
        group["lr"] = lr
        run.step()
        group["weight_decay"] = 0.2
        graph = run.capture((), lr) if graphed else None
        for rate, replays in ((0.02, True), (0.005, False), (0.03, True), (0.04, False)):
            lr.fill_(rate)
            group["weight_decay"] = 0.2 if replays else 0.4
            run.step() if graph is None or not replays else graph.replay()
        if graph is not None:
            group["lr"] = 0.0
            del lr
            gc.collect()
            graph.replay()
        else:
            group["weight_decay"] = 0.2
            run.step()
        ends.append(run.end())
    assert_same_bits(ends[0], ends[1])


# Streams


class Streams:
    """Which stream is the current one, and what memory waits for which."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current = "first"
        self.waits: list[tuple[int, str]] = []
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.current)
        monkeypatch.setattr(
            Tensor, "record_stream", lambda t, stream: self.waits.append((t.data_ptr(), stream))
        )
        monkeypatch.setattr(devices, "outlive_stream", OUTLIVE_STREAM)


def test_what_is_replaced_waits_for_the_stream_that_replaces_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streams = Streams(monkeypatch)
    run = Run(control=EVERYTHING)
    held = run.optimizer._round.workspace._pieces
    run.step()
    run.step()
    assert streams.waits == []
    old = {t.data_ptr() for place in ("rows", "squares", "sums") for t in tensors_at(held, place)}
    streams.current = "second"
    run.step((1,))
    assert sorted(streams.waits) == [(address, "second") for address in sorted(old)]


def tensors_at(pieces: dict[Any, workspace.Piece], name: str) -> list[Tensor]:
    return [t for place, piece in pieces.items() if place[0] == name for t in piece.tensors]


def test_a_table_on_the_host_waits_for_no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    monkeypatch.setattr(devices, "has_streams", lambda device: False)
    table = DeviceTable(Workspace(), "rows", CPU)
    for n in range(3):
        table.write(torch.full((2, len(COLUMNS)), n))
    assert streams.waits == []
