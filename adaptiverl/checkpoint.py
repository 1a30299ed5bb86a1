"""What a checkpoint brings: the controller's memory, precision, and what torch.optim's lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from adaptiverl.algorithms import Algorithm
from adaptiverl.codecs import Storage
from adaptiverl.devices import numbers_device
from adaptiverl.migrations import current_layout
from adaptiverl.step.memory import STATE_KEY
from adaptiverl.step.state import as_counter


def load(
    optimizer: torch.optim.Optimizer,
    algorithm: Algorithm,
    storage: Storage,
    state_dict: dict[str, Any],
    load_state_dict: Callable[[dict[str, Any]], None],
) -> None:
    """Load a checkpoint, ours or torch.optim's.

    Args:
        optimizer: It loads.
        algorithm: Its update rule.
        storage: What its state is kept in; a checkpoint's that is kept otherwise is converted.
        state_dict: The checkpoint.
        load_state_dict: torch.optim's.

    Raises:
        ValueError: The controller's memory is damaged or of an unknown layout; nothing changed.
    """
    hooked = state_dict

    def check(_: torch.optim.Optimizer, loading: dict[str, Any]) -> None:
        nonlocal hooked
        hooked = loading
        for group in loading["param_groups"]:
            if STATE_KEY in group:
                current_layout(group[STATE_KEY])

    # The last of the hooks: it sees what the user's own have made of the checkpoint.
    handle = optimizer.register_load_state_dict_pre_hook(check)
    try:
        load_state_dict(state_dict)
    finally:
        handle.remove()
    restore_precision(optimizer, algorithm, storage, hooked)


# A parameter's state


def restore_precision(
    optimizer: torch.optim.Optimizer,
    algorithm: Algorithm,
    storage: Storage,
    state_dict: Mapping[str, Any],
) -> None:
    """A load casts state to the parameter's dtype; ours keeps the one it was made with.

    Args:
        optimizer: It has loaded.
        algorithm: Its update rule.
        storage: What its state is kept in.
        state_dict: What it has loaded.
    """
    saved = [p for group in state_dict["param_groups"] for p in group["params"]]
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for key, param in zip(saved, params, strict=True):
        for name, value in state_dict["state"].get(key, {}).items():
            loaded = optimizer.state[param].get(name)
            shaped = name in algorithm.slots
            if not isinstance(loaded, Tensor) or not (shaped or name == "mu_product"):
                continue
            dtype = storage.codec_of_slot(param).dtype if shaped else torch.float64
            if loaded.dtype != dtype:
                home = param.device if shaped else numbers_device(param.device)
                # A rounded product is put right by who knows what it should be.
                kept = dtype if shaped else value.dtype
                optimizer.state[param][name] = value.to(device=home, dtype=kept)


def complete_product(param: Tensor, group: Mapping[str, Any], state: dict[str, Any]) -> None:
    """AdamW's `mu_product`: torch.optim.AdamW's checkpoints have none, its momentum is constant.

    Args:
        param: The parameter.
        group: Its group.
        state: Its state, complete but for `mu_product`.
    """
    product = state.get("mu_product")
    if isinstance(product, Tensor) and product.dtype == torch.float64:
        state["mu_product"] = as_counter(product, torch.float64, numbers_device(param.device))
        return
    step, momentum = state["step"].to(torch.float64), group["betas"][0]
    if isinstance(momentum, Tensor):
        momentum = momentum.to(step.device, torch.float64).reshape(())
    constant = momentum**step
    state["mu_product"] = constant if product is None else _as_precise(product, constant)


def _as_precise(product: Any, constant: Tensor) -> Tensor:
    """The product of a parameter's momenta in float64 again, after a loader rounded it.

    Args:
        product: What the loader made of it.
        constant: What it is if the momentum never moved, float64 0-d: then nothing was lost.
    """
    rounded = as_counter(product, torch.float64, constant.device)
    if not isinstance(product, Tensor) or not product.is_floating_point():
        return rounded
    info = torch.finfo(product.dtype)
    # Whole steps of rounding: the product was multiplied up, and this is a power.
    near = (rounded - constant).abs() <= info.eps * constant + info.tiny
    return torch.where(near, constant, rounded)


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
