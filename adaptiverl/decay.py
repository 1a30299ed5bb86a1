"""What weight decay goes by: the rate in effect, or the user's alone (method.md#weight-decay)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any, Literal, get_args

from torch import Tensor

from adaptiverl.control import Control

Decay = Literal["coupled", "independent"]
COUPLED, INDEPENDENT = get_args(Decay)
OPTION = "decay"
"""The entry of a group that says so; a group without one is coupled, as torch's are"""


def check_decay(group: Mapping[str, Any]) -> None:
    """A group's choice, if it makes one, is one that there is; so is its weight decay.

    A number below 0, which torch's groups may have, is what the group table says independent by.
    One that is a tensor is not looked at: the host might wait for it.

    Raises:
        ValueError: It is not.
    """
    decay = group.get(OPTION, COUPLED)
    if decay not in (COUPLED, INDEPENDENT):
        raise ValueError(
            f"decay must be 'coupled' (weight decay is scaled by the learning rate in effect) or "
            f"'independent' (by the group's own lr, whatever the controller makes of it), got "
            f"{decay!r}"
        )
    weight_decay = group.get("weight_decay", 0)
    if isinstance(weight_decay, Tensor):
        return
    if not isinstance(weight_decay, Real) or not 0 <= float(weight_decay) < math.inf:
        raise ValueError(f"weight_decay must be finite and at least 0, got {weight_decay!r}")


def signed(group: Mapping[str, Any]) -> Any:
    """A group's weight decay for the group table: below 0 where it is independent."""
    weight_decay = group["weight_decay"]
    return -weight_decay if group.get(OPTION) == INDEPENDENT else weight_decay


class DecayChoice:
    """What an optimizer keeps of its constructor's `decay`."""

    param_groups: list[dict[str, Any]]
    defaults: dict[str, Any]
    _control: Control

    def _choose_decay(self, decay: Decay) -> None:
        """The constructor's; groups that choose for themselves keep theirs.

        Raises:
            ValueError: There is no such choice, or not for this algorithm.
        """
        check_decay({OPTION: decay})
        if decay != COUPLED:  # otherwise groups are those of torch's own optimizer
            self.defaults[OPTION] = decay
        self._fill_in_decay()
        for group in self.param_groups:
            self._check_group(group, self._control)  # type: ignore[attr-defined]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        self._fill_in_decay()

    def _fill_in_decay(self) -> None:
        """What a checkpoint leaves open, as torch's do, is what the constructor was given."""
        if OPTION in self.defaults:
            for group in self.param_groups:
                group.setdefault(OPTION, self.defaults[OPTION])
