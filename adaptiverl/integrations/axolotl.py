"""`AdaptivePlugin` for axolotl: a line in its YAML, and its trainer has an optimizer of ours."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from adaptiverl import AdaptiveAdamW, AdaptiveLion, AdaptiveSGD, Control
from adaptiverl.integrations.huggingface import AdaptiveCallback

try:
    from axolotl.integrations.base import BasePlugin
except ImportError as error:
    raise ImportError(
        f"adaptiverl.integrations.axolotl needs axolotl, which is not there ({error}): "
        "see https://docs.axolotl.ai/docs/installation.html"
    ) from error

__all__ = ["AdaptivePlugin"]

CONTROLS = {
    "modulate": lambda: Control(mode="modulate"),
    "find_lr": lambda: replace(Control.find_lr("auto"), mode="modulate"),
    "climb": lambda: replace(Control.climb("auto"), mode="modulate"),
}
"""axolotl always has a scheduler, so every one multiplies what that sets"""
OPTIMIZERS = {kind.__name__: kind for kind in (AdaptiveAdamW, AdaptiveLion, AdaptiveSGD)}


class AdaptivePlugin(BasePlugin):  # type: ignore[misc]
    """Gives axolotl's trainer an optimizer of ours, and the callback that tells it the losses.

    In the YAML::

        plugins:
          - adaptiverl.integrations.axolotl.AdaptivePlugin
        adaptive_optimizer: AdaptiveAdamW   # or AdaptiveLion, AdaptiveSGD
        adaptive_control: find_lr           # or modulate, climb

    ``optimizer:`` is not looked at then. ``learning_rate``, ``adam_beta1`` and the like, the groups
    without weight decay and the scheduler are axolotl's.
    """

    def get_input_args(self) -> str:
        """The model that axolotl validates the two keys with."""
        return "adaptiverl.integrations.axolotl_args.AdaptiveArgs"

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """The one place where a plugin can name an optimizer.

        Raises:
            ValueError: A name that there is not.
        """
        name = cfg.get("adaptive_optimizer") or "AdaptiveAdamW"
        control = cfg.get("adaptive_control") or "find_lr"
        _check("adaptive_optimizer", name, OPTIMIZERS)
        _check("adaptive_control", control, CONTROLS)
        args = trainer.args
        kwargs: dict[str, Any] = {"lr": args.learning_rate, "control": CONTROLS[control]()}
        if name == "AdaptiveSGD":
            kwargs["momentum"] = args.adam_beta1
        else:
            kwargs["betas"] = (args.adam_beta1, args.adam_beta2)
        if name == "AdaptiveAdamW":
            kwargs["eps"] = args.adam_epsilon
        trainer.optimizer_cls_and_kwargs = (OPTIMIZERS[name], kwargs)
        trainer.add_callback(AdaptiveCallback(trainer))


def _check(key: str, value: Any, known: dict[str, Any]) -> None:
    if value not in known:
        raise ValueError(f"{key} must be one of {', '.join(known)}, got {value!r}")
