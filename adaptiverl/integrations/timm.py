"""`register`: timm makes our optimizers by their names, as its scripts' ``--opt`` says."""

from __future__ import annotations

from adaptiverl import AdaptiveAdamW, AdaptiveLion, AdaptiveSGD

try:
    from timm.optim import OptimInfo
    from timm.optim._optim_factory import default_registry
except ImportError as error:
    raise ImportError(
        f"adaptiverl.integrations.timm needs timm, which is not there ({error}): "
        "pip install 'timm>=1.0.15'"
    ) from error

__all__ = ["register"]


def register() -> None:
    """From now on ``create_optimizer_v2(model, "adaptiveadamw")`` makes one of ours.

    The names are ``adaptiveadamw``, ``adaptivesgd`` and ``adaptivelion``; what timm is given beside
    those it knows, ``control=`` above all, is the optimizer's. Call it before timm makes one; again
    does nothing.

    Examples:
        >>> register()
        >>> optimizer = create_optimizer_v2(model, "adaptiveadamw", control=Control.find_lr(10_000))
    """
    known = set(default_registry.list_optimizers())
    for info in (
        OptimInfo("adaptiveadamw", AdaptiveAdamW, "AdamW, steered", has_betas=True),
        OptimInfo("adaptivesgd", AdaptiveSGD, "SGD, steered", has_eps=False, has_momentum=True),
        OptimInfo("adaptivelion", AdaptiveLion, "Lion, steered", has_eps=False, has_betas=True),
    ):
        if info.name not in known:
            default_registry.register(info)
