"""How much memory an optimizer's parts take on this rank, counted from the tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from adaptiverl.kernels.block_tensor import stored
from adaptiverl.ranks.dtensors import to_local
from adaptiverl.step.state import STEP


def bytes_by_part(
    groups: Sequence[Mapping[str, Any]],
    state: Mapping[Tensor, Any],
    own: Mapping[str, Iterable[Tensor]],
) -> dict[str, int]:
    """Bytes of the parameters, their gradients, each kind of state, and the optimizer's own.

    Memory that several tensors share counts once, and of a view only what it shows.

    Args:
        groups: The optimizer's.
        state: The optimizer's.
        own: What it holds beside them, by what it is called.

    Returns:
        ``parameters``, ``gradients``, each state entry by its name, and the parts of `own`.
    """
    params = [p for group in groups for p in group["params"]]
    parts: dict[str, list[Tensor]] = {
        "parameters": params,
        "gradients": [p.grad for p in params if p.grad is not None],
    }
    for param in params:
        for name, value in state.get(param, {}).items():
            if isinstance(value, Tensor) and name != STEP:  # which lies in a vector of the own
                parts.setdefault(name, []).append(value)
    parts |= {name: list(tensors) for name, tensors in own.items()}
    seen: set[tuple[str, int, int]] = set()
    return {name: sum(_new_bytes(t, seen) for t in tensors) for name, tensors in parts.items()}


def _new_bytes(tensor: Tensor, seen: set[tuple[str, int, int]]) -> int:
    local = stored(to_local(tensor))
    if local.numel() == 0:
        return 0
    place = (str(local.device), local.data_ptr(), local.nbytes)
    if place in seen:
        return 0
    seen.add(place)
    return local.nbytes
