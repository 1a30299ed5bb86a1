"""Where a search began: every parameter, and what its optimizer kept of it then."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from adaptiverl.devices import has_streams
from adaptiverl.ranks.dtensors import to_local


class Kept(NamedTuple):
    """A parameter when the search began."""

    param: Tensor
    value: Tensor
    state: dict[str, Any]
    """What its optimizer kept of it"""


class SearchStart:
    """A copy to go back to (method.md#going-back), of several optimizers together.

    State that was not there when the search began is removed again: the moments start anew, as the
    optimizer itself makes them. A parameter that was added later stays where it is.

    Args:
        optimizers: All that the search moves.
        on_device: The parameters' copies lie beside them, not in the host's memory.
    """

    def __init__(self, optimizers: Sequence[Optimizer], on_device: bool) -> None:
        self._optimizers = tuple(optimizers)
        self._kept = {
            _key(optimizer, param): Kept(
                param,
                self._home(param, on_device),
                copy.deepcopy(dict(optimizer.state.get(param, {}))),
            )
            for optimizer, param in _all(optimizers)
        }

    def _home(self, param: Tensor, on_device: bool) -> Tensor:
        local = to_local(param).detach()
        if on_device or not has_streams(local.device):
            return local.clone()
        return torch.empty_like(local, device="cpu", pin_memory=True).copy_(local)

    @torch.no_grad()
    def put_back(self) -> None:
        """All is as it was."""
        for optimizer, param in _all(self._optimizers):
            kept = self._kept.get(_key(optimizer, param))
            if kept is None:
                continue
            to_local(param).detach().copy_(kept.value, non_blocking=True)
            if kept.state:
                optimizer.state[param] = copy.deepcopy(kept.state)
            else:
                optimizer.state.pop(param, None)

    def state_dict(self) -> dict[str, Any]:
        """``params`` and ``states``, a list each in the order of the optimizers' parameters.

        None and an empty state stand for a parameter that was added later.
        """
        found = [self._kept.get(_key(*pair)) for pair in _all(self._optimizers)]
        return {
            "params": [None if kept is None else kept.value for kept in found],
            "states": [{} if kept is None else kept.state for kept in found],
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take over a search's start that was saved; nothing of it is shared afterwards."""
        pairs = zip(_all(self._optimizers), saved["params"], saved["states"], strict=True)
        for pair, value, state in pairs:
            key = _key(*pair)
            if value is None:
                self._kept.pop(key, None)
                continue
            self._kept[key].value.copy_(value)
            self._kept[key] = self._kept[key]._replace(state=copy.deepcopy(dict(state)))


def _key(optimizer: Optimizer, param: Tensor) -> tuple[int, int]:
    """Both live for as long as the start does, which keeps them."""
    return id(optimizer), id(param)


def _all(optimizers: Sequence[Optimizer]) -> Iterator[tuple[Optimizer, Tensor]]:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for param in group["params"]:
                yield optimizer, param
