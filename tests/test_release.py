"""Gradient release trains what an ordinary step trains, and never holds all gradients."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import Crew
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from training import BUSY, assert_differ, assert_same, parameters, quadratic, snapshot, values

from adaptiverl import AdaptiveAdamW, AdaptiveLion, AdaptiveSGD, Control
from adaptiverl.layout import SLOT
from adaptiverl.step.snapshot import Snapshot

KINDS: dict[str, Callable[..., Any]] = {
    "AdamW": lambda params, **kw: AdaptiveAdamW(params, 0.01, amsgrad=True, **kw),
    "SGD": lambda params, **kw: AdaptiveSGD(params, 0.01, 0.9, nesterov=True, **kw),
    "Lion": lambda params, **kw: AdaptiveLion(params, 0.01, **kw),
}
CONTROLS = {
    "frozen": Control.frozen(),
    "loss law and noise": BUSY,
    "climb": Control.climb(60),
    "find_lr": Control.find_lr(1000),
}
STEPS = {"climb": 40, "find_lr": 80}


class Stack(nn.Module):
    """A chain of weights, so that a backward pass comes to them one after another."""

    def __init__(self, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weights = nn.ParameterList(parameters(*shapes, dtype=dtype))

    def forward(self, step: int) -> Tensor:
        loss = torch.zeros(())
        for weight in self.weights:
            loss = loss + quadratic([weight], step) + 0.1 * (loss * weight.float().mean()).tanh()
        return loss


def stack(dtype: torch.dtype = torch.float32) -> Stack:
    return Stack((5,), (7, 3), (), (4, 2), dtype=dtype)


def train(optimizer: Any, model: nn.Module, first: int, last: int, *, tell: str = "before") -> None:
    """The usual loop; a loss is told before the backward pass, or after it."""
    for step in range(first, last):
        loss = model(step)
        if tell == "before":
            optimizer.observe(loss)
        loss.backward()
        if tell == "after":
            optimizer.observe(loss)
        optimizer.step()
        optimizer.zero_grad()


def everything(optimizer: Any, model: nn.Module) -> Any:
    return snapshot(optimizer, list(model.parameters()))


def number(optimizer: Any, name: str) -> float:
    return float(optimizer._controller.state[SLOT[name]])


def pair(make: Callable[[Any], Any], model: nn.Module) -> list[tuple[Any, Any]]:
    """An ordinary optimizer of a model, and one of a copy that releases gradients."""
    runs = [(make(m), m) for m in (model, copy.deepcopy(model))]
    runs[1][0].release_gradients(runs[1][1])
    return runs


# --- What is trained --------------------------------------------------------------------------


CASES: list[Any] = [(kind, c, torch.float32, {}) for kind in KINDS for c in CONTROLS]
CASES += [
    ("AdamW", control, *stored)
    for control in ("loss law and noise", "find_lr")
    for stored in (
        (torch.bfloat16, {}),  # the compiled pass's other loop
        (torch.bfloat16, {"master_bits": 8}),
        (torch.float64, {}),  # plain torch
    )
]


@pytest.mark.parametrize(("kind", "control", "dtype", "options"), CASES)
def test_it_trains_what_ordinary_steps_train(
    kind: str, control: str, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    """To the bit: sums are read a step later in either, and losses are told before backward()."""

    def make(model: nn.Module) -> Any:
        return KINDS[kind](model.parameters(), control=CONTROLS[control], **options)

    runs = pair(make, stack(dtype))
    began = values(runs[0][1].parameters())
    for run in runs:
        train(*run, 0, STEPS.get(control, 8))
    ordinary, released = (everything(*run) for run in runs)
    assert_same(released, ordinary)
    assert_differ(values(runs[0][1].parameters()), began)
    if control == "climb":
        assert runs[1][0].knobs()["held"] == 1
    if control == "find_lr":  # its ramp is over: the weights went back
        assert number(runs[1][0], "search_steps") > 30
        assert number(runs[1][0], "searching") == 0


def test_a_search_goes_back_when_the_round_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before: the rest of the backward pass still reads the weights."""
    model = stack()
    optimizer = AdaptiveAdamW(model.parameters(), None, control=CONTROLS["find_lr"])
    optimizer.release_gradients(model)
    began = values(model.parameters())
    for step in range(150):
        loss, before = model(step), values(model.parameters())
        loss.backward()
        if number(optimizer, "rewind"):
            break
        optimizer.step()
    assert 30 < step < 149
    assert_same(values(model.parameters()), before)
    optimizer.step()
    assert_same(values(model.parameters()), began)
    monkeypatch.setattr(Snapshot, "keep", lambda *_: None)
    forgetful = AdaptiveAdamW((other := stack()).parameters(), None, control=optimizer.control)
    forgetful.release_gradients(other)
    train(forgetful, other, 0, step + 1)
    assert_differ(values(other.parameters()), began)


def test_what_is_told_after_the_backward_pass_acts_one_step_later() -> None:
    def make(model: nn.Module) -> Any:
        return AdaptiveAdamW(model.parameters(), 0.01, control=BUSY)

    (late, model), (released, twin) = pair(make, stack())
    before: Tensor | None = None
    for step in range(9):
        loss = model(step)
        loss.backward()
        if before is not None:
            late.observe(before)
        before = loss.detach()
        late.step()
        late.zero_grad()
    train(released, twin, 0, 9, tell="after")
    assert_same(values(twin.parameters()), values(model.parameters()))
    ordinary = make(other := stack())
    train(ordinary, other, 0, 9)
    assert_differ(values(other.parameters()), values(model.parameters()))


class Ties(nn.Module):
    """One weight at both ends, one that nothing reads, one that is frozen at times."""

    def __init__(self) -> None:
        super().__init__()
        drawn = parameters((4, 3), (3,), (2,), (3,))
        self.tied, self.bias, self.unused, self.frozen = drawn

    def forward(self, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(5, 4, generator=generator)
        self.frozen.requires_grad_(step % 3 != 0)
        hidden = (x @ self.tied + self.bias).tanh() * self.frozen
        return (hidden @ self.tied.T - x).square().mean()


@pytest.mark.parametrize("control", ["frozen", "climb", "find_lr"])
def test_tied_unused_and_frozen_weights_and_groups(control: str) -> None:
    def make(model: Ties) -> Any:
        model.frozen.requires_grad_(False)
        groups = [
            {"params": [model.tied, model.unused], "weight_decay": 0.1},
            {"params": [model.frozen, model.bias], "lr": 0.003},
        ]
        return AdaptiveAdamW(groups, 0.01, control=CONTROLS[control])

    runs = pair(make, Ties())
    for run in runs:
        train(*run, 0, STEPS.get(control, 8))
    assert_same(everything(*runs[1]), everything(*runs[0]))
    assert runs[1][1].unused not in runs[1][0].state
    assert runs[1][0].state[runs[1][1].frozen]["step"] < runs[1][0].state[runs[1][1].bias]["step"]


def test_a_compiled_model_and_a_checkpointed_one() -> None:
    class Blocks(nn.Module):
        def __init__(self, save_memory: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
            self.save_memory = save_memory

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = checkpoint(layer, x, use_reentrant=False) if self.save_memory else layer(x)
                x = x.tanh()
            return x.square().mean()

    def trained(model: Any, of: nn.Module, release: bool) -> Any:
        optimizer = AdaptiveAdamW(model.parameters(), 0.01)
        if release:
            optimizer.release_gradients(model)
        for step in range(3):
            loss = model(torch.ones(2, 3) * (step + 1))
            optimizer.observe(loss)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return everything(optimizer, of)

    plain, saving, compiled = Blocks(False), Blocks(True), Blocks(False)
    expected = trained(plain, plain, release=False)
    assert_same(trained(saving, saving, release=True), expected)
    faster = torch.compile(compiled, backend="aot_eager")
    torch.testing.assert_close(trained(faster, compiled, release=True), expected)


# --- What is in memory ------------------------------------------------------------------------


@pytest.mark.parametrize("release", [True, False])
def test_there_is_one_gradient_at_a_time(release: bool) -> None:
    model = Stack(*[(8, 8)] * 6)
    params = list(model.parameters())
    optimizer = AdaptiveAdamW(params, 0.01)
    present: list[int] = []
    seen: list[weakref.ref[Tensor]] = []

    def look(param: Tensor) -> None:
        assert param.grad is not None
        seen.append(weakref.ref(param.grad))
        present.append(optimizer.memory()["gradients"] // (4 * 64))

    for param in params:  # before those that release
        param.register_post_accumulate_grad_hook(look)
    if release:
        optimizer.release_gradients(model)
    model(0).backward()
    assert present == ([1] * 6 if release else [1, 2, 3, 4, 5, 6])
    gc.collect()
    assert [ref() is None for ref in seen] == [release] * 6
    assert optimizer.memory()["gradients"] == (0 if release else 6 * 4 * 64)


def test_hooks_keep_no_optimizer_alive_and_a_round_no_parameter() -> None:
    model = stack()
    optimizer = AdaptiveAdamW(model.parameters(), 0.01)
    handle = optimizer.release_gradients(model)
    train(optimizer, model, 0, 2)
    dropped = weakref.ref(model.weights[0])
    optimizer.param_groups[0]["params"] = list(model.weights)[1:]
    del optimizer.state[model.weights[0]]
    model.weights = nn.ParameterList(list(model.weights)[1:])
    train(optimizer, model, 2, 4)
    gc.collect()
    assert dropped() is None
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None
    model(4).backward()
    assert all(param.grad is not None for param in model.parameters())
    handle.remove()


# --- Its end, and what comes between ----------------------------------------------------------


@pytest.mark.parametrize("in_round", [False, True])
def test_once_removed_step_steps_again(in_round: bool) -> None:
    def make(model: nn.Module) -> Any:
        return AdaptiveAdamW(model.parameters(), 0.01, control=Control.climb(60))

    (ordinary, model), (released, twin) = pair(make, stack())
    train(ordinary, model, 0, 9)
    train(released, twin, 0, 4)
    if in_round:
        released.observe(loss := twin(4))
        loss.backward()
    released._released.remove()
    train(released, twin, 4 + in_round, 9)
    assert_same(everything(released, twin), everything(ordinary, model))
    released.release_gradients(twin)  # and so can it begin again
    for run in ((ordinary, model), (released, twin)):
        train(*run, 9, 12)
    assert_same(everything(released, twin), everything(ordinary, model))


@pytest.mark.parametrize("control", ["climb", "find_lr"])
@pytest.mark.parametrize("release", [True, False])
def test_a_run_goes_on_from_its_checkpoint(control: str, release: bool) -> None:
    def make(model: nn.Module) -> Any:
        return AdaptiveAdamW(model.parameters(), 0.01, control=CONTROLS[control])

    _, (whole, model) = pair(make, stack())
    train(whole, model, 0, 20)
    saved = copy.deepcopy((whole.state_dict(), model.state_dict()))
    train(whole, model, 20, 70)
    resumed = make(other := stack())
    if release:
        resumed.release_gradients(other)
    other(0).backward()  # a round that is open when the load comes is forgotten
    other.load_state_dict(saved[1])
    resumed.load_state_dict(saved[0])
    resumed.zero_grad()
    train(resumed, other, 20, 70)
    assert_same(everything(resumed, other), everything(whole, model))


def test_a_horizon_that_comes_late_is_taken() -> None:
    def make(model: nn.Module) -> Any:
        return AdaptiveAdamW(model.parameters(), 0.01, control=Control.climb("auto"))

    runs = pair(make, stack())
    for optimizer, model in runs:
        optimizer.set_horizon(60)
        train(optimizer, model, 0, 40)
    assert_same(everything(*runs[1]), everything(*runs[0]))
    assert runs[1][0].knobs()["held"] == 1


def test_closures_hooks_groups_that_come_late_and_gradients_by_hand() -> None:
    def make(model: nn.Module) -> Any:
        return AdaptiveAdamW(list(model.parameters())[:3], 0.01, control=BUSY)

    calls: list[str] = []
    for optimizer, model in (runs := pair(make, stack())):
        optimizer.register_step_post_hook(lambda *_: calls.append("step"))

        def closure(step: int, optimizer: Any = optimizer, model: Any = model) -> Any:
            loss = model(step)
            optimizer.observe(loss)
            loss.backward()
            return loss

        for step in range(3):
            optimizer.step(lambda step=step, closure=closure: closure(step))
            optimizer.zero_grad()
        optimizer.add_param_group({"params": [model.weights[3]], "lr": 0.1})
        train(optimizer, model, 3, 6)
        for param in model.parameters():
            param.grad = torch.full_like(param, 0.5)
        optimizer.step()
        optimizer.zero_grad()
    assert_same(everything(*runs[1]), everything(*runs[0]))
    assert calls == ["step"] * 14


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_at_rates_of_0_makes_state_as_ever(kind: str) -> None:
    """As checkpoint libraries take it: zero gradients, put there by hand."""
    runs = pair(lambda model: KINDS[kind](model.parameters()), stack())
    for optimizer, model in runs:
        optimizer.param_groups[0]["lr"] = 0.0
        for param in model.parameters():
            param.grad = torch.zeros_like(param)
        optimizer.step()
    assert_same(everything(*runs[1]), everything(*runs[0]))
    assert number(runs[1][0], "step") == 0


# --- What does not work -----------------------------------------------------------------------


def released_stack(**options: Any) -> tuple[Any, Stack]:
    model = stack()
    optimizer = AdaptiveAdamW(model.parameters(), 0.01, **options)
    optimizer.release_gradients(model)
    train(optimizer, model, 0, 2)
    return optimizer, model


def test_a_second_backward_pass_is_refused_and_changes_nothing() -> None:
    optimizer, model = released_stack(control=Control.climb(60))
    reference, twin = released_stack(control=Control.climb(60))
    optimizer.observe(loss := model(2))
    loss.backward()
    before = everything(optimizer, model)
    with pytest.raises(RuntimeError, match=r"parameter 3 got a second gradient.*accumulated"):
        model(3).backward()
    assert_same(everything(optimizer, model), before)
    assert all(param.grad is None for param in model.parameters())
    optimizer.step()
    train(reference, twin, 2, 3)
    for run in ((optimizer, model), (reference, twin)):
        train(*run, 3, 5)
    assert_same(everything(optimizer, model), everything(reference, twin))


def test_a_reentrant_checkpoint_that_shares_a_parameter_is_refused() -> None:
    model = nn.Linear(3, 3)
    optimizer = AdaptiveAdamW(model.parameters(), 0.01)
    optimizer.release_gradients(model)
    x = torch.ones(2, 3, requires_grad=True)
    inner = checkpoint(model, x, use_reentrant=True)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        checkpoint(model, inner, use_reentrant=True).sum().backward()


class Breaks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise ArithmeticError("out of luck")


def test_a_backward_pass_that_breaks_off_is_a_round_that_zero_grad_ends() -> None:
    optimizer, model = released_stack(control=Control.climb(60))
    first, last = model.weights[0], model.weights[3]
    before = values(model.parameters())
    broken = Breaks.apply(quadratic([first], 2))  # what was made last is gone through first
    loss = broken + quadratic([last], 2)
    with pytest.raises(ArithmeticError):
        loss.backward()
    optimizer.zero_grad()
    assert_same(values([first]), before[:1])
    assert number(optimizer, "step") == 3
    train(optimizer, model, 3, 6)
    assert number(optimizer, "step") == 6


def test_a_gradient_that_no_step_can_take_changes_nothing() -> None:
    model = nn.Embedding(4, 3, sparse=True)
    optimizer = AdaptiveAdamW(model.parameters(), 0.01)
    optimizer.release_gradients(model)
    before = everything(optimizer, model)
    with pytest.raises(RuntimeError, match="sparse gradients"):
        model(torch.tensor([1, 2])).sum().backward()
    assert_same(everything(optimizer, model), before)
    assert number(optimizer, "step") == 0


@pytest.mark.parametrize("fused", [None, True])
def test_a_gradient_scaler_is_refused(fused: bool | None) -> None:
    model = nn.Linear(3, 1)
    optimizer = AdaptiveAdamW(model.parameters(), 0.01, fused=fused)
    optimizer.release_gradients(model)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.ones(2, 3)).sum()).backward()
    with pytest.raises(RuntimeError, match="gradient scaler"):
        scaler.step(optimizer)
    optimizer.found_inf = torch.zeros(())
    with pytest.raises(RuntimeError, match="gradient scaler"):
        optimizer.step()


def wrapped(model: nn.Module) -> nn.Module:
    """As DDP's class says of itself, without ranks."""
    ddp = DistributedDataParallel.__new__(DistributedDataParallel)
    nn.Module.__init__(ddp)
    ddp.module = model
    return ddp


def twice(params: Sequence[Tensor]) -> Any:
    with pytest.warns(UserWarning, match="duplicate parameters"):
        return AdaptiveAdamW([*params, params[0]], 0.01)


def plain(params: Iterable[Tensor]) -> Any:
    return AdaptiveAdamW(list(params), 0.01)


@pytest.mark.parametrize(
    ("make", "model_of", "error", "says"),
    [
        (plain, lambda model: model.parameters(), TypeError, "takes the model"),
        (plain, lambda model: nn.Linear(2, 2), ValueError, "without parameter 0, of shape"),
        (plain, wrapped, ValueError, "DistributedDataParallel"),
        (
            lambda params: AdaptiveAdamW(params, 0.01, max_grad_norm=1.0),
            lambda model: model,
            ValueError,
            "max_grad_norm=1 exclude",
        ),
        (twice, lambda model: model, ValueError, "twice: list it once"),
    ],
)
def test_what_it_cannot_be_used_with(
    make: Callable[[Any], Any], model_of: Callable[[nn.Module], Any], error: Any, says: str
) -> None:
    model = stack()
    optimizer = make(list(model.parameters()))
    with pytest.raises(error, match=says):
        optimizer.release_gradients(model_of(model))
    model(0).backward()
    assert all(param.grad is not None for param in model.parameters())


def test_it_is_not_begun_twice_nor_groups_added_in_a_round() -> None:
    optimizer, model = released_stack()
    with pytest.raises(RuntimeError, match="already"):
        optimizer.release_gradients(model)
    model(2).backward()
    extra = nn.Parameter(torch.ones(2))
    with pytest.raises(RuntimeError, match="call step"):
        optimizer.add_param_group({"params": [extra]})
    assert len(optimizer.param_groups) == 1


def test_copies_of_the_optimizer_step_in_step() -> None:
    optimizer, model = released_stack()
    pair_of_both = copy.deepcopy((model, optimizer))
    model, optimizer = pair_of_both
    before = values(model.parameters())
    model(2).backward()
    assert_same(values(model.parameters()), before)
    optimizer.step()
    assert_differ(values(model.parameters()), before)


def why_not_on_ranks(rank: int, size: int) -> list[str]:
    """What is said to a rank of several, and that each alone may release its gradients."""
    replicated, said = DistributedDataParallel(stack()), []
    for model, together in ((stack(), True), (replicated, False)):
        group: Any = None if together else False
        optimizer = AdaptiveAdamW(model.parameters(), 0.01, process_group=group)
        with pytest.raises(ValueError, match="release_gradients") as refused:
            optimizer.release_gradients(model)
        said.append(str(refused.value))
    alone = stack()
    optimizer = AdaptiveAdamW(alone.parameters(), 0.01, process_group=False)
    optimizer.release_gradients(alone)
    train(optimizer, alone, 0, 2)
    return said


def test_ranks_that_decide_together_are_refused(crew: Crew) -> None:
    together, replicated = crew.run(2, why_not_on_ranks)[0]
    assert "on 2 ranks that decide together" in together
    assert "got parameter 0, of shape (5,)" in together
    assert "DistributedDataParallel" in replicated


def train_shards(kind: str, control: str, steps: int, release: bool) -> tuple[Any, list[int]]:
    """A net whose layers FSDP2 cuts unevenly, the last one so that a rank has nothing of it.

    Returns:
        What is left on this rank, and how many gradients were there after each backward pass.
    """
    torch.manual_seed(0)
    layers = nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3), nn.Tanh(), nn.Linear(3, 1)
    model: Any = nn.Sequential(*layers)
    for layer in model:
        fully_shard(layer)
    fully_shard(model)
    optimizer = KINDS[kind](model.parameters(), control=CONTROLS[control])
    if release:
        optimizer.release_gradients(model)
    present = []
    generator = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(steps):
        for reduces in (False, True):  # FSDP2 may accumulate before it reduces
            model.set_requires_gradient_sync(reduces)
            loss = model(torch.randn(4, 5, generator=generator)).square().mean()
            loss.backward()
        present.append(sum(p.grad is not None for p in model.parameters()))
        optimizer.step()
        optimizer.observe(loss)
        optimizer.zero_grad()
    left = [p.to_local().detach().clone() for p in model.parameters()]
    return (left, optimizer._controller.memory.clone()), present


def shards_both_ways(rank: int, size: int, kind: str, control: str, steps: int) -> list[int]:
    """Gradients that were there where they are released; ordinary steps train the same."""
    ordinary, all_of_them = train_shards(kind, control, steps, release=False)
    released, present = train_shards(kind, control, steps, release=True)
    assert_same(released, ordinary)
    assert set(all_of_them) == {6}
    return present


@pytest.mark.parametrize(
    ("kind", "control"), [("AdamW", "loss law and noise"), ("Lion", "climb"), ("SGD", "frozen")]
)
def test_shards_are_stepped_as_their_gradients_are_scattered(
    crew: Crew, kind: str, control: str
) -> None:
    """Ranks meet for the sums of squares in the hooks, and for all else where they always do."""
    for present in crew.run(2, shards_both_ways, kind, control, 8):
        assert set(present) == {0}
