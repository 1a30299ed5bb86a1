"""What losses and rewards become before a law reads them. The twin of csrc/law/sensors.h.

See method.md#sensors.
"""

from __future__ import annotations

import math

from adaptiverl.law.arithmetic import clip, ema, ratio, sigmoid
from adaptiverl.layout import REWARD_NEG_LOSS, REWARD_NONE, ControlNumbers, State

LARGEST = 2.0**1000
"""Innovations and squared deviations saturate here: no finite loss makes an average infinite."""


def innovation(
    sample: float, mean: float, scale: float, count: float, beta: float, spike_clip: float
) -> float:
    """ℓ_t − ℓ̄_{t−1}, a spike limited to ±c·S/β from the third sample on (method.md#spikes)."""
    surprise = clip(sample - mean, -LARGEST, LARGEST)
    if count >= 2 and scale > 0:
        limit = spike_clip * scale / beta
        return clip(surprise, -limit, limit)
    return surprise


def scale_of(scale: float, trend: float, count: float, beta: float) -> float:
    """S ← EMA(|Δ|), started at its first sample (method.md#loss-sensor)."""
    return abs(trend) if count == 1 else ema(scale, abs(trend), beta)


def direction(trend: float, scale: float) -> float:
    """Δ̃ = clip(Δ/S, −1, 1)."""
    return clip(ratio(trend, scale), -1.0, 1.0)


def plateau_score(loss_direction: float, variance_ratio: float, control: ControlNumbers) -> float:
    """P = sig((ε_Δ − |Δ̃ℓ|)/s_Δ) · sig((ε_v − v/S_v)/s_v) (method.md#plateau-score)."""
    flat = sigmoid((control.trend_center - abs(loss_direction)) / control.trend_slope)
    quiet = sigmoid((control.variance_center - variance_ratio) / control.variance_slope)
    return flat * quiet


def sense_loss(state: State, control: ControlNumbers, loss: float) -> None:
    """One finite loss: ℓ̄, Δℓ, v, S_ℓ, S_v, Δ̃ℓ, P, in the order of method.md#loss-sensor."""
    if state.loss_count == 0:
        state.loss_mean = loss
    else:
        beta = control.beta_loss
        surprise = innovation(
            loss, state.loss_mean, state.loss_scale, state.loss_count, beta, control.spike_clip
        )
        if surprise != loss - state.loss_mean:
            loss = state.loss_mean + surprise
        state.loss_trend = beta * surprise
        state.loss_mean += state.loss_trend
        deviation = loss - state.loss_mean
        square = min(deviation * deviation, LARGEST)
        if state.loss_count == 1:
            state.variance = square
        else:
            state.variance = ema(state.variance, square, control.beta_variance)
        state.loss_scale = scale_of(state.loss_scale, state.loss_trend, state.loss_count, beta)
        state.variance_scale = scale_of(
            state.variance_scale, state.variance, state.loss_count, control.beta_variance
        )
    state.loss_count += 1
    state.loss_direction = direction(state.loss_trend, state.loss_scale)
    variance_ratio = ratio(state.variance, state.variance_scale)
    state.plateau = plateau_score(state.loss_direction, variance_ratio, control)


def sense_reward(state: State, control: ControlNumbers, reward: float) -> None:
    """One finite reward: r̄, Δr, S_r, Δ̃r."""
    if state.reward_count == 0:
        state.reward_mean = reward
    else:
        beta = control.beta_reward
        surprise = innovation(
            reward,
            state.reward_mean,
            state.reward_scale,
            state.reward_count,
            beta,
            control.spike_clip,
        )
        state.reward_trend = beta * surprise
        state.reward_mean += state.reward_trend
        state.reward_scale = scale_of(
            state.reward_scale, state.reward_trend, state.reward_count, beta
        )
    state.reward_count += 1
    state.reward_direction = direction(state.reward_trend, state.reward_scale)


def sense(state: State, control: ControlNumbers, loss: float, reward: float | None = None) -> None:
    """One observation; what isn't finite is counted and goes no further (method.md#non-finite)."""
    if control.reward_source == REWARD_NEG_LOSS:
        reward = -loss
    state.observed_pending = 1.0
    state.loss = loss
    finite = math.isfinite(loss)
    if finite:
        sense_loss(state, control, loss)
    if reward is not None and control.reward_source != REWARD_NONE:
        state.rewarded_pending = 1.0
        state.reward = reward
        finite = finite and math.isfinite(reward)
        if math.isfinite(reward):
            sense_reward(state, control, reward)
    if not finite:
        state.nonfinite += 1
        state.nonfinite_pending = 1.0
