"""What a pass's sums say of the gradient's size (method.md#gradient-sensors).

The twin of csrc/law/gradient.h.
"""

from __future__ import annotations

import math

from adaptiverl.law import sensors
from adaptiverl.law.arithmetic import ema
from adaptiverl.layout import ControlNumbers, State


def sense_gradient(state: State, control: ControlNumbers) -> None:
    """RMS of gradient and direction, and how the first varies, of a pass that nobody has read yet.

    A pass without a gradient says nothing, nor does one whose gradient is not finite.
    """
    elements = state.aligned_elements
    if state.aligned_pending == 0 or elements == 0:
        return
    direction = math.sqrt(state.aligned_uu / elements) if state.aligned_uu >= 0 else math.nan
    if math.isfinite(direction):
        state.update_rms = direction
    size = math.sqrt(state.aligned_gg / elements) if state.aligned_gg > 0 else 0.0
    if size == 0 or not math.isfinite(size):
        return
    state.gradient_rms = size
    if state.gradient_count == 0:
        state.gradient_rms_mean = size
    else:
        state.gradient_rms_mean = ema(state.gradient_rms_mean, size, control.beta_loss)
        deviation = size - state.gradient_rms_mean
        square = min(deviation * deviation, sensors.LARGEST)
        if state.gradient_count == 1:
            state.gradient_variance = square
        else:
            state.gradient_variance = ema(state.gradient_variance, square, control.beta_variance)
    state.gradient_count += 1
