"""The controller over any torch optimizer: `steer`."""

from __future__ import annotations

from adaptiverl.steering.steer import steer
from adaptiverl.steering.steering import Steering, steering_of

__all__ = ["Steering", "steer", "steering_of"]
