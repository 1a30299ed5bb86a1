"""DTensors, asked without importing torch.distributed.tensor: where nobody did, there is none."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor


def is_dtensor(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor; where nobody imported DTensor, there is none."""
    return isinstance(tensor, _dtensor_class())


def to_local(tensor: Tensor) -> Tensor:
    """This rank's shard of a DTensor, whose memory it shares; any other tensor itself."""
    if not is_dtensor(tensor):
        return tensor
    local = tensor.to_local()  # type: ignore[attr-defined]
    return local.wait() if hasattr(local, "wait") else local


def any_dtensor(tensors: Iterable[Any]) -> bool:
    """Whether one of many is a DTensor; asks each type once."""
    return any(issubclass(kind, _dtensor_class()) for kind in set(map(type, tensors)))


def local_tensors(tensors: list[Any]) -> list[Any]:
    """`to_local` of many, to look at: it makes no view, and so takes a hundredth of the time."""
    return _of_each(tensors, "_local_tensor") if any_dtensor(tensors) else tensors


def placed_alike(params: Sequence[Tensor], grads: Sequence[Any]) -> bool:
    """Whether every gradient is laid out over the ranks as its parameter is."""
    ours, theirs = _of_each(params, "_spec"), _of_each(grads, "_spec")
    # FSDP2 gives both one object.
    same = all(map(operator.is_, ours, theirs))
    return same or _placements(ours) == _placements(theirs)


def _of_each(tensors: Sequence[Any], attribute: str) -> list[Any]:
    """An attribute of those tensors that are DTensors; the others themselves."""
    try:
        return list(map(operator.attrgetter(attribute), tensors))
    except AttributeError:
        return [getattr(t, attribute, t) for t in tensors]


def _placements(specs: Sequence[Any]) -> list[Any]:
    return [getattr(spec, "placements", None) for spec in specs]


def _dtensor_class() -> Any:
    """DTensor; where nobody imported it, there is none, and nothing is an instance of ()."""
    module = sys.modules.get("torch.distributed.tensor")
    return () if module is None else module.DTensor


def as_placed(local: Tensor, like: Tensor) -> Tensor:
    """This rank's shard of a tensor that is laid out over the ranks as another; or itself."""
    if not is_dtensor(like):
        return local
    shape, stride = like.shape, like.stride()
    return _dtensor_class().from_local(  # type: ignore[no-any-return]
        local,
        like.device_mesh,  # type: ignore[attr-defined]
        like.placements,  # type: ignore[attr-defined]
        run_check=False,
        shape=shape,
        stride=stride,
    )


def to_whole(value: Any) -> Any:
    """A DTensor's logical tensor, which its ranks make together; anything else itself."""
    if type(value) is not Tensor and isinstance(value, Tensor) and is_dtensor(value):
        return value.detach().full_tensor()  # type: ignore[attr-defined]
    return value


def gradient_of(param: Tensor) -> Tensor:
    """This rank's shard of a parameter's gradient, laid out as the parameter is."""
    grad = param.grad
    assert grad is not None
    if is_dtensor(param) and grad.placements != param.placements:  # type: ignore[attr-defined]
        grad = grad.redistribute(placements=param.placements)  # type: ignore[attr-defined]
    return to_local(grad)
