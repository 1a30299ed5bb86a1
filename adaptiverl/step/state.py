"""A parameter's state: what a step may assume of it and of the gradient, and how it is made.

Training code edits state by hand, and loaders cast it. A kernel that got an address would believe
it, so everything is looked at before an address is taken, and before anything is changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from adaptiverl.algorithms import Algorithm
from adaptiverl.codecs import ERROR, ERROR_TERMS, Storage, as_dtype
from adaptiverl.ranks.dtensors import is_dtensor, to_local

STEP, PRODUCT = "step", "mu_product"
"""State of one number (`step.counters`); all other that a step walks has the parameter's shape"""


def check_gradient(param: Tensor, index: int, optimizer: str) -> None:
    """A parameter's gradient is one that a step can take.

    Args:
        param: It has a gradient.
        optimizer: Whose step it is, for the message.
        index: Its place in the optimizer, for the message.

    Raises:
        RuntimeError: The gradient is sparse, of another shape, or on another device.
    """
    grad = param.grad
    assert grad is not None
    if grad.layout != torch.strided:
        raise RuntimeError(
            f"{optimizer} does not support sparse gradients, got one of layout {grad.layout} for a "
            f"parameter of shape {tuple(param.shape)}: use torch.optim.SparseAdam for that "
            "parameter, or torch.nn.Embedding(..., sparse=False)"
        )
    _check_beside(param, grad, f"the gradient of parameter {index}")


def check_state(param: Tensor, index: int, state: Mapping[str, Any], names: Iterable[str]) -> None:
    """A parameter's state is what a step can take, or can be made so by a cast.

    Args:
        param: The parameter.
        index: Its place in the optimizer, for the message.
        state: Its state; what is missing is made later.
        names: Of the entries that have the parameter's shape.

    Raises:
        RuntimeError: An entry has another shape, is on another device, or is of a kind of numbers
            that is not the parameter's.
    """
    for name in names:
        value = state.get(name)
        if isinstance(value, Tensor):
            _check_beside(param, value, f"{name} of parameter {index}")
            dtype = torch.promote_types(param.dtype, torch.float32)
            if not torch.can_cast(value.dtype, dtype):
                raise RuntimeError(
                    f"{name} of parameter {index} cannot be cast from {value.dtype} to "
                    f"{dtype}, which a parameter of {param.dtype} needs"
                )
    for name in (STEP, PRODUCT):
        value = state.get(name)
        if value is not None and not is_number(value):
            found = repr(value)
            if isinstance(value, Tensor):
                found = f"{value.dtype} of shape {tuple(value.shape)}"
            raise RuntimeError(f"{name} of parameter {index} must be one real number, got {found}")


def complete(
    algorithm: Algorithm,
    storage: Storage,
    param: Tensor,
    group: Mapping[str, Any],
    state: dict[str, Any],
) -> None:
    """Make what is missing of a parameter's slots; a checkpoint may have brought a part.

    Likewise its error terms, where it has some. What is there is put into the dtype that kernels
    read: torch's own loader, which wrappers call, casts every floating entry to the parameter's.

    Args:
        algorithm: The update rule.
        storage: What its state is kept in.
        param: The parameter.
        group: Its group.
        state: Its state, which is changed.
    """
    if storage.keeps_error(param):
        value = state.get(ERROR)
        fresh = value is None
        state[ERROR] = ERROR_TERMS.zeros_beside(param) if fresh else ERROR_TERMS.adopt(param, value)
    else:
        state.pop(ERROR, None)  # of a parameter that was cast to another dtype
    needed = algorithm.slots_of(group)
    for place, name in enumerate(algorithm.slots):
        if name not in needed:
            continue
        codec = storage.codec_of_slot(param, place)
        value = state.get(name)
        state[name] = codec.zeros_beside(param) if value is None else codec.adopt(param, value)


def is_number(value: Any) -> bool:
    """Whether this is one real number, Python's, NumPy's or in a tensor; it may be NaN."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex() and value.dtype != torch.bool
    if isinstance(value, (bool, str, bytes)):
        return False
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def in_order(entries: Any, names: Iterable[str]) -> Any:
    """A state whose entries of these names come first, in this order.

    Args:
        entries: A parameter's state, which is left alone; returned itself where it is in order, or
            is no dictionary.
        names: Ours, whether it has them or not.
    """
    if not isinstance(entries, dict):
        return entries
    own = {name: entries[name] for name in names if name in entries}
    return entries if list(own) == list(entries)[: len(own)] else own | entries


def as_counter(value: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A state entry of one number, 0-d; a checkpoint may have made a number of it."""
    if isinstance(value, Tensor):
        value = value.to(device)  # before its dtype: its own device may have no float64
    tensor = as_dtype(value, dtype, device)
    return tensor if tensor.dim() == 0 else tensor.reshape(())


def _check_beside(param: Tensor, tensor: Tensor, name: str) -> None:
    expected, found = shapes_beside(param, tensor)
    if found != expected:
        raise RuntimeError(
            f"The size of {name} must match the parameter's, got {found} beside {expected}; "
            "nothing was changed. Who cuts or extends a parameter does the same with its gradient "
            "and its state, or removes them"
        )
    if tensor.device != param.device:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two: "
            f"{name} is on {tensor.device}, the parameter on {param.device}; nothing was changed. "
            "State that was moved away is moved back before the step"
        )


def shapes_beside(param: Tensor, tensor: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Both shapes, to compare: of what lies here where both are laid out alike over the ranks."""
    if is_dtensor(param):
        spread = getattr(tensor, "placements", None)
        if spread is None or spread == param.placements:  # type: ignore[attr-defined]
            param, tensor = to_local(param), to_local(tensor)
    return tuple(param.shape), tuple(tensor.shape)
