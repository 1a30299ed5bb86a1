"""The memory that every contender works on.

They share it, one after the other: eight optimizers of GPT-2-small's size would need 8 GB for their
moments alone, and pages that one got and another didn't would be measured along with the step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle

import torch
from torch import Tensor

GRADIENT_SIZE = 1e-3
LOSSES = 4096


class Workspace:
    """Parameters, their gradients and moments, and a course of losses.

    Args:
        shapes: The parameters' shapes.
        device: Where everything lives.
        seed: Of the parameters and gradients.

    Attributes:
        params: float32, their ``grad`` set.
        exp_avg: First moments, zero at first.
        exp_avg_sq: Second moments, zero at first.
        gradient_norm: Of all gradients together, nearly.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, ...]], device: torch.device, seed: int = 0
    ) -> None:
        generator = torch.Generator(device).manual_seed(seed)
        self.device = device
        self.params = [
            torch.nn.Parameter(
                torch.empty(shape, device=device).normal_(0, 0.02, generator=generator)
            )
            for shape in shapes
        ]
        self._pristine = [
            torch.empty_like(p, requires_grad=False).normal_(0, GRADIENT_SIZE, generator=generator)
            for p in self.params
        ]
        for param, gradient in zip(self.params, self._pristine, strict=True):
            param.grad = gradient.clone()
        self.exp_avg = [torch.zeros_like(g) for g in self._pristine]
        self.exp_avg_sq = [torch.zeros_like(g) for g in self._pristine]
        self.gradient_norm = GRADIENT_SIZE * math.sqrt(self.elements)
        # Falls steadily: a plateau would make the controller add noise to a step that is measured
        # as one without.
        self.losses = cycle(torch.linspace(11, 3, LOSSES, device=device).unbind())

    @property
    def elements(self) -> int:
        """Numbers in all parameters together."""
        return sum(p.numel() for p in self.params)

    @property
    def gradients(self) -> list[Tensor]:
        """The gradients, which stock noise and clipping change in place."""
        return [p.grad for p in self.params if p.grad is not None]

    def restore_gradients(self) -> None:
        """As a backward pass would leave them: the same before every step of every contender."""
        torch._foreach_copy_(self.gradients, self._pristine)

    def lend_moments(self, optimizer: torch.optim.Optimizer, step_device: torch.device) -> None:
        """Give an optimizer the shared moments, as a checkpoint of AdamW's would bring them."""
        moments = zip(self.params, self.exp_avg, self.exp_avg_sq, strict=True)
        for param, exp_avg, exp_avg_sq in moments:
            step = torch.zeros((), dtype=torch.float32, device=step_device)
            state = {"step": step, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
            optimizer.state[param].update(state)

    def synchronize(self) -> None:
        """Wait until the device has done everything asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
