"""Hooks and profilers around a step: whether any waits for it."""

from __future__ import annotations

import torch
from torch.optim import optimizer as registry


def waits_for_a_step(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a hook on this optimizer or on all, or a profiler, waits for a step."""
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or registry._global_optimizer_pre_hooks
        or registry._global_optimizer_post_hooks
        or torch.autograd._profiler_enabled()
    )
