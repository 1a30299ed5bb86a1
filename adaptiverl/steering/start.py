"""Where a search began: every parameter, and what its optimizer kept of it then."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from adaptiverl.devices import has_streams
from adaptiverl.ranks.dtensors import to_local


class SearchStart:
    """A copy to go back to (method.md#going-back), of several optimizers together.

    State that was not there when the search began is removed again: the moments start anew, as the
    optimizer itself makes them.

    Args:
        optimizers: All that the search moves.
        on_device: The parameters' copies lie beside them, not in the host's memory.
    """

    def __init__(self, optimizers: Sequence[Optimizer], on_device: bool) -> None:
        self._params = [self._home(p, on_device) for _, p in _all(optimizers)]
        self._states = [
            copy.deepcopy(dict(optimizer.state.get(param, {})))
            for optimizer, param in _all(optimizers)
        ]

    def _home(self, param: Tensor, on_device: bool) -> Tensor:
        local = to_local(param).detach()
        if on_device or not has_streams(local.device):
            return local.clone()
        return torch.empty_like(local, device="cpu", pin_memory=True).copy_(local)

    def put_back(self, optimizers: Sequence[Optimizer]) -> None:
        """All is as it was."""
        pairs = zip(_all(optimizers), self._params, self._states, strict=False)
        with torch.no_grad():
            for (optimizer, param), value, state in pairs:
                to_local(param).detach().copy_(value, non_blocking=True)
                if state:
                    optimizer.state[param] = copy.deepcopy(state)
                else:
                    optimizer.state.pop(param, None)

    def state_dict(self) -> dict[str, Any]:
        """``params`` and ``states``, a list each in the order of the optimizers' parameters."""
        return {"params": self._params, "states": self._states}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take over a search's start that was saved; nothing of it is shared afterwards."""
        for own, value in zip(self._params, saved["params"], strict=True):
            own.copy_(value)
        self._states = copy.deepcopy(list(saved["states"]))


def _all(optimizers: Sequence[Optimizer]) -> Iterator[tuple[Optimizer, Tensor]]:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for param in group["params"]:
                yield optimizer, param
