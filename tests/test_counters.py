"""Where each parameter's steps and product of momenta are, and who may edit, move or save them."""

from __future__ import annotations

import copy
import gc
import io
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from grids import pairwise
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_cases import as_kept
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from training import BUSY, assert_same, saved_states, snapshot

from adaptiverl import AdaptiveAdamW, AdaptiveLion, AdaptiveSGD, Control
from adaptiverl.step.products import Known, Unknown, complete_products

MAKES: dict[str, Callable[..., Any]] = {
    "adamw": AdaptiveAdamW,
    "amsgrad": partial(AdaptiveAdamW, amsgrad=True),
    "fused": partial(AdaptiveAdamW, fused=True),
    "sgd": partial(AdaptiveSGD, momentum=0.9),
    "lion": AdaptiveLion,
}
DTYPES = [torch.float32, torch.bfloat16]
FROZEN = Control.frozen()
MOVING = Control(every=1, momentum_bounds=(0.5, 0.99))
"""β₁ moves in every step: no product is a power"""


class Net(nn.Module):
    """Three parameters in two groups; gradients come by hand."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
            for shape in ((6, 3), (7,), (4, 3))
        )


class Run:
    """An optimizer over a net; a step's gradients and loss depend on its number alone."""

    def __init__(
        self,
        make: str,
        dtype: torch.dtype = torch.float32,
        control: Control = MOVING,
        **options: Any,
    ) -> None:
        self.net = Net(dtype)
        self.params = list(self.net.weights)
        groups = [{"params": self.params[:1]}, {"params": self.params[1:], "lr": 0.02}]
        self.optimizer = MAKES[make](groups, lr=0.01, control=control, **options)
        self.done = 0

    def go(self, steps: int, absent: tuple[int, ...] = ()) -> Run:
        for _ in range(steps):
            for i, p in enumerate(self.params):
                generator = torch.Generator().manual_seed(100 * self.done + i)
                grad = torch.randn(p.shape, generator=generator).to(p.dtype)
                p.grad = None if i in absent else grad
            self.optimizer.step(loss=2.0 + (-1) ** self.done / (1 + self.done))
            self.done += 1
        return self

    def products(self) -> list[float]:
        return [float(s["mu_product"]) for s in saved_states(self.optimizer).values()]

    def end(self) -> Any:
        return snapshot(self.optimizer, self.params)


def has_shapes(run: Run) -> bool:
    """Every entry of live state but `step` has its parameter's shape."""
    return all(
        value.shape == (() if name == "step" else p.shape)
        for p, state in run.optimizer.state.items()
        for name, value in state.items()
    )


# Every entry but `step` has the parameter's shape


def _reloaded(run: Run) -> None:
    run.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))


def _reloaded_by_torch(run: Run) -> None:
    saved = copy.deepcopy(run.optimizer.state_dict())
    torch.optim.Optimizer.load_state_dict(run.optimizer, saved)


def _copied(run: Run) -> None:
    run.params, run.optimizer = copy.deepcopy((run.params, run.optimizer))


def _pickled(run: Run) -> None:
    run.params, run.optimizer = pickle.loads(pickle.dumps((run.params, run.optimizer)))


def _put_back(run: Run) -> None:
    """As ZeRO loads: without any call of the optimizer's."""
    for p, state in saved_states(run.optimizer).items():
        run.optimizer.state[p] = copy.deepcopy(state)


BY_CALL = [_reloaded, _copied, _pickled]
EVENTS = [*BY_CALL, _reloaded_by_torch, _put_back]


@pairwise(make=MAKES, dtype=DTYPES, event=EVENTS)
def test_every_entry_but_the_count_has_the_parameters_shape(
    event: Callable[[Run], None], dtype: torch.dtype, make: str
) -> None:
    run = Run(make, dtype).go(3)
    assert has_shapes(run)
    event(run)
    if event is not _put_back:
        assert has_shapes(run), "before the next step, too"
    run.go(2)
    assert has_shapes(run)


@pairwise(make=MAKES, dtype=DTYPES, event=[*BY_CALL, _put_back])
def test_no_event_changes_a_bit(
    event: Callable[[Run], None], dtype: torch.dtype, make: str
) -> None:
    plain, run = Run(make, dtype).go(3), Run(make, dtype).go(3)
    for _ in range(2):
        event(run)
        assert_same(run.go(2).end(), plain.go(2).end())


def densify(run: Run, place: int, keep: Tensor) -> None:
    """As gsplat's strategies: rows are taken or doubled, of all entries but `step`."""
    old = run.params[place]
    new = nn.Parameter(old.detach()[keep])
    state = run.optimizer.state.pop(old)
    for key in state:
        if key != "step":
            state[key] = state[key][keep]
    group = run.optimizer.param_groups[int(place > 0)]
    group["params"] = [new if p is old else p for p in group["params"]]
    run.optimizer.state[new] = state
    run.params[place] = new


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("keep", [[0, 2], [0, 1, 2, 3, 1, 1]], ids=["fewer", "more"])
def test_rows_taken_of_state_and_parameter_go_on_as_they_would_have(
    keep: list[int], dtype: torch.dtype, make: str
) -> None:
    """Elements know nothing of each other: those that were kept have the bits of an uncut run.

    Noise and rounding by chance, which know an element's place, are off.
    """
    quiet = replace(MOVING, noise_bounds=(0.0, 0.0))
    ends = []
    for cut in (False, True):
        run = Run(make, dtype, quiet, stochastic_rounding=False).go(3)
        if cut:
            densify(run, 2, torch.tensor(keep))
        for step in range(3):
            for p in run.params:
                p.grad = torch.full_like(p, 0.5 - step)
            run.optimizer.step(loss=3.0 - step)
        last = run.params[2].detach()
        ends.append([*run.params[:2], last if cut else last[keep]])
    assert_same(ends[1], ends[0])


@pytest.mark.parametrize("theirs", [torch.optim.AdamW, AdaptiveAdamW])
def test_a_new_parameter_with_cloned_state_has_the_product_of_its_peers(theirs: Any) -> None:
    """Where even the count was cloned, as many steps in the group are the same momenta."""
    run = Run("adamw").go(4)
    products = run.products()
    assert products[1] != pytest.approx(0.9**4, rel=1e-3), "β₁ did not move"
    old, state = run.params[2], run.optimizer.state.pop(run.params[2])
    new = nn.Parameter(old.detach().clone())
    run.optimizer.param_groups[1]["params"][1] = run.params[2] = new
    run.optimizer.state[new] = {name: value.clone() for name, value in state.items()}
    plain = Run("adamw").go(4)
    assert_same(run.go(2).end(), plain.go(2).end())


# Edits


EDITS: list[Callable[[Any], Any]] = [
    lambda step: step.zero_(),
    lambda step: step.fill_(7.0),
    lambda step: step.sub_(2),
    lambda step: step.copy_(torch.tensor(1)),
]


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_in_place_is_followed(edit: Callable[[Any], Any]) -> None:
    run = Run("adamw", control=FROZEN).go(4)
    entry = run.optimizer.state[run.params[2]]["step"]
    edit(entry)
    expected = float(entry) + 1
    run.go(1)
    assert run.optimizer.state[run.params[2]]["step"] is entry
    assert float(entry) == expected
    assert [float(run.optimizer.state[p]["step"]) for p in run.params[:2]] == [5.0, 5.0]


def _roll_back(optimizer: Any, kept: dict[Tensor, dict[str, Tensor]]) -> None:
    for p, entries in kept.items():
        for name, value in entries.items():
            optimizer.state[p][name].copy_(value)


LIVE_EDITS: dict[str, Callable[[Any, Any], Any]] = {
    "set": lambda o, _: [s["step"].fill_(1000) for s in o.state.values()],
    "one set": lambda o, _: next(iter(o.state.values()))["step"].fill_(12),
    "set back": lambda o, _: [s["step"].sub_(3) for s in o.state.values()],
    "rolled back": _roll_back,
}
AFTERWARDS: dict[str, Callable[[Any], Any]] = {
    "at once": lambda o: None,
    "moved": lambda o: [Tensor.set_(s["step"], s["step"].clone()) for s in o.state.values()],
    "replaced": lambda o: [s.update(step=s["step"].clone()) for s in o.state.values()],
    "offloaded": lambda o: [
        s.update({k: v.clone() for k, v in s.items()}) for s in o.state.values()
    ],
    "saved and loaded": lambda o: o.load_state_dict(copy.deepcopy(o.state_dict())),
    "saved": lambda o: o.state_dict(),
}


@pairwise(dtype=[torch.float32, torch.float64], edit=LIVE_EDITS, then=AFTERWARDS)
def test_an_edited_count_corrects_as_adamws(dtype: torch.dtype, edit: str, then: str) -> None:
    """Compiled and in plain torch: the product is that of as many steps."""
    ends = []
    for make in (AdaptiveAdamW, torch.optim.AdamW):
        run = Run("adamw", dtype, FROZEN)
        if make is torch.optim.AdamW:
            groups: list[Any] = [{"params": run.params[:1]}, {"params": run.params[1:], "lr": 0.02}]
            run.optimizer = _Deaf(groups, lr=0.01)
        run.go(2)
        kept = copy.deepcopy(list(run.optimizer.state.values()))
        run.go(4)
        LIVE_EDITS[edit](run.optimizer, dict(zip(run.optimizer.state, kept, strict=True)))
        if make is AdaptiveAdamW:
            AFTERWARDS[then](run.optimizer)
        run.go(2)
        ends.append([*run.params, *(s["step"] for s in run.optimizer.state.values())])
    torch.testing.assert_close(*ends)


class _Deaf(torch.optim.AdamW):
    """torch's, which takes no loss."""

    def step(self, closure: Any = None, *, loss: Any = None) -> Any:
        return super().step(closure)


@pytest.mark.parametrize("then", AFTERWARDS.values(), ids=AFTERWARDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_count_edited_alone_has_a_power_of_the_groups_momentum(
    dtype: torch.dtype, then: Callable[[Any], Any]
) -> None:
    """However it is read before the next step, and however many are skipped before."""
    run = Run("adamw", dtype).go(4)
    state = run.optimizer.state
    for p, steps in ((run.params[0], 7), (run.params[2], 2)):
        state[p]["step"].fill_(steps)
    before = run.products()
    then(run.optimizer)
    run.optimizer.grad_scale, run.optimizer.found_inf = torch.ones(1), torch.ones(1)
    run.optimizer.step()
    run.optimizer.found_inf = torch.zeros(1)
    run.go(1)
    momentum = run.optimizer.knobs()["momentum"]
    assert momentum != pytest.approx(0.9, rel=1e-3), "β₁ did not move"
    expected = [0.9**7 * momentum, before[1] * momentum, 0.9**2 * momentum]
    assert run.products() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_product_that_is_edited_with_its_count_is_taken(dtype: torch.dtype) -> None:
    """By who loads in place what `state_dict` gave, without a call of ours."""
    run = Run("adamw", dtype).go(2)
    kept = copy.deepcopy(run.optimizer.state_dict()["state"])
    products = run.products()
    run.go(3)
    for i, entries in run.optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            value.copy_(kept[i][name])
    assert run.products() == products
    run.go(1)
    momentum = run.optimizer.knobs()["momentum"]
    assert run.products() == [product * momentum for product in products]


MOVED: dict[str, Callable[[Tensor], Any]] = {
    "data": lambda step: setattr(step, "data", step.data.clone()),
    "other data": lambda step: setattr(step, "data", torch.tensor(50.0)),
    "reset": lambda step: setattr(step, "data", torch.zeros(())),
    "set_": lambda step: step.set_(torch.tensor(9.0)),  # type: ignore[call-overload]
    "shared": Tensor.share_memory_,
}


@pytest.mark.parametrize("make", ["adamw", "sgd"])
@pytest.mark.parametrize("move", MOVED.values(), ids=MOVED)
def test_a_count_that_was_moved_goes_on_from_what_it_says(
    move: Callable[[Tensor], Any], make: str
) -> None:
    """The same tensor, and other memory under it."""
    run = Run(make, control=FROZEN).go(3)
    param = run.params[1]
    move(run.optimizer.state[param]["step"])
    expected = float(run.optimizer.state[param]["step"]) + 3
    run.go(3)
    assert float(run.optimizer.state[param]["step"]) == expected
    assert float(run.optimizer.state_dict()["state"][1]["step"]) == expected


REPLACED: list[Callable[[Tensor], Any]] = [
    Tensor.clone,
    Tensor.item,
    lambda step: int(step),
    lambda step: np.float32(step),
    lambda step: step.double(),
    lambda step: step.to(torch.int64),
    lambda step: step.reshape(1).clone(),
]


@pytest.mark.parametrize("make", ["adamw", "sgd"])
@pytest.mark.parametrize("other", REPLACED)
def test_a_count_that_somebody_replaced_is_taken_in(
    other: Callable[[Tensor], Any], make: str
) -> None:
    run, plain = Run(make).go(4), Run(make).go(4)
    where = [run.optimizer._round.plan._sorted[0].rows().clone() for _ in range(1)]
    for state in run.optimizer.state.values():
        state["step"] = other(state["step"])
    assert_same(run.go(2).end(), plain.go(2).end())
    for state in run.optimizer.state.values():
        assert state["step"].dtype == torch.float32
        assert state["step"].shape == ()
    rows = run.optimizer._round.plan._sorted[0].rows()
    assert torch.equal(rows[:, 5:7], where[0][:, 5:7]), "they are counted where they were"


def test_another_count_is_another_product() -> None:
    run = Run("adamw", control=MOVING).go(4)
    run.optimizer.state[run.params[0]]["step"] = torch.tensor(50.0)
    run.go(1)
    momentum = run.optimizer.knobs()["momentum"]
    assert run.products()[0] == pytest.approx(0.9**50 * momentum, rel=1e-12)
    assert run.products()[1] != pytest.approx(0.9**5, rel=1e-3)


def test_what_is_brought_in_as_a_product_is_taken() -> None:
    run = Run("adamw").go(4)
    state = run.optimizer.state[run.params[0]]
    state["mu_product"] = 0.25
    run.go(1)
    assert "mu_product" not in state
    assert run.products()[0] == 0.25 * run.optimizer.knobs()["momentum"]


def test_a_count_whose_memory_was_exchanged_is_no_danger() -> None:
    """What it says is taken into our own memory, in which it was counted and is again."""
    run, plain = Run("adamw").go(4), Run("adamw").go(4)
    state = run.optimizer.state[run.params[0]]
    state["step"].data = state["step"].double()
    run.go(1)
    plain.go(1)
    assert_same(run.params, plain.params)
    assert run.products() == plain.products()
    state["step"].data = torch.tensor(9.0)
    run.go(1, absent=(1,))
    assert float(state["step"]) == 10.0


def test_two_parameters_may_exchange_their_states() -> None:
    run = Run("adamw")
    run.params[2].data = torch.ones(7)
    run.go(2, absent=(1,)).go(2)
    first, second = run.params[1:]
    before = run.products()
    state = run.optimizer.state
    state[first], state[second] = state[second], state[first]
    run.go(1)
    assert [float(state[p]["step"]) for p in (first, second)] == [5.0, 3.0]
    momentum = run.optimizer.knobs()["momentum"]
    assert run.products()[1:] == [before[2] * momentum, before[1] * momentum]


def test_an_optimizer_and_its_shallow_checkpoint_share_no_count() -> None:
    """torch's load keeps the checkpoint's own tensors where nothing has to be cast."""
    first, second = Run("adamw").go(3), Run("adamw")
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.go(2)
    for p in first.params:
        assert float(first.optimizer.state[p]["step"]) == 3.0


# The product where nobody has it


def known_of(steps: int, product: float) -> Known:
    return Known(torch.tensor(float(steps)), as_kept(product, steps))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.lists(st.integers(1, 40)))
@settings(deadline=None, max_examples=50)
def test_a_product_is_that_of_a_peer_with_as_many_steps_or_a_power(
    counts: list[int], peers: list[int]
) -> None:
    known = [known_of(n, torch.tensor(1.0 / n).item()) for n in set(peers)]
    unknown = [Unknown(torch.tensor(float(n)), None) for n in counts]
    for count, found in zip(counts, complete_products(unknown, known, 0.5), strict=True):
        expected = torch.tensor(1.0 / count).item() if count in peers else 0.5**count
        assert found.dtype == torch.float64
        assert found.item() == expected


def test_the_parameters_own_last_product_comes_first() -> None:
    peer = known_of(3, 0.6)
    for last, expected in ((known_of(3, 0.7), 0.7), (known_of(4, 0.7), 0.6)):
        own = Unknown(torch.tensor(3.0), last)
        assert complete_products([own], [peer], torch.tensor(0.9)) == [expected]


def test_a_product_belongs_to_the_steps_it_was_left_at_whatever_the_count_says() -> None:
    edited = Known(torch.tensor(3.0), as_kept(0.7, 5))
    brought = Known(torch.tensor(3.0), torch.tensor([0.8, 0.7, 5.0]).double())
    for steps, known, expected in (
        (3.0, edited, 0.5**3),
        (5.0, edited, 0.7),
        (3.0, brought, torch.tensor(0.8).item()),
        (5.0, brought, 0.5**5),
    ):
        count = torch.tensor(steps)
        of_itself = complete_products([Unknown(count, known)], [], 0.5)
        of_a_peer = complete_products([Unknown(count, None)], [known], 0.5)
        assert [float(x) for x in (*of_itself, *of_a_peer)] == [expected] * 2


def test_a_checkpoint_of_adamws_knows_no_product_of_the_run_that_loads_it() -> None:
    """As many steps as ours had, of other momenta: AdamW's own never move."""
    theirs = torch.optim.AdamW(Run("adamw").params, lr=0.01)
    for p in theirs.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    for _ in range(4):
        theirs.step()
    run = Run("adamw")
    run.optimizer = AdaptiveAdamW(run.params, lr=0.01, control=MOVING)
    run.go(4)
    run.optimizer.load_state_dict(copy.deepcopy(theirs.state_dict()))
    assert run.products() == [0.9**4] * 3


# Saved


def test_a_saved_count_is_one_number() -> None:
    params = [nn.Parameter(torch.ones(1)) for _ in range(400)]
    optimizer = AdaptiveAdamW(params, control=BUSY)
    for p in params:
        p.grad = torch.ones(1)
    optimizer.step(loss=1.0)
    one = optimizer.state[params[0]]
    assert {x.untyped_storage().nbytes() for x in one.values()} == {4}
    sizes = []
    for content in (optimizer.state_dict(), {i: optimizer.state[p] for i, p in enumerate(params)}):
        assert len(pickle.dumps(content)) < 1500 * 400, "plain pickle shares no memory"
        buffer = io.BytesIO()
        torch.save(content, buffer)
        sizes.append(buffer.tell())
    theirs = torch.optim.AdamW(params)
    theirs.step()
    buffer = io.BytesIO()
    torch.save(theirs.state_dict(), buffer)
    assert max(sizes) < 1.6 * buffer.tell()


@pytest.mark.parametrize(
    ("how", "trained"),
    [
        *((how, trained) for how in ("nested", "flattened") for trained in (0, 2, 9)),
        ("nested, offloaded", 9),
        ("flattened, offloaded", 0),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:torch.distributed")
@pytest.mark.filterwarnings("ignore::FutureWarning:torch.distributed")
def test_dcp_resumes_to_the_bit(trained: int, how: str, tmp_path: Path) -> None:
    """Flattened, DCP looks in live state for what there is to load."""
    options = StateDictOptions(
        flatten_optimizer_state_dict="flattened" in how, cpu_offload="offloaded" in how
    )
    run = Run("adamw").go(5)
    saved = get_optimizer_state_dict(run.net, run.optimizer, options=options)
    dcp.save(saved, checkpoint_id=tmp_path, no_dist=True)
    again = Run("adamw").go(trained)
    found = get_optimizer_state_dict(again.net, again.optimizer, options=options)
    dcp.load(found, checkpoint_id=tmp_path, no_dist=True)
    set_optimizer_state_dict(again.net, again.optimizer, found, options=options)
    for p, q in zip(again.params, run.params, strict=True):
        p.data.copy_(q.data)
    again.done = run.done
    assert has_shapes(again)
    assert_same(again.go(4).end(), run.go(4).end())


@pytest.mark.filterwarnings("ignore::UserWarning:torch.distributed")
@pytest.mark.filterwarnings("ignore::FutureWarning:torch.distributed")
@pytest.mark.parametrize("kind", ["adamw", "sgd", "lion"])
def test_flattened_and_not_in_place_dcp_drops_the_product_of_a_trained_optimizer(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It asks live state for what there is to load: by the names whose shapes others rely on.

    What is lost is small from the start, where μ has not come far, and gone where both are near 0.
    """
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    run = Run(kind).go(5)
    saved: Any = copy.deepcopy(get_optimizer_state_dict(run.net, run.optimizer, options=options))
    again = Run(kind).go(9)
    set_optimizer_state_dict(again.net, again.optimizer, copy.deepcopy(saved), options=options)
    lines = [record.getMessage() for record in caplog.records]
    for p, q in zip(again.params, run.params, strict=True):
        p.data.copy_(q.data)
    again.done = run.done
    if kind != "adamw":
        assert lines == []
        assert_same(again.go(4).end(), run.go(4).end())
        return
    assert [line[:43] for line in lines] == ["AdaptiveAdamW has loaded 3 parameters witho"]
    assert again.products() == pytest.approx([0.9**5] * 3, rel=1e-14)
    off = []
    for steps in (0, 80):
        again.go(steps)
        run.go(steps)
        pairs = zip(again.products(), run.products(), strict=True)
        off.append(max(abs((1 - one) / (1 - other) - 1) for one, other in pairs))
    assert 1e-3 < off[0] < 0.1
    assert off[1] < 1e-4
    fresh = Run(kind)
    set_optimizer_state_dict(fresh.net, fresh.optimizer, saved, options=options)
    assert fresh.products() == [float(saved[f"state.weights.{i}.mu_product"]) for i in range(3)]


# Memory


def test_late_parameters_move_no_vector_and_what_is_unused_goes() -> None:
    run = Run("adamw").go(1, absent=(2,))
    workspace = run.optimizer._round.workspace

    def vectors() -> dict[Any, int]:
        return {
            place: piece.tensors[0].data_ptr()
            for place, piece in workspace._pieces.items()
            if place[0] == "counters"  # type: ignore[index]
        }

    early = vectors()
    run.go(1)
    late = vectors()
    assert len(early) == 1
    assert len(late) == 2
    assert early.items() <= late.items()
    run.optimizer.state.clear()
    run.params, run.net = [], Net()
    for group in run.optimizer.param_groups:
        group["params"] = []
    gc.collect()
    run.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    run.params = run.optimizer.param_groups[-1]["params"]
    run.go(1)
    assert len(vectors()) == 1


def test_a_capture_counts_nothing_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    from adaptiverl import devices

    run = Run("adamw").go(2)
    run.optimizer.state[run.params[0]]["step"] = torch.tensor(9.0)
    before = run.end()
    with monkeypatch.context() as capturing:
        capturing.setattr(devices, "is_capturing", lambda device: True)
        capturing.setattr("adaptiverl.step.workspace.watch_capture", lambda device: lambda: True)
        with pytest.raises(RuntimeError, match="a parameter's step is not counted yet"):
            run.go(1)
    assert_same(run.end(), before)
