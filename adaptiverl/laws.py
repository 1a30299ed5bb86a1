"""The method on Python floats, a function per equation: sensors (§1), laws (§2, §9), replay.

The readable twin of `csrc/control_law.h`: the same names, the same statement order. `State` is the
controller's whole memory; its fields, in this order, are the packed block that lives on the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from adaptiverl.control import Control, Limits

LAYOUT_VERSION = 3
LARGEST = 2.0**1000
"""Innovations and squared deviations saturate here: no finite loss makes an average infinite."""

# The alignment law's constants (decisions.md 22 and 23; bench/results/alignment.md has the runs)
ALIGNMENT_BETA = 0.05
"""Weight of the newest h² in the average that h is measured by"""
DIRECTION_BETA = 0.2
"""Weight of the newest x in e: e looks back over some five steps"""
CLEARLY_DOWNHILL = 0.2
"""Where e is above this, the rate is one whose updates still point downhill"""
GROWTH = 0.2
"""log-units, times 1 − μ, that log α gains in a step while nothing speaks against it"""
OVERSHOOT_SIZE = 0.3
"""How far below 0, in units of h's RMS, the mean of h is that the test looks for"""
OVERSHOOT_CLIP = 2.0
"""What one step can say, in those units"""
OVERSHOOT_NONE = 1.0
"""Log-likelihood below which nothing speaks against a rate"""
OVERSHOOT_ENOUGH = 5.0
"""Log-likelihood at which updates are held to overshoot: by chance once in some 3,000 steps"""
REACH = 0.3
"""log-units that α may lie above the last rate whose updates clearly pointed downhill"""
SAME_RATE = 1.5
"""log-units within which an overshoot that is found again counts as the same one"""


@dataclass
class State:
    """The controller's memory; every field is a float64 in the packed block, counters included."""

    version: float = LAYOUT_VERSION
    step: float = 0.0
    """t, optimizer steps taken"""
    seed_low: float = 0.0
    """the noise's key, 32 bits to a number"""
    seed_high: float = 0.0

    log_lr: float = 0.0
    """log α"""
    logit_momentum: float = 0.0
    """logit μ"""
    log_noise: float = -math.inf
    """log σ"""
    log_lr_start: float = 0.0
    logit_momentum_start: float = 0.0
    lr: float = 1.0
    """α in effect"""
    momentum: float = 0.0
    """μ in effect"""
    noise: float = 0.0
    """σ in effect: exactly σ_min while log σ is at its floor"""

    loss_count: float = 0.0
    loss_mean: float = 0.0
    """ℓ̄"""
    loss_trend: float = 0.0
    """Δℓ"""
    loss_scale: float = 0.0
    """S_ℓ"""
    loss_direction: float = 0.0
    """Δ̃ℓ"""
    variance: float = 0.0
    """v"""
    variance_scale: float = 0.0
    """S_v"""
    plateau: float = 0.0
    """P"""
    reward_count: float = 0.0
    reward_mean: float = 0.0
    """r̄"""
    reward_trend: float = 0.0
    """Δr"""
    reward_scale: float = 0.0
    """S_r"""
    reward_direction: float = 0.0
    """Δ̃r"""
    loss: float = math.nan
    """ℓ, the newest observation as it came"""
    reward: float = math.nan
    """r, likewise"""

    observed_pending: float = 0.0
    """1 if something was observed since the laws last acted"""
    rewarded_pending: float = 0.0
    nonfinite_pending: float = 0.0
    nonfinite: float = 0.0
    """observations that were not finite, in all"""
    updates: float = 0.0
    """times the laws acted"""

    aligned_gu: float = 0.0
    """Σ g·u of the newest sweep, u the direction of the update before"""
    aligned_gg: float = 0.0
    """Σ g²"""
    aligned_uu: float = 0.0
    """Σ u²"""
    aligned_pending: float = 0.0
    """1 if nobody has read those three yet"""
    alignment: float = 0.0
    """h, their cosine"""
    alignment_square: float = 0.0
    """S2, from 0"""
    alignment_weight: float = 0.0
    """what S2 is to be divided by, so that it starts at its first sample"""
    alignment_direction: float = 0.0
    """x"""
    alignment_mean: float = 0.0
    """e"""
    overshoot: float = 0.0
    """log-likelihood that the mean of h is below 0, against 0; never below 0"""
    log_lr_downhill: float = -math.inf
    """log α when updates last clearly pointed downhill"""
    log_lr_doubted: float = -math.inf
    """the same when updates were last sure to overshoot"""
    held: float = 0.0
    """1 once the rate is found"""
    anneal: float = 1.0
    """what the cooldown multiplies α by"""
    active: float = 1.0
    """0 while a step that the gradient scaler skips goes by; not part of what checkpoints keep"""


def start(control: Control, limits: Limits, lr: float, momentum: float, seed: int = 0) -> State:
    """The state before the first step: α and μ where the user put them, σ at its floor.

    The alignment law's α is the exception: it starts where the search does (`Limits.lr_acquire`).
    """
    state = State()
    state.seed_low = float(seed & 0xFFFFFFFF)
    state.seed_high = float(seed >> 32)
    state.log_lr = math.log(limits.lr_acquire)
    state.log_lr_start = math.log(control.start_lr(lr))
    state.logit_momentum = logit(clip(momentum, limits.momentum_min, limits.momentum_max))
    state.logit_momentum_start = state.logit_momentum
    state.log_noise = math.log(limits.noise_floor) if limits.noise_max > 0 else -math.inf
    read_knobs(state, limits)
    return state


# Arithmetic


def clip(x: float, low: float, high: float) -> float:
    """X limited to [low, high]."""
    return min(max(x, low), high)


def sigmoid(x: float) -> float:
    """1 / (1 + e^−x), in the form that cannot overflow."""
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    power = math.exp(x)
    return power / (1 + power)


def logit(x: float) -> float:
    """log(x / (1 − x)), the inverse of `sigmoid`; −∞ at 0."""
    return math.log(x / (1 - x)) if x > 0 else -math.inf


def ema(average: float, sample: float, beta: float) -> float:
    """(1 − β)·average + β·sample (§1)."""
    return (1 - beta) * average + beta * sample


def ratio(x: float, scale: float) -> float:
    """X / S, and 0 where S is 0: ε is a guard, not a scale (decisions.md 5)."""
    return x / scale if scale > 0 else 0.0


# Sensors (§1)


def innovation(
    sample: float, mean: float, scale: float, count: float, beta: float, spike_clip: float
) -> float:
    """ℓ_t − ℓ̄_{t−1}, a spike limited to ±c·S/β from the third sample on (decisions.md 6b)."""
    surprise = clip(sample - mean, -LARGEST, LARGEST)
    if count >= 2 and scale > 0:
        limit = spike_clip * scale / beta
        return clip(surprise, -limit, limit)
    return surprise


def scale_of(scale: float, trend: float, count: float, beta: float) -> float:
    """S ← EMA(|Δ|), started at its first sample (decisions.md 4)."""
    return abs(trend) if count == 1 else ema(scale, abs(trend), beta)


def direction(trend: float, scale: float) -> float:
    """Δ̃ = clip(Δ/S, −1, 1)."""
    return clip(ratio(trend, scale), -1.0, 1.0)


def plateau_score(loss_direction: float, variance_ratio: float, control: Control) -> float:
    """P = sig((ε_Δ − |Δ̃ℓ|)/s_Δ) · sig((ε_v − v/S_v)/s_v)."""
    trend_center, trend_slope = control.plateau_trend
    variance_center, variance_slope = control.plateau_variance
    flat = sigmoid((trend_center - abs(loss_direction)) / trend_slope)
    quiet = sigmoid((variance_center - variance_ratio) / variance_slope)
    return flat * quiet


def sense_loss(state: State, control: Control, loss: float) -> None:
    """One finite loss: ℓ̄, Δℓ, v, S_ℓ, S_v, Δ̃ℓ, P, in the order of decisions.md 3."""
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


def sense_reward(state: State, control: Control, reward: float) -> None:
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


def sense(state: State, control: Control, loss: float, reward: float | None = None) -> None:
    """One observation; what isn't finite is counted and goes no further (decisions.md 12)."""
    if control.reward == "neg_loss":
        reward = -loss
    state.observed_pending = 1.0
    state.loss = loss
    finite = math.isfinite(loss)
    if finite:
        sense_loss(state, control, loss)
    if reward is not None and control.reward != "none":
        state.rewarded_pending = 1.0
        state.reward = reward
        finite = finite and math.isfinite(reward)
        if math.isfinite(reward):
            sense_reward(state, control, reward)
    if not finite:
        state.nonfinite += 1
        state.nonfinite_pending = 1.0


# The alignment law (§9, decisions.md 22 to 25)


def sense_alignment(state: State) -> float | None:
    """h, S2, x and e from the newest sweep's sums, which are read once.

    Returns:
        h in units of its RMS, limited to what one step can say; None where there is nothing to
        read: no sweep since, no update before it, or no gradient.
    """
    pending = state.aligned_pending != 0
    state.aligned_pending = 0.0
    if not pending or state.aligned_gg == 0 or state.aligned_uu == 0:
        return None
    cosine = state.aligned_gu / (math.sqrt(state.aligned_gg) * math.sqrt(state.aligned_uu))
    score = -1.0
    if math.isfinite(cosine):
        state.alignment = cosine
        state.alignment_square = ema(state.alignment_square, cosine * cosine, ALIGNMENT_BETA)
        state.alignment_weight = ema(state.alignment_weight, 1.0, ALIGNMENT_BETA)
        rms = math.sqrt(state.alignment_square / state.alignment_weight)
        score = clip(ratio(cosine, rms), -OVERSHOOT_CLIP, OVERSHOOT_CLIP)
    state.alignment_direction = clip(score, -1.0, 1.0)
    state.alignment_mean = ema(state.alignment_mean, state.alignment_direction, DIRECTION_BETA)
    return score


def beyond_noise(mean: float) -> float:
    """e without what chance can make of it: e·(1 − se²/e²), 0 where |e| is below se.

    x has mean square 1, so that the standard error of its average is se² = (1 − e²)·β/(2 − β).
    """
    square = mean * mean
    error = (1 - square) * DIRECTION_BETA / (2 - DIRECTION_BETA)
    return mean * (1 - error / square) if square > error else 0.0


def next_overshoot(overshoot: float, score: float) -> float:
    """Page's cumulative sum: log-likelihood ratio of a mean of −δ against one of 0, from 0 up."""
    evidence = -OVERSHOOT_SIZE * score - OVERSHOOT_SIZE * OVERSHOOT_SIZE / 2
    return max(overshoot + evidence, 0.0)


def acquire(state: State, control: Control, limits: Limits, score: float) -> None:
    """One step of the search: up, until updates twice are sure to overshoot at about one rate."""
    higher = state.log_lr >= state.log_lr_downhill
    if state.alignment_mean > CLEARLY_DOWNHILL and (higher or state.overshoot < OVERSHOOT_NONE):
        state.log_lr_downhill = state.log_lr
    if state.log_lr_downhill > -math.inf:
        state.overshoot = next_overshoot(state.overshoot, score)
    if state.overshoot > OVERSHOOT_ENOUGH:
        look_again_or_hold(state, control, limits)
        return
    growth = GROWTH * (1 - state.overshoot / OVERSHOOT_ENOUGH)
    step = (1 - state.momentum) * (beyond_noise(state.alignment_mean) + growth)
    log_lr = state.log_lr + step
    if state.log_lr_downhill > -math.inf:
        log_lr = min(log_lr, state.log_lr_downhill + REACH)
    state.log_lr = clip(log_lr, math.log(limits.lr_min), math.log(limits.lr_max))


def look_again_or_hold(state: State, control: Control, limits: Limits) -> None:
    """Go back and look again; hold the lower of two marks where an overshoot is found again.

    On a plateau h is noise, which now and then looks like an overshoot: but while the test starts
    afresh α climbs on, and chance hardly ever speaks twice at about the same rate. The lower mark,
    because every look is another chance for luck to mark a rate that is too high.
    """
    if state.log_lr_downhill <= state.log_lr_doubted + SAME_RATE:
        state.log_lr_downhill = min(state.log_lr_downhill, state.log_lr_doubted)
        hold(state, control, limits)
        return
    state.log_lr_doubted = state.log_lr_downhill
    state.log_lr = clip(state.log_lr_downhill, math.log(limits.lr_min), math.log(limits.lr_max))
    state.overshoot = 0.0


def hold(state: State, control: Control, limits: Limits) -> None:
    """The rate is found: the last one whose updates clearly pointed downhill, if any did."""
    state.held = 1.0
    if state.log_lr_downhill > -math.inf:
        state.log_lr = state.log_lr_downhill
    log_lr = state.log_lr + math.log(control.held_share)
    state.log_lr = clip(log_lr, math.log(limits.lr_min), math.log(limits.lr_max))


def steer_by_alignment(state: State, control: Control, limits: Limits) -> None:
    """α of one optimizer step: search, hold, anneal."""
    score = sense_alignment(state)
    if state.held == 0 and score is not None:
        acquire(state, control, limits, score)
    if state.held == 0 and state.step >= control.hold_by:
        hold(state, control, limits)
    state.anneal = annealing(state.step, control)


def annealing(step: float, control: Control) -> float:
    """min(1, (T − t)/(cooldown·T)), not below 0; 1 where the controller does not anneal."""
    if control.annealed_over == 0:
        return 1.0
    left = ((control.horizon or 0) - step) / control.annealed_over
    return clip(left, 0.0, 1.0)


# Laws (§2)


def next_log_lr(
    log_lr: float, reward_direction: float, worsening: float, control: Control, limits: Limits
) -> float:
    """log α + k_r·Δ̃r − k_ℓ·max(Δ̃ℓ, 0); the change cap, then the bounds (decisions.md 8)."""
    step = control.gain_lr_reward * reward_direction - control.gain_lr_loss * worsening
    step = clip(step, math.log(control.lr_change[0]), math.log(control.lr_change[1]))
    return clip(log_lr + step, math.log(limits.lr_min), math.log(limits.lr_max))


def next_logit_momentum(
    logit_momentum: float,
    reward_direction: float,
    worsening: float,
    control: Control,
    limits: Limits,
) -> float:
    """logit μ + k_μr·Δ̃r − k_μℓ·max(Δ̃ℓ, 0), inside the bounds."""
    step = control.gain_momentum_reward * reward_direction - control.gain_momentum_loss * worsening
    return clip(logit_momentum + step, logit(limits.momentum_min), logit(limits.momentum_max))


def next_log_noise(
    log_noise: float, plateau: float, improving: float, control: Control, limits: Limits
) -> float:
    """log σ + k_σP·P − k_σr·max(Δ̃r, 0); at rest while σ is switched off (decisions.md 9)."""
    if limits.noise_max == 0:
        return log_noise
    step = control.gain_noise_plateau * plateau - control.gain_noise_reward * improving
    return clip(log_noise + step, math.log(limits.noise_floor), math.log(limits.noise_max))


def act(state: State, control: Control, limits: Limits) -> None:
    """One update of the knobs from the sensors as they stand, or from the regression reflex."""
    loss_direction = state.loss_direction
    reward_direction = state.reward_direction
    if control.reward == "given" and not state.rewarded_pending:
        reward_direction = 0.0
    if state.nonfinite_pending:
        loss_direction = 1.0
        reward_direction = 0.0 if control.reward == "none" else -1.0
    worsening = max(loss_direction, 0.0)
    improving = max(reward_direction, 0.0)
    if control.law == "loss":
        state.log_lr = next_log_lr(state.log_lr, reward_direction, worsening, control, limits)
    state.logit_momentum = next_logit_momentum(
        state.logit_momentum, reward_direction, worsening, control, limits
    )
    state.log_noise = next_log_noise(state.log_noise, state.plateau, improving, control, limits)
    state.observed_pending = 0.0
    state.rewarded_pending = 0.0
    state.nonfinite_pending = 0.0
    state.updates += 1


def read_knobs(state: State, limits: Limits) -> None:
    """α, μ, σ from the spaces in which they are kept."""
    state.lr = clip(math.exp(state.log_lr), limits.lr_min, limits.lr_max) * state.anneal
    state.momentum = clip(sigmoid(state.logit_momentum), limits.momentum_min, limits.momentum_max)
    floored = limits.noise_max == 0 or state.log_noise <= math.log(limits.noise_floor)
    lifted = clip(math.exp(state.log_noise), limits.noise_min, limits.noise_max)
    state.noise = limits.noise_min if floored else lifted


# How a group sees the knobs (decisions.md 20)


def group_lr(lr: float, state: State) -> float:
    """lr_g·α/α₀; exactly lr_g while α has not moved."""
    return lr * math.exp(state.log_lr - state.log_lr_start) * state.anneal


def group_momentum(momentum: float, state: State) -> float:
    """sigmoid(logit β₁_g + logit μ − logit μ₀); exactly β₁_g while μ has not moved."""
    if state.logit_momentum == state.logit_momentum_start:
        return momentum
    return sigmoid(logit(momentum) + state.logit_momentum - state.logit_momentum_start)


# The loop (§10)


def advance(
    state: State,
    control: Control,
    limits: Limits,
    loss: float | None = None,
    reward: float | None = None,
) -> bool:
    """One optimizer step: sense what was observed; at a multiple of K act (decisions.md 10, 14).

    The alignment law moves α in every step, by the sums of the sweep before.

    Returns:
        Whether the laws acted.
    """
    state.step += 1
    if control.law == "alignment":
        steer_by_alignment(state, control, limits)
        read_knobs(state, limits)
    elif state.anneal != 1:  # left over from a run that the other law annealed
        state.anneal = 1.0
        read_knobs(state, limits)
    if loss is not None:
        sense(state, control, loss, reward)
    acts = (
        control.every is not None
        and math.fmod(state.step, control.every) == 0
        and state.observed_pending != 0
    )
    if acts:
        act(state, control, limits)
        read_knobs(state, limits)
    return acts


def replay(
    losses: Iterable[float],
    control: Control,
    *,
    lr: float,
    momentum: float = 0.9,
    rewards: Iterable[float | None] | None = None,
) -> list[State]:
    """What the controller would have decided on a recorded curve, open loop: one loss per step.

    Args:
        losses: ℓ_t in order; values that are not finite are treated as in training.
        control: The gains, bounds and cadence. With ``every=None`` each loss is an epoch's.
        lr: The learning rate the run started from.
        momentum: The β₁ it started from.
        rewards: r_t beside each loss, for ``Control(reward="given")``; ``None`` where none came.

    Returns:
        The state after each loss.

    Raises:
        ValueError: A start outside the bounds; rewards without ``reward="given"``, or of another
            length than the losses; the alignment law, which reads gradients.
    """
    if control.law == "alignment":
        raise ValueError(
            "a recorded curve cannot replay Control(law='alignment'): that law reads the "
            "gradients, which only training has. Use law='loss', or train"
        )
    if rewards is not None and control.reward != "given":
        raise ValueError(
            f"rewards were given, but Control.reward is {control.reward!r}: "
            "use Control(reward='given')"
        )
    limits = control.limits(lr, momentum)
    state = start(control, limits, lr, momentum)
    losses = list(losses)
    paired: list[float | None] = [None] * len(losses) if rewards is None else list(rewards)
    history = []
    for loss, reward in zip(losses, paired, strict=True):
        if control.every is None:
            sense(state, control, loss, reward)
            act(state, control, limits)
            read_knobs(state, limits)
        else:
            advance(state, control, limits, loss, reward)
        history.append(replace(state))
    return history
