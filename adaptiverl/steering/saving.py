"""The steering in the optimizers' own checkpoints."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

from adaptiverl.migrations import current_layout
from adaptiverl.ranks.dtensors import to_local
from adaptiverl.step.horizon import check_saved_horizon
from adaptiverl.step.memory import STATE_KEY, export, memory_in

KEY = "adaptive_search"
"""A search's, beside ``state`` and ``param_groups`` in the first optimizer's checkpoint"""


class Searching(Protocol):
    """What is saved: a `Steering`."""

    optimizers: tuple[Optimizer, ...]

    def search_state(self) -> dict[str, Any]:
        """Of a search that is going on."""
        ...

    def follow_load(self, optimizer: Optimizer, saved: dict[str, Any] | None) -> None:
        """An optimizer has loaded."""
        ...


class Saving:
    """Lets the optimizers' checkpoints have the controller's memory, in every group, as ours do.

    Args:
        steering: Whose optimizers are watched.
    """

    def __init__(self, steering: Searching) -> None:
        self._steering = steering
        self._loaded: dict[str, Any] | None = None
        self._handles = []
        for one in steering.optimizers:
            self._handles += [
                one.register_state_dict_post_hook(self._complete),
                one.register_load_state_dict_pre_hook(self._check),
                one.register_load_state_dict_post_hook(self._take),
            ]

    def remove(self) -> None:
        """Checkpoints are torch's again."""
        for handle in self._handles:
            handle.remove()

    def _complete(self, optimizer: Optimizer, saving: dict[str, Any]) -> None:
        export(saving["param_groups"])
        searching = self._steering.search_state()
        if optimizer is self._steering.optimizers[0] and searching:
            saving[KEY] = searching

    def _check(self, optimizer: Optimizer, loading: dict[str, Any]) -> None:
        """A damaged memory or search is refused before anything has changed."""
        check_saved_horizon(loading["param_groups"])
        for group in loading["param_groups"]:
            if STATE_KEY in group:
                current_layout(memory_in(group[STATE_KEY]))
        search = loading.get(KEY)
        if search is not None and optimizer is self._steering.optimizers[0]:
            check_search(search, self._steering.optimizers)
        self._loaded = search

    def _take(self, optimizer: Optimizer) -> None:
        saved, self._loaded = self._loaded, None
        self._steering.follow_load(optimizer, saved)


def check_search(saved: Any, optimizers: Sequence[Optimizer]) -> None:
    """What a checkpoint says of a search is what `Steering.search_state` returned.

    A direction of another size is none that is damaged: groups may have been added.

    Raises:
        ValueError: It is not; says what is wrong.
    """
    if not isinstance(saved, Mapping):
        raise _damage("record", "a dictionary", saved)
    directions = saved.get("directions")
    if directions is not None:
        of_tensors = isinstance(directions, (list, tuple)) and all(
            last is None or (isinstance(last, Tensor) and last.dim() == 1) for last in directions
        )
        if not of_tensors:
            raise _damage("directions", "a list of flat tensors", directions)
    if "search_start" in saved:
        params = [p for one in optimizers for group in one.param_groups for p in group["params"]]
        _check_start(saved["search_start"], params)


def _check_start(start: Any, params: Sequence[Tensor]) -> None:
    if not isinstance(start, Mapping):
        raise _damage("search_start", "a dictionary", start)
    for name in ("params", "states"):
        given = start.get(name)
        if not isinstance(given, (list, tuple)) or len(given) != len(params):
            raise _damage(f"search_start[{name!r}]", f"a list of {len(params)}", given)
    for i, (param, value, state) in enumerate(
        zip(params, start["params"], start["states"], strict=True)
    ):
        shape = tuple(to_local(param).shape)
        if value is not None and (not isinstance(value, Tensor) or tuple(value.shape) != shape):
            raise _damage(f"search_start['params'][{i}]", f"a tensor of shape {shape}", value)
        if not isinstance(state, Mapping):
            raise _damage(f"search_start['states'][{i}]", "a dictionary", state)


def _damage(what: str, expected: str, found: Any) -> ValueError:
    if isinstance(found, Tensor):
        found = f"one of shape {tuple(found.shape)}"
    elif isinstance(found, (list, tuple)):
        found = f"{len(found)} entries"
    else:
        found = reprlib.repr(found)
    return ValueError(
        f"the checkpoint's search has {what} that must be {expected}, got {found}: it is damaged, "
        "or of other parameters; load another one, or take the search out of it, which then "
        "begins anew; nothing was changed"
    )
