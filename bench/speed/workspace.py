"""The memory that every contender works on.

They share it: ten optimizers' moments would take 10 GB, and other pages would be measured along.
"""

import math
from itertools import cycle

import torch
from torch import Tensor, nn

from bench.speed.shapes import SHAPES, Workload

GRADIENT_SIZE = 1e-3
LOSSES = 4096


class Workspace:
    """Parameters with gradients, moments, and 0-d losses without end, the same for a seed."""

    def __init__(self, workload: Workload, device: torch.device, seed: int = 0) -> None:
        self.device, self.workload = device, workload
        generator = torch.Generator(device).manual_seed(seed)
        self.dtype: torch.dtype = getattr(torch, workload.dtype)

        def normal(size: float) -> list[Tensor]:
            shapes = SHAPES[workload.shapes]
            empty = [torch.empty(shape, dtype=self.dtype, device=device) for shape in shapes]
            return [tensor.normal_(0, size, generator=generator) for tensor in empty]

        self.params = [nn.Parameter(values) for values in normal(0.02)]
        self._pristine = normal(GRADIENT_SIZE)
        for param, gradient in zip(self.params, self._pristine, strict=True):
            param.grad = gradient.clone()
        # torch keeps moments in the parameters' dtype, we in float32 or as we are told.
        self.moments = {
            dtype: [tuple(torch.zeros_like(p, dtype=dtype) for _ in range(2)) for p in self.params]
            for dtype in (torch.float32, torch.bfloat16)
        }
        self.gradient_norm = GRADIENT_SIZE * math.sqrt(workload.elements)  # nearly
        # Falls steadily: a plateau would make the controller add noise to a step that is measured
        # as one without.
        self.losses = cycle(torch.linspace(11, 3, LOSSES, device=device).unbind())

    @property
    def gradients(self) -> list[Tensor]:
        """The gradients, which stock noise and clipping change in place."""
        return [p.grad for p in self.params if p.grad is not None]

    def restore_gradients(self) -> None:
        """As a backward pass would leave them: the same before every step of every contender."""
        torch._foreach_copy_(self.gradients, self._pristine)

    def lend_moments(
        self, optimizer: torch.optim.Optimizer, dtype: torch.dtype, step_device: torch.device
    ) -> None:
        """Give an optimizer the shared moments, as a checkpoint of AdamW's would bring them."""
        for param, (exp_avg, exp_avg_sq) in zip(self.params, self.moments[dtype], strict=True):
            step = torch.zeros((), dtype=torch.float32, device=step_device)
            state = {"step": step, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
            optimizer.state[param].update(state)
