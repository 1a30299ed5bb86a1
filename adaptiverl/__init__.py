"""AdamW, SGD and Lion whose learning rate, momentum and noise are steered in training."""

from __future__ import annotations

from adaptiverl.adamw import AdaptiveAdamW
from adaptiverl.backends import describe
from adaptiverl.control import Control
from adaptiverl.lion import AdaptiveLion
from adaptiverl.sgd import AdaptiveSGD
from adaptiverl.steering import Steering, steer
from adaptiverl.version import __version__

__all__ = [
    "AdaptiveAdamW",
    "AdaptiveLion",
    "AdaptiveSGD",
    "Control",
    "Steering",
    "__version__",
    "describe",
    "steer",
]
