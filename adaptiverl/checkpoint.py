"""What a checkpoint takes and brings: the controller's memory, products of momenta, precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adaptiverl import soundness
from adaptiverl.algorithms import Algorithm
from adaptiverl.codecs import ERROR, ERROR_TERMS, Storage
from adaptiverl.step.counters import Counters
from adaptiverl.step.memory import STATE_KEY, export
from adaptiverl.step.state import PRODUCT, STEP

Conversions = set[tuple[torch.dtype, torch.dtype]]
"""What a checkpoint's state was saved in, and what it was converted to"""


class Loaded(NamedTuple):
    """What a load could not leave as it was saved.

    Attributes:
        converted: What state was saved in and is kept in, where these differ.
        without_product: Parameters that had stepped and whose product of momenta did not come, in a
            checkpoint of ours.
        dropped_errors: Parameters whose error terms are not kept.
        without_errors: Parameters that have error terms, of which a checkpoint of ours has none.
    """

    converted: Conversions
    without_product: int
    dropped_errors: int = 0
    without_errors: int = 0


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
    check_group: Callable[[dict[str, Any]], None],
    state_dict: dict[str, Any],
    load_state_dict: Callable[[dict[str, Any]], None],
) -> Loaded:
    """Load a checkpoint, ours or torch.optim's.

    Args:
        optimizer: It loads.
        algorithm: Its update rule.
        storage: What its state is kept in; a checkpoint's that is kept otherwise is converted.
        counters: Its.
        check_group: Raises ValueError where a group of a checkpoint asks for too much.
        state_dict: The checkpoint.
        load_state_dict: torch.optim's.

    Raises:
        TypeError: It is no dictionary.
        ValueError: It is damaged, another update rule's, or its controller's memory is of an
            unknown layout, or it asks for what `storage` cannot keep; nothing changed.
    """
    if not isinstance(state_dict, Mapping):
        soundness.check(state_dict, optimizer, algorithm, check_group)
    hooked, products = state_dict, {}

    def check(_: torch.optim.Optimizer, loading: dict[str, Any]) -> None:
        nonlocal hooked, products
        hooked = loading
        soundness.check(loading, optimizer, algorithm, check_group)
        if algorithm.corrects_bias:
            products = _products_in(loading)
        for group in loading["param_groups"]:
            storage.check_group(type(optimizer).__name__, group)

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
    dropped = take_errors(optimizer, storage, hooked)
    without_products = without_errors = 0
    if any(STATE_KEY in group for group in hooked["param_groups"]):
        stepped = [
            (param, entries)
            for param, key in _pairs(optimizer, hooked)
            if (entries := hooked["state"].get(key, {})).get(STEP) is not None
        ]
        if algorithm.corrects_bias:
            without_products = sum(entries.get(PRODUCT) is None for _, entries in stepped)
        without_errors = sum(
            storage.keeps_error(param) and entries.get(ERROR) is None for param, entries in stepped
        )
    return Loaded(converted, without_products, dropped, without_errors)


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
                converted.add((value.dtype, codec.state_dtype))
            optimizer.state[param][name] = kept
    return converted


def take_errors(
    optimizer: torch.optim.Optimizer, storage: Storage, state_dict: Mapping[str, Any]
) -> int:
    """Error terms of a checkpoint to the parameters that keep them; the others' are let go.

    Args:
        optimizer: It has loaded.
        storage: Says which parameters keep them.
        state_dict: What it has loaded.

    Returns:
        Of how many parameters they are let go.
    """
    dropped = 0
    for param, key in _pairs(optimizer, state_dict):
        value = state_dict["state"].get(key, {}).get(ERROR)
        if value is None:
            continue
        if storage.keeps_error(param):
            kept = optimizer.state[param].get(ERROR)
            same = isinstance(kept, Tensor) and kept.dtype == ERROR_TERMS.dtype
            optimizer.state[param][ERROR] = ERROR_TERMS.adopt(param, kept if same else value)
        else:
            optimizer.state[param].pop(ERROR, None)
            dropped += 1
    return dropped


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
