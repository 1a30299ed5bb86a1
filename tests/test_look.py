"""What a step's look at its tensors sees: the compiled one and its twin, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adaptiverl import AdaptiveAdamW, AdaptiveSGD
from adaptiverl.step import look as module
from adaptiverl.step.fingerprint import Fingerprint, GroupKey
from adaptiverl.step.look import Look, look, walk

EXCHANGE = [
    pytest.param(
        True,
        id="in one call",
        marks=pytest.mark.skipif(
            module.EXCHANGE is None, reason="this torch has no DLPack exchange API"
        ),
    ),
    pytest.param(False, id="one by one"),
]
BASE = torch.arange(24, dtype=torch.float32)
TENSORS: dict[str, Callable[[], Tensor]] = {
    "plain": lambda: BASE.view(4, 6),
    "as many elements in another shape": lambda: BASE.view(2, 12),
    "a parameter": lambda: nn.Parameter(BASE.view(4, 6)),
    "further on": lambda: BASE[3:],
    "a slice with gaps": lambda: BASE.view(4, 6)[:, 1:3],
    "transposed": lambda: BASE.view(4, 6).t(),
    "a row, transposed": lambda: BASE.view(1, 24).t(),
    "expanded": lambda: BASE[:1].expand(5),
    "one number": lambda: BASE[2],
    "empty": lambda: torch.empty(0, 3),
    "bfloat16": lambda: BASE.to(torch.bfloat16),
    "float64": lambda: BASE.double(),
    "int32": lambda: BASE.to(torch.int32),
    "complex": lambda: torch.ones(2, dtype=torch.complex64),
    "channels last": lambda: torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last),
}


@pytest.fixture(params=EXCHANGE)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:
        monkeypatch.setattr(module, "EXCHANGE", None)
    return bool(request.param)


def kind_of(tensor: Tensor) -> tuple[int, torch.dtype, bool]:
    return tensor.numel(), tensor.dtype, tensor.is_contiguous()


def test_addresses_are_the_tensors_own(way: bool) -> None:
    tensors = [make() for make in TENSORS.values()]
    assert look(tensors).numbers().tolist() == [t.data_ptr() for t in tensors]
    assert look([]).numbers().tolist() == []


@pytest.mark.parametrize("name", TENSORS)
def test_kinds_are_equal_where_a_pass_sees_no_difference(name: str, way: bool) -> None:
    one = TENSORS[name]()
    for make in TENSORS.values():
        other = make()
        assert (look([one]).kinds == look([other]).kinds) == (kind_of(one) == kind_of(other))


@pytest.mark.parametrize(
    "bad", [3.0, None, torch.ones(2, device="meta"), torch.ones(2).to_sparse()]
)
def test_what_has_no_address_is_an_error(bad: Any, way: bool) -> None:
    if bad is not None and way is False and getattr(bad, "is_meta", False):
        pytest.skip("meta tensors have the address 0, which is nobody's")
    with pytest.raises((RuntimeError, TypeError, BufferError)):
        look([torch.ones(2), bad])


def test_memory_that_was_taken_away_lies_nowhere(way: bool) -> None:
    tensor = torch.ones(4)
    tensor.untyped_storage().resize_(0)
    assert look([tensor]).numbers().tolist() == [0]


# A walk is what the careful look says


def stepped(groups: int) -> Any:
    params = [nn.Parameter(torch.ones(2 + i, 3)) for i in range(4)]
    cut = [params] if groups == 1 else [params[:1], params[1:]]
    optimizer = AdaptiveAdamW(
        [{"params": part, "amsgrad": i == 1} for i, part in enumerate(cut)], lr=0.1
    )
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step(loss=1.0)
    return optimizer, params


def keys_of(optimizer: Any) -> list[GroupKey]:
    keys: list[GroupKey] = optimizer._round.plan.group_keys(optimizer.param_groups)
    return keys


@pytest.mark.skipif(module.EXCHANGE is None, reason="this torch has no DLPack exchange API")
@pytest.mark.parametrize("groups", [1, 2])
def test_a_walk_sees_what_the_careful_look_sees(groups: int) -> None:
    optimizer, params = stepped(groups)
    usual = Fingerprint._usual(keys_of(optimizer), optimizer.state)
    assert usual is not None
    assert usual == Fingerprint._any(keys_of(optimizer), optimizer.state)
    assert [type(one) for one in (usual.params, usual.slots, usual.gradients)] == [Look] * 3
    assert usual.slots.numbers().tolist() == [
        optimizer.state[p][name].data_ptr()
        for p in params
        for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
        if name in optimizer.state[p]
    ]


UNUSUAL: dict[str, Callable[[Any, Any], Any]] = {
    "no gradient": lambda o, p: setattr(p, "grad", None),
    "a gradient to be negated": lambda o, p: setattr(p, "grad", torch._neg_view(p.detach())),
    "a gradient of another class": lambda o, p: setattr(
        p, "grad", p.detach().as_subclass(type("Other", (Tensor,), {}))
    ),
    "a product in the state": lambda o, p: o.state[p].update(mu_product=0.5),
    "no count": lambda o, p: o.state[p].pop("step"),
    "no moment": lambda o, p: o.state[p].pop("exp_avg"),
    "a state that is no dictionary": lambda o, p: o.state.update({p: [1, 2]}),
}


@pytest.mark.skipif(module.EXCHANGE is None, reason="this torch has no DLPack exchange API")
@pytest.mark.parametrize("change", UNUSUAL.values(), ids=UNUSUAL)
def test_what_is_unusual_is_looked_at_closer(change: Callable[[Any, Any], Any]) -> None:
    optimizer, params = stepped(1)
    change(optimizer, params[2])
    assert Fingerprint._usual(keys_of(optimizer), optimizer.state) is None


@pytest.mark.skipif(module.EXCHANGE is None, reason="this torch has no DLPack exchange API")
def test_a_walk_takes_what_it_is_given_for_nothing_else() -> None:
    with pytest.raises((TypeError, RuntimeError)):
        walk([([torch.ones(1)], 3, ("exp_avg",))])  # type: ignore[list-item]
    assert walk([([torch.ones(1)], [], ())]) is None
    assert walk([([1.0], [{}], ())]) is None
    param = nn.Parameter(torch.ones(1))
    param.grad = torch.ones(1)
    with pytest.raises(RuntimeError, match="Unable to cast"):
        walk([([param], [{"step": 1, "exp_avg": 2}], ("exp_avg",))])


def test_an_optimizer_without_slots(way: bool) -> None:
    params = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = AdaptiveSGD(params, lr=0.1, momentum=0.0)
    for p in params:
        p.grad = torch.ones(3)
    for _ in range(3):
        optimizer.step(loss=1.0)
    assert [float(s["step"]) for s in optimizer.state.values()] == [3.0, 3.0]
    assert torch.equal(params[0], params[1])
