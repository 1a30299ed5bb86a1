"""A device that isn't there, played by the CPU: strict like MPS, and without float64 like it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("mps", 0)
READING_METHODS = (Tensor.item, Tensor.tolist, Tensor.__float__, Tensor.__bool__)
READ = torch.ops.aten._local_scalar_dense.default
COPY, COPY_INTO = torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default


class OnStandIn(Tensor):
    """A tensor that says it is on the stand-in; `played` is the CPU's that it really is."""

    played: Tensor

    @staticmethod
    def __new__(cls, played: Tensor) -> OnStandIn:
        if played.dtype in (torch.float64, torch.complex128):
            raise TypeError(f"the stand-in device has no {played.dtype}")
        made = Tensor._make_wrapper_subclass(
            cls,
            played.shape,
            strides=played.stride(),
            storage_offset=played.storage_offset(),
            dtype=played.dtype,
            device=DEVICE,
        )
        made.played = played
        return made

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # Autograd and some methods ask torch for the device, and there is none.
        if func in READING_METHODS:
            return func(args[0].played)
        if func is Tensor.__getitem__:
            return OnStandIn(args[0].played[args[1]])
        func = COPY_INTO if func is Tensor.copy_ else func
        with torch._C._AutoDispatchBelowAutograd(), torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return run(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnStandIn({self.played!r})"


class StandIn(TorchDispatchMode):
    """Within it ``device="mps"`` makes tensors on the stand-in."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Do on the CPU what was asked of the stand-in, or raise what a device would raise."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    theirs = [x for x in tensors if isinstance(x, OnStandIn)]
    device = kwargs.get("device")
    here = bool(theirs) if device is None else torch.device(device).type == DEVICE.type
    if not theirs and not here:
        return func(*args, **kwargs)
    taken_apart = func.decompose(*args, **kwargs)  # `to` into `_to_copy`, and the like
    if taken_apart is not NotImplemented:
        return taken_apart
    if func in (COPY, COPY_INTO):
        _check_copy(func, args, kwargs)
    elif any(not isinstance(x, OnStandIn) and x.dim() for x in tensors):
        raise RuntimeError(f"{func}: expected all tensors on one device, found cpu and {DEVICE}")
    elif func is torch.ops.aten.where.self and not isinstance(args[0], OnStandIn):
        raise RuntimeError(f"{func}: the condition is on the cpu, the rest on {DEVICE}")
    if device is not None:
        kwargs = kwargs | {"device": "cpu"}
    args_played, kwargs_played = tree_map_only(OnStandIn, lambda x: x.played, (args, kwargs))
    result = func(*args_played, **kwargs_played)
    if func is READ:
        return result
    if func._schema.is_mutable:
        return args[0]  # in place: the same tensor comes back
    return tree_map_only(Tensor, OnStandIn, result) if here else result


def _check_copy(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """MPS changes a dtype before it copies to the CPU, so to float64 it can't."""
    source = args[0] if func is COPY else args[1]
    dtype = kwargs.get("dtype") if func is COPY else args[0].dtype
    if isinstance(source, OnStandIn) and dtype == torch.float64:
        raise TypeError(f"the stand-in device has no {dtype}, and this copy asks it for some")
