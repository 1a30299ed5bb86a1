"""The steering in the optimizers' own checkpoints."""

from __future__ import annotations

from typing import Any, Protocol

from torch.optim import Optimizer

from adaptiverl.migrations import current_layout
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
        """A damaged memory is refused before anything has changed."""
        for group in loading["param_groups"]:
            if STATE_KEY in group:
                current_layout(memory_in(group[STATE_KEY]))
        self._loaded = loading.get(KEY)

    def _take(self, optimizer: Optimizer) -> None:
        saved, self._loaded = self._loaded, None
        self._steering.follow_load(optimizer, saved)
