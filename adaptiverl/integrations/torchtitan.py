"""`AdaptiveOptimizersContainer` for torchtitan: our optimizers by name, and AdamW's checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from adaptiverl import AdaptiveAdamW, AdaptiveLion, AdaptiveSGD

try:
    from torchtitan.components.optimizer import OptimizersContainer
except ImportError as error:
    raise ImportError(
        f"adaptiverl.integrations.torchtitan needs torchtitan 0.3, which is not there ({error}): "
        "pip install 'torchtitan>=0.3'"
    ) from error

__all__ = ["AdaptiveOptimizersContainer"]

OURS = (AdaptiveAdamW, AdaptiveLion, AdaptiveSGD)


class AdaptiveOptimizersContainer(OptimizersContainer):  # type: ignore[misc]
    """torchtitan's container, whose `ParamGroupConfig` may name an optimizer of ours.

    ``optimizer_factory_kwargs_by_name`` gives it its control. For moments in bfloat16 give
    ``state_dtype=torch.bfloat16`` there, not ``implementation="fused_opt_states_bf16"``.

    A checkpoint of torchtitan's AdamW loads: what its groups lack stays as it is here.

    Examples:
        >>> config = AdaptiveOptimizersContainer.Config(
        ...     param_groups=[ParamGroupConfig(
        ...         pattern=".*", optimizer_name="AdaptiveAdamW", optimizer_kwargs={"lr": 3e-4}
        ...     )],
        ...     optimizer_factory_kwargs_by_name={
        ...         "AdaptiveAdamW": {"control": Control.find_lr(10_000)}
        ...     },
        ... )
    """

    @dataclass(kw_only=True, slots=True)
    class Config(OptimizersContainer.Config):  # type: ignore[misc]
        """As torchtitan's; its class is what says that ours is to be built."""

    @staticmethod
    def _resolve_optimizer_factory(name: str) -> Callable[..., Optimizer]:
        """Ours, or torchtitan's by that name."""
        known: dict[str, Callable[..., Optimizer]] = {kind.__name__: kind for kind in OURS}
        return known.get(name) or OptimizersContainer._resolve_optimizer_factory(name)

    def observe(self, loss: Tensor | float) -> None:
        """Tell every optimizer of ours this step's loss, before `step`; nothing waits.

        Args:
            loss: As for `AdaptiveAdamW.observe`. A law that finds the rate needs none.
        """
        for optimizer in self.optimizers:
            if isinstance(optimizer, OURS):
                optimizer.observe(loss)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torchtitan's, which asks for every key of every group."""
        completed = dict(state_dict)
        for optimizer in self.optimizers:
            if not isinstance(optimizer, OURS):
                continue
            for group in optimizer.state_dict()["param_groups"]:
                for name in group["param_names"]:
                    for key, value in group.items():
                        completed.setdefault(f"param_groups.{name}.{key}", value)
        super().load_state_dict(completed)
