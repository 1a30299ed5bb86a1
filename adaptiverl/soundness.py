"""Whether a checkpoint can be loaded: all of it is looked at before any of it is taken over.

torch.optim takes what it is given, and finds out in the next step, or half-way through.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adaptiverl.algorithms import ALGORITHMS, Algorithm
from adaptiverl.backends.layouts import is_fake
from adaptiverl.codecs import ERROR
from adaptiverl.migrations import current_layout
from adaptiverl.ranks.dtensors import to_local
from adaptiverl.step.horizon import check_saved_horizon
from adaptiverl.step.memory import STATE_KEY, memory_in
from adaptiverl.step.snapshot import KEY as SEARCH_START
from adaptiverl.step.state import PRODUCT, STEP, is_number, shapes_beside

MOST_STEPS = 2.0**53
"""Steps that a count may say: all that float64 counts one by one"""
SHOWN = 60
"""Characters of a value that a message shows"""

Groups = Sequence[Mapping[str, Any]]


class Saved(NamedTuple):
    """A parameter, and its state in the checkpoint.

    Attributes:
        param: The parameter.
        name: What messages call it: its place in the optimizer, and its name if it has one.
        entries: Its state.
    """

    param: Tensor
    name: str
    entries: dict[str, Any]


def check(
    loading: Any,
    optimizer: torch.optim.Optimizer,
    algorithm: Algorithm,
    check_group: Callable[[dict[str, Any]], None],
) -> None:
    """All of it is what this optimizer can go on from.

    Args:
        loading: What is to be loaded.
        optimizer: Who loads it.
        algorithm: The optimizer's update rule.
        check_group: Raises ValueError where a group asks for what the optimizer does not do.

    Raises:
        TypeError: It is no dictionary.
        ValueError: Something in it is missing, damaged, or another kind of optimizer's; says what.
    """
    _check_parts(loading)
    _check_rule(loading, algorithm, type(optimizer).__name__)
    groups = [optimizer.defaults | group for group in loading["param_groups"]]
    _check_options(groups, algorithm, check_group)
    _check_states(optimizer.param_groups, loading, algorithm)
    check_saved_horizon(loading["param_groups"])
    for group in loading["param_groups"]:
        memory = memory_in(group.get(STATE_KEY))
        if STATE_KEY in group and not is_fake(memory):
            current_layout(memory)


def _check_parts(loading: Any) -> None:
    """It is what `state_dict` returns: a dictionary with state and groups, those dictionaries."""
    if not isinstance(loading, Mapping):
        raise TypeError(
            "load_state_dict() takes what state_dict() returned, a dictionary, got "
            f"{_shown(loading)} of type {type(loading).__name__}; nothing was changed"
        )
    missing = [part for part in ("state", "param_groups") if part not in loading]
    if missing:
        raise ValueError(
            f"an optimizer's state_dict has 'state' and 'param_groups', got a dictionary with the "
            f"keys {_shown(list(loading))}: give load_state_dict() the part of the checkpoint that "
            "state_dict() returned; nothing was changed"
        )
    if not isinstance(loading["state"], Mapping):
        raise _damage("state", "a dictionary", loading["state"])
    groups = loading["param_groups"]
    if not isinstance(groups, (list, tuple)):
        raise _damage("param_groups", "a list of dictionaries", groups)
    for number, group in enumerate(groups):
        if not isinstance(group, dict):
            raise _damage(f"param_groups[{number}]", "a dictionary", group)
        params = group.get("params")
        if not isinstance(params, (list, tuple)) or not all(
            isinstance(key, Hashable) for key in params
        ):
            raise _damage(f"params of group {number}", "a list of numbers or names", params)


def _check_rule(loading: Mapping[str, Any], algorithm: Algorithm, optimizer: str) -> None:
    """The checkpoint is this rule's: its groups have what the rule reads, its state no other's."""
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


def _check_options(
    groups: Groups, algorithm: Algorithm, check_group: Callable[[dict[str, Any]], None]
) -> None:
    """The groups' numbers are numbers, and ask for nothing that the optimizer does not do."""
    for number, group in enumerate(groups):
        for option in algorithm.options:
            value = group[option]
            pair = isinstance(value, (list, tuple))
            if pair != (option == "betas") or (pair and len(value) != 2):
                expected = "a pair of numbers" if option == "betas" else "one number"
                raise _damage(f"{option} of group {number}", expected, value)
            for one in value if pair else (value,):
                known = is_number(one) or isinstance(one, bool)
                if not known or (_is_readable(one) and not math.isfinite(_read([one])[0])):
                    raise _damage(f"{option} of group {number}", "finite, and a number", value)
        # What torch.optim.AdamW loads is decoupled whatever it was.
        check_group({k: v for k, v in group.items() if k != "decoupled_weight_decay"})


def _check_states(groups: Groups, loading: Mapping[str, Any], algorithm: Algorithm) -> None:
    """Every parameter's state is one that a step can go on from.

    Numbers that lie on a device are waited for. Where groups are of other sizes than the
    optimizer's, which torch.optim says, nothing is looked at.
    """
    sizes = [[len(group["params"]) for group in some] for some in (groups, loading["param_groups"])]
    if sizes[0] != sizes[1]:
        return
    saved = list(_saved(groups, loading))
    for one in saved:
        _check_entries(one, algorithm)
    counts = _numbers(saved, STEP)
    for one, count in zip(saved, counts, strict=True):
        _check_count(one, count, algorithm)
    if algorithm.corrects_bias:
        for one, count, product in zip(saved, counts, _numbers(saved, PRODUCT), strict=True):
            _check_product(one, count, product)


def _damage(what: str, expected: str, found: Any) -> ValueError:
    """Why a checkpoint is not taken."""
    return ValueError(
        f"the checkpoint's {what} must be {expected}, got {_shown(found)}: it is damaged, or was "
        "edited on the way; load another one; nothing was changed"
    )


def _saved(groups: Groups, loading: Mapping[str, Any]) -> Iterator[Saved]:
    """Every parameter that has state in the checkpoint."""
    params = [param for group in groups for param in group["params"]]
    keys = [key for group in loading["param_groups"] for key in group["params"]]
    states = loading["state"]
    for index, (param, key) in enumerate(zip(params, keys, strict=True)):
        if key not in states and not isinstance(key, (str, Tensor)) and str(key) in states:
            raise ValueError(
                f"the checkpoint's state has the key {str(key)!r} where its groups have {key!r}: "
                "something made text of numbers, as JSON does; make them numbers again, "
                "{int(key): value for key, value in state.items()}; nothing was changed"
            )
        if key in states:
            name = f"parameter {index}" + (f" ({key})" if isinstance(key, str) else "")
            if not isinstance(states[key], dict):
                raise _damage(f"state of {name}", "a dictionary", states[key])
            yield Saved(param, name, states[key])


def _check_entries(saved: Saved, algorithm: Algorithm) -> None:
    param, name, entries = saved
    for entry in (*algorithm.slots, ERROR, SEARCH_START):
        value = entries.get(entry)
        if value is None or (param.dim() == 0 and is_number(value)):
            continue
        where = f"{entry} of {name}"
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            raise _damage(where, "a dense tensor", value)
        expected, found = shapes_beside(param, value)
        if found != expected:
            raise _damage(where, f"of the parameter's shape {expected}", value)
        if entry != ERROR and not (value.is_floating_point() or value.is_complex()):
            raise _damage(where, "of a floating-point dtype, no codes without their scales", value)
        dtype = torch.promote_types(param.dtype, torch.float32)
        if not torch.can_cast(value.dtype, dtype):
            raise _damage(where, f"of a dtype that can be cast to {dtype}", value)
    for entry in (STEP, PRODUCT):
        if entries.get(entry) is not None and not is_number(entries[entry]):
            raise _damage(f"{entry} of {name}", "one real number", entries[entry])


def _check_count(saved: Saved, count: float | None, algorithm: Algorithm) -> None:
    _, name, entries = saved
    kept = [slot for slot in algorithm.slots if entries.get(slot) is not None]
    if entries.get(STEP) is None:
        if kept and algorithm.corrects_bias:
            raise _damage(f"{STEP} of {name}", f"the number of steps that made its {kept[0]}", None)
    elif count is not None:
        if not (0 <= count <= MOST_STEPS and count == int(count)):
            raise _damage(f"{STEP} of {name}", f"whole and in [0, {MOST_STEPS:.0f}]", count)
        for slot in algorithm.needed if count > 0 else ():
            if slot not in kept:
                raise _damage(f"{slot} of {name}", f"a tensor after {count:.0f} steps", None)


def _check_product(saved: Saved, count: float | None, product: float | None) -> None:
    if product is None:
        return
    value = saved.entries[PRODUCT]
    rounded = isinstance(value, Tensor) and value.dtype != torch.float64
    below = count is not None and count > 0 and not rounded  # 1 would divide by 0
    if not 0 <= product <= 1 or (below and product == 1):
        expected = "in [0, 1)" if below else "in [0, 1]"
        raise _damage(f"{PRODUCT} of {saved.name}", f"a product of momenta, {expected}", product)


def _numbers(saved: Sequence[Saved], entry: str) -> list[float | None]:
    """What each says of an entry of one number; None where there is none, or none to read."""
    found: list[float | None] = [None] * len(saved)
    places = [i for i, one in enumerate(saved) if _is_readable(one.entries.get(entry))]
    for i, value in zip(places, _read([saved[i].entries[entry] for i in places]), strict=True):
        found[i] = value
    return found


def _is_readable(value: Any) -> bool:
    if not isinstance(value, Tensor):
        return value is not None
    return not is_fake(value) and value.device.type != "meta"


def _read(values: Sequence[Any]) -> list[float]:
    """The values of numbers and of tensors of one number; one wait for each device and dtype."""
    found = [0.0 if isinstance(value, Tensor) else float(value) for value in values]
    alike: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, value in enumerate(values):
        if isinstance(value, Tensor):
            alike.setdefault((value.device, value.dtype), []).append(i)
    for places in alike.values():
        read = torch.stack([to_local(values[i]).detach().reshape(()) for i in places]).tolist()
        for i, number in zip(places, read, strict=True):
            found[i] = float(number)
    return found


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        layout = "" if value.layout == torch.strided else f"{value.layout} "
        return f"{layout}{value.dtype} of shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
