"""`Decision`: what the controller decided for one step, as a pass reads it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adaptiverl.layout import SLOT


@dataclass(frozen=True)
class Decision:
    """What a pass reads besides its tensors, all on one device.

    Attributes:
        state: The controller's state; a name of `layout.State` is an attribute too, a 0-d view.
        groups: float64 [groups, 5]: a `layout.Group` each, as the user set them.
        effective: float64 [groups, 2]: lr and momentum of this step.
        noise_possible: σ may be above 0 in this run.
        noise_on_parameter: It goes to the parameter after its update, not to the gradient.
        skippable: A gradient scaler may ask for this step to be skipped, or the law for none.
        aligned: The law reads the pass's sums Σg·u, Σg², Σu² (method.md#alignment).
    """

    state: Tensor
    groups: Tensor
    effective: Tensor
    noise_possible: bool
    noise_on_parameter: bool
    skippable: bool
    aligned: bool = False

    def to(self, device: torch.device) -> Decision:
        """The same on another device, without waiting for it unless that is the host itself."""
        if device == self.state.device:
            return self
        on_host = device.type == "cpu"  # which would read what has not arrived yet
        return replace(
            self,
            state=self.state.to(device, non_blocking=not on_host),
            groups=self.groups.to(device, non_blocking=not on_host),
            effective=self.effective.to(device, non_blocking=not on_host),
        )

    def __getattr__(self, name: str) -> Tensor:
        if name in SLOT:
            return self.state[SLOT[name]]
        raise AttributeError(f"a Decision has no {name!r}")
