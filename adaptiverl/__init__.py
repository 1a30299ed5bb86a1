"""AdaptiveRL: an AdamW whose learning rate, momentum and noise are steered while it trains."""

from __future__ import annotations

from adaptiverl.adamw import AdaptiveAdamW
from adaptiverl.control import Control
from adaptiverl.version import __version__

__all__ = ["AdaptiveAdamW", "Control", "__version__"]
