"""What a checkpoint takes and brings: the controller's memory, products of momenta, precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adaptiverl.algorithms import ALGORITHMS, Algorithm
from adaptiverl.codecs import Storage
from adaptiverl.migrations import current_layout
from adaptiverl.step.counters import Counters
from adaptiverl.step.memory import STATE_KEY, export, memory_in
from adaptiverl.step.state import PRODUCT

Conversions = set[tuple[torch.dtype, torch.dtype]]
"""What a checkpoint's state was saved in, and what it was converted to"""


def save(
    optimizer: torch.optim.Optimizer,
    exported: Callable[[Any, Sequence[Any], Mapping[Any, Any]], dict[Any, Any]],
    state_dict: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    """The checkpoint, before hooks of the user's own see it: torch.optim's and what that lacks.

    Args:
        optimizer: It saves.
        exported: Its `Round`'s.
        state_dict: torch.optim's.
    """

    def complete(_: torch.optim.Optimizer, saving: dict[str, Any]) -> None:
        keys = [key for group in saving["param_groups"] for key in group["params"]]
        saving["state"] = exported(optimizer.param_groups, keys, saving["state"])
        export(saving["param_groups"])

    handle = optimizer.register_state_dict_post_hook(complete, prepend=True)
    try:
        return state_dict()
    finally:
        handle.remove()


def load(
    optimizer: torch.optim.Optimizer,
    algorithm: Algorithm,
    storage: Storage,
    counters: Counters,
    state_dict: dict[str, Any],
    load_state_dict: Callable[[dict[str, Any]], None],
) -> Conversions:
    """Load a checkpoint, ours or torch.optim's.

    Args:
        optimizer: It loads.
        algorithm: Its update rule.
        storage: What its state is kept in; a checkpoint's that is kept otherwise is converted.
        counters: Its.
        state_dict: The checkpoint.
        load_state_dict: torch.optim's.

    Returns:
        What state was saved in and is kept in, where these differ.

    Raises:
        ValueError: The controller's memory is damaged or of an unknown layout, or the checkpoint is
            another update rule's, or of options that `storage` cannot keep; nothing changed.
    """
    hooked, products = state_dict, {}

    def check(_: torch.optim.Optimizer, loading: dict[str, Any]) -> None:
        nonlocal hooked, products
        hooked = loading
        _check_rule(loading, algorithm, type(optimizer).__name__)
        if algorithm.corrects_bias:
            products = _products_in(loading)
        for group in loading["param_groups"]:
            storage.check_group(type(optimizer).__name__, group)
            if STATE_KEY in group:
                current_layout(memory_in(group[STATE_KEY]))

    # The last of the hooks: it sees what the user's own have made of the checkpoint.
    handle = optimizer.register_load_state_dict_pre_hook(check)
    try:
        load_state_dict(state_dict)
    finally:
        handle.remove()
    converted = restore_precision(optimizer, algorithm, storage, hooked)
    for param, key in _pairs(optimizer, hooked):
        if key in products:
            optimizer.state[param][PRODUCT] = products[key]
    counters.adopt(optimizer.param_groups, optimizer.state)
    return converted


# A parameter's state


def restore_precision(
    optimizer: torch.optim.Optimizer,
    algorithm: Algorithm,
    storage: Storage,
    state_dict: Mapping[str, Any],
) -> Conversions:
    """A load casts state to the parameter's dtype; ours keeps the one it was made with.

    Args:
        optimizer: It has loaded.
        algorithm: Its update rule.
        storage: What its state is kept in.
        state_dict: What it has loaded.

    Returns:
        What state was saved in and is kept in, where these differ.
    """
    converted = set()
    for param, key in _pairs(optimizer, state_dict):
        for name, value in state_dict["state"].get(key, {}).items():
            loaded = optimizer.state[param].get(name)
            if name not in algorithm.slots or not isinstance(loaded, Tensor):
                continue
            codec = storage.codec_of_slot(param, algorithm.slots.index(name))
            kept = codec.adopt(param, loaded if loaded.dtype == value.dtype else value)
            if codec.loses(value, kept):
                converted.add((value.dtype, codec.dtype))
            optimizer.state[param][name] = kept
    return converted


def _products_in(state_dict: Mapping[str, Any]) -> dict[Any, Any]:
    """Copies of the products, which a load casts; they may lie where it takes them to."""
    found = {}
    for key, entries in state_dict["state"].items():
        if isinstance(entries, dict) and entries.get(PRODUCT) is not None:
            product = entries[PRODUCT]
            found[key] = product.clone() if isinstance(product, Tensor) else product
    return found


def _pairs(
    optimizer: torch.optim.Optimizer, state_dict: Mapping[str, Any]
) -> Iterator[tuple[Tensor, Any]]:
    """Each parameter and what stands for it in the checkpoint."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    keys = [key for group in state_dict["param_groups"] for key in group["params"]]
    return zip(params, keys, strict=True)


def complete_count(group: Mapping[str, Any], state: dict[str, Any]) -> None:
    """SGD's `step` counts what the buffer has taken in; torch.optim.SGD's checkpoints have none.

    Args:
        group: The parameter's group.
        state: The parameter's state, before what is missing of it is made.
    """
    buffered = state.get("momentum_buffer") is not None
    if buffered:
        state.setdefault("step", 1.0)
    elif group["momentum"] != 0:
        state.pop("step", None)


def _check_rule(loading: Mapping[str, Any], algorithm: Algorithm, optimizer: str) -> None:
    """The checkpoint is this rule's: its groups have what the rule reads, its state no other's.

    Raises:
        ValueError: It is another's.
    """
    for number, group in enumerate(loading["param_groups"]):
        missing = [option for option in algorithm.options if option not in group]
        if missing:
            raise ValueError(
                f"the checkpoint is not one that {optimizer} can load: its group {number} has no "
                f"{', '.join(missing)}, so another kind of optimizer saved it; nothing was changed"
            )
    own = set(algorithm.slots)
    foreign = {slot for other in ALGORITHMS.values() for slot in other.slots} - own
    for state in loading["state"].values():
        found = sorted(foreign.intersection(state)) if isinstance(state, dict) else []
        if found:
            raise ValueError(
                f"the checkpoint is not one that {optimizer} can load: its state has "
                f"{', '.join(found)}, so another kind of optimizer saved it; nothing was changed"
            )
