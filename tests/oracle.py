"""The whole method once more, in float64 NumPy: what every implementation is held to.

Written from the specification and its decisions (docs/method.md) alone, and importing nothing of
the package, so that an error would have to be made twice to go unseen. It favours plainness over
speed throughout: the controller is objects of Python floats, the random bits are NumPy integers,
and a step takes arrays and returns new ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Words = NDArray[np.uint32]

# Innovations and squared deviations stop here, so that every finite loss leaves finite sensors.
SATURATION = 2.0**1000

_WORD = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


# --- Scalars -----------------------------------------------------------------------------------


def clip(value: float, low: float, high: float) -> float:
    """Return the point of [low, high] nearest to ``value``."""
    return min(max(value, low), high)


def sigmoid(x: float) -> float:
    """Return 1/(1 + exp(-x)), for every x including the infinities."""
    if x >= 0:
        return 1.0 / (1.0 + math.exp(-x))
    growth = math.exp(x)
    return growth / (1.0 + growth)


def logit(probability: float) -> float:
    """Return the inverse of `sigmoid`; minus infinity at 0."""
    if probability == 0:
        return -math.inf
    return math.log(probability) - math.log1p(-probability)


def log(x: float) -> float:
    """Return the natural logarithm; minus infinity at 0."""
    return math.log(x) if x > 0 else -math.inf


def normalised(x: float, scale: float) -> float:
    """Return x/scale, and 0 where the scale is 0 (method.md#scale-guard)."""
    return x / scale if scale != 0 else 0.0


# --- Sensors (method.md#sensors) -----------------------------------------------------------------


class Ema:
    """An exponential moving average that starts at its first sample; 0 before it."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.value = 0.0
        self.empty = True

    def add(self, sample: float) -> None:
        """Take one sample."""
        if self.empty:
            self.value = sample
        else:
            self.value = (1.0 - self.rate) * self.value + self.rate * sample
        self.empty = False


class TrendSensor:
    """Mean, trend, scale and direction of one signal: the loss, or the reward."""

    def __init__(self, rate: float, spike_clip: float) -> None:
        self.rate = rate
        self.spike_clip = spike_clip
        self.mean = 0.0
        self.trend = 0.0
        self.scale = Ema(rate)
        self.samples = 0

    @property
    def direction(self) -> float:
        """The normalised trend, in [-1, 1]."""
        return clip(normalised(self.trend, self.scale.value), -1.0, 1.0)

    def sense(self, sample: float) -> float:
        """Take one finite sample and return it as the sensors see it: spikes cut.

        See method.md#spikes.

        The mean moves by the trend itself rather than by the convex combination that equals it: a
        constant signal then keeps its mean to the bit, and with it a scale of exactly 0.
        """
        self.samples += 1
        if self.samples == 1:
            self.mean = sample
            return sample
        raw = sample - self.mean
        innovation = clip(raw, -self._reach(), self._reach())
        seen = sample if innovation == raw else self.mean + innovation
        self.trend = self.rate * innovation
        self.mean += self.trend
        self.scale.add(abs(self.trend))
        return seen

    def _reach(self) -> float:
        """The largest innovation that this observation may bring."""
        if self.scale.empty or self.scale.value == 0:
            return SATURATION
        return min(SATURATION, self.spike_clip * self.scale.value / self.rate)


class VarianceSensor:
    """The variance proxy v of the loss around its mean, and that proxy's own scale S_v."""

    def __init__(self, rate: float) -> None:
        self.variance = Ema(rate)
        self.scale = Ema(rate)

    @property
    def ratio(self) -> float:
        """The variance proxy over its scale; no variance counts as 0 (method.md#plateau-score)."""
        return normalised(self.variance.value, self.scale.value)

    def sense(self, deviation: float) -> None:
        """Take one sample's deviation from the mean that already includes it."""
        self.variance.add(min(deviation * deviation, SATURATION))
        self.scale.add(abs(self.variance.value))


class GradientSensor:
    """Sizes of gradients and directions, and how the first varies (method.md#gradient-sensors)."""

    def __init__(self, rate: float, variance_rate: float) -> None:
        self.average = Ema(rate)
        self.spread = Ema(variance_rate)
        self.gradient_rms = self.update_rms = 0.0
        self.gradient_count = 0

    @property
    def gradient_rms_mean(self) -> float:
        """The average size."""
        return self.average.value

    @property
    def gradient_variance(self) -> float:
        """The average square of a size's distance from it."""
        return self.spread.value

    def sense(self, gg: float, uu: float, elements: float) -> None:
        """One pass's Σ g² and Σ u²."""
        if np.isfinite(uu):
            self.update_rms = float(np.sqrt(uu / elements))
        if gg == 0 or not np.isfinite(gg):
            return
        self.gradient_count += 1
        self.gradient_rms = float(np.sqrt(gg / elements))
        self.average.add(self.gradient_rms)
        if self.gradient_count > 1:
            self.spread.add((self.gradient_rms - self.average.value) ** 2)


# --- Controller (method.md#laws and #loop) -------------------------------------------------------


class Directions(NamedTuple):
    """What the laws act on: the two normalised trends and the plateau score."""

    loss: float
    reward: float
    plateau: float


def _reading(path: str) -> Any:
    """A property: what a sensor of the controller reads."""
    return property(attrgetter(path))


class OracleController:
    """Sensors and laws, driven one optimizer step at a time.

    Keywords are the fields of `Control` under their own names and with their defaults; ``lr`` and
    ``momentum`` are the first group's, from which the knobs start. Ranges are not checked here,
    except a start outside the bounds given.

    Attributes:
        step: Optimizer steps so far.
        updates: How many times the laws have acted.
        nonfinite: Observations so far that held a non-finite sample.
        log_lr: log of alpha, clamped.
        logit_momentum: logit of mu, clamped.
        log_noise: log of sigma, never below that of its floor; minus infinity where sigma is off.
        lr_start: alpha at step 0: ``lr``, or 1 in mode ``"modulate"``.
        momentum_start: mu at step 0.

    Raises:
        ValueError: If a start lies outside the bounds given, or a reward does not fit the mode.
    """

    def __init__(
        self,
        *,
        lr: float,
        momentum: float,
        mode: str = "replace",
        every: int | None = 10,
        reward: str = "neg_loss",
        beta_loss: float = 0.02,
        beta_reward: float = 0.02,
        beta_variance: float = 0.02,
        gain_lr_reward: float = 0.05,
        gain_lr_loss: float = 0.05,
        gain_momentum_reward: float = 0.02,
        gain_momentum_loss: float = 0.04,
        gain_noise_plateau: float = 0.08,
        gain_noise_reward: float = 0.06,
        lr_bounds: tuple[float, float] | None = None,
        momentum_bounds: tuple[float, float] | None = None,
        noise_bounds: tuple[float, float] = (0.0, 0.1),
        noise_floor: float | None = None,
        lr_change: tuple[float, float] = (0.9, 1.2),
        spike_clip: float = 5.0,
        plateau_trend: tuple[float, float] = (0.6, 0.2),
        plateau_variance: tuple[float, float] = (1.5, 0.1),
        horizon: int | None = None,
        cooldown: float = 0.4,
        cooldown_shape: str = "linear",
    ) -> None:
        if mode not in ("replace", "modulate"):
            raise ValueError(f"mode must be 'replace' or 'modulate', got {mode!r}")
        if reward not in ("neg_loss", "given", "none"):
            raise ValueError(f"reward must be 'neg_loss', 'given' or 'none', got {reward!r}")
        self.every = every
        self.reward_mode = reward
        self.gains_lr = (gain_lr_reward, gain_lr_loss)
        self.gains_momentum = (gain_momentum_reward, gain_momentum_loss)
        self.gains_noise = (gain_noise_plateau, gain_noise_reward)
        self.lr_change = lr_change
        self.plateau_trend = plateau_trend
        self.plateau_variance = plateau_variance
        self.horizon = horizon
        self.cooldown = cooldown
        self.cooldown_shape = cooldown_shape
        self.anneals = horizon is not None and mode == "replace" and cooldown > 0

        self.lr_start = 1.0 if mode == "modulate" else lr
        self.momentum_start = momentum
        if lr_bounds is None:
            lr_bounds = (0.1, 10.0) if mode == "modulate" else (lr / 100.0, 10.0 * lr)
        if momentum_bounds is None:
            momentum_bounds = (min(0.85, momentum), max(0.99, momentum))
        _check_start("lr", self.lr_start, lr_bounds)
        _check_start("momentum", momentum, momentum_bounds)
        self.lr_bounds = lr_bounds
        self.momentum_bounds = momentum_bounds
        self.noise_bounds = noise_bounds
        self.log_lr_bounds = (log(lr_bounds[0]), log(lr_bounds[1]))
        self.logit_momentum_bounds = (logit(momentum_bounds[0]), logit(momentum_bounds[1]))
        floor = _noise_floor(noise_bounds, noise_floor)
        self.log_noise_bounds = (log(floor), log(noise_bounds[1]))

        self.log_lr = log(self.lr_start)
        self.logit_momentum = logit(momentum)
        self.log_noise = self.log_noise_bounds[0]

        self.loss_sensor = TrendSensor(beta_loss, spike_clip)
        self.reward_sensor = TrendSensor(beta_reward, spike_clip)
        self.variance_sensor = VarianceSensor(beta_variance)

        self.step = 0
        self.updates = 0
        self.nonfinite = 0
        self.anneal = 1.0
        # What came since the laws last acted.
        self._observed = False
        self._rewarded = False
        self._alarmed = False

    def advance(self, loss: float | None = None, reward: float | None = None) -> None:
        """Do one optimizer step: the sensors, then at a multiple of K the laws.

        Args:
            loss: This step's loss, averaged over its observations; None if there was none.
            reward: Its reward, likewise; only where the reward is ``"given"``.
        """
        self.step += 1
        self.anneal = self._left_of_the_rate()
        self._observe(loss, reward)
        if self.every is not None and self.step % self.every == 0:
            self._act()

    def update(self, loss: float, reward: float | None = None) -> None:
        """Do one observation and one update without a step: epoch-wise control.

        See method.md#epoch-wise.

        Raises:
            ValueError: If ``every`` is not None: the knobs then change at its multiples alone.
        """
        if self.every is not None:
            raise ValueError(f"update() is for every=None, got every={self.every!r}; use advance()")
        self._observe(loss, reward)
        self._act()

    def _observe(self, loss: float | None, reward: float | None) -> None:
        if reward is not None and (self.reward_mode != "given" or loss is None):
            raise ValueError(
                f"reward must be None without a loss, or where it is {self.reward_mode!r}, "
                f"got {reward!r}"
            )
        if loss is None:
            return
        if self.reward_mode == "neg_loss":
            reward = -loss
        self._observed = True
        if not all(math.isfinite(sample) for sample in (loss, reward) if sample is not None):
            self.nonfinite += 1
            self._alarmed = True
        if math.isfinite(loss):
            self._sense_loss(loss)
        if reward is not None and math.isfinite(reward):
            self._rewarded = True
            self.reward_sensor.sense(reward)

    def _sense_loss(self, loss: float) -> None:
        seen = self.loss_sensor.sense(loss)
        # The first sample has no deviation that means anything: v and S_v start at the second.
        if self.loss_sensor.samples > 1:
            self.variance_sensor.sense(seen - self.loss_sensor.mean)

    def _directions(self) -> Directions:
        """What the laws act on now: the sensors, or the regression reflex.

        See method.md#reward and #non-finite.
        """
        if self._alarmed:
            return Directions(1.0, 0.0 if self.reward_mode == "none" else -1.0, self.plateau)
        rewarded = self._rewarded and self.reward_mode != "none"
        reward = self.reward_direction if rewarded else 0.0
        return Directions(self.loss_direction, reward, self.plateau)

    def _act(self) -> None:
        if not self._observed:
            return
        loss, reward, plateau = self._directions()
        worse, better = max(loss, 0.0), max(reward, 0.0)

        change = self.gains_lr[0] * reward - self.gains_lr[1] * worse
        if self._cools and not self._alarmed:
            change = 0.0
        change = clip(change, log(self.lr_change[0]), log(self.lr_change[1]))
        self.log_lr = clip(self.log_lr + change, *self.log_lr_bounds)

        change = self.gains_momentum[0] * reward - self.gains_momentum[1] * worse
        self.logit_momentum = clip(self.logit_momentum + change, *self.logit_momentum_bounds)

        change = self.gains_noise[0] * plateau - self.gains_noise[1] * better
        self.log_noise = clip(self.log_noise + change, *self.log_noise_bounds)

        self.updates += 1
        self._observed = self._rewarded = self._alarmed = False

    @property
    def _cools(self) -> bool:
        """Whether no more than the last share of the horizon is left."""
        return self.horizon is not None and self.step >= (1.0 - self.cooldown) * self.horizon

    def _left_of_the_rate(self) -> float:
        """The cooldown's factor (method.md#cooldown)."""
        if not self.anneals:
            return 1.0
        assert self.horizon is not None
        left = clip((self.horizon - self.step) / (self.cooldown * self.horizon), 0.0, 1.0)
        return left if self.cooldown_shape == "linear" else 1.0 - (1.0 - left) ** 0.5

    @property
    def lr(self) -> float:
        """Alpha in effect; the start itself, to the bit, while it has not moved.

        The clip, here as in the other knobs, takes off the last bit by which exp(log(bound)) may
        overshoot. Annealed it is below its lower bound, then, as far as to 0.
        """
        if self.log_lr == log(self.lr_start):
            return self.lr_start * self.anneal
        return clip(math.exp(self.log_lr), *self.lr_bounds) * self.anneal

    @property
    def momentum(self) -> float:
        """Mu in effect; the start itself, to the bit, while it has not moved."""
        if self.logit_momentum == logit(self.momentum_start):
            return self.momentum_start
        return clip(sigmoid(self.logit_momentum), *self.momentum_bounds)

    @property
    def noise(self) -> float:
        """Sigma in effect: exactly sigma_min at the floor (method.md#noise-law)."""
        if self.log_noise <= self.log_noise_bounds[0]:
            return self.noise_bounds[0]
        return clip(math.exp(self.log_noise), *self.noise_bounds)

    @property
    def plateau(self) -> float:
        """The plateau score P, in [0, 1]; 0 before the first finite loss."""
        if self.loss_sensor.samples == 0:
            return 0.0
        (flat, flat_slope), (calm, calm_slope) = self.plateau_trend, self.plateau_variance
        flatness = sigmoid((flat - abs(self.loss_direction)) / flat_slope)
        return flatness * sigmoid((calm - self.variance_sensor.ratio) / calm_slope)

    # The sensors' numbers under the names that `State` has for them.
    loss_mean = _reading("loss_sensor.mean")
    loss_trend = _reading("loss_sensor.trend")
    loss_scale = _reading("loss_sensor.scale.value")
    loss_direction = _reading("loss_sensor.direction")
    variance = _reading("variance_sensor.variance.value")
    variance_scale = _reading("variance_sensor.scale.value")
    reward_mean = _reading("reward_sensor.mean")
    reward_trend = _reading("reward_sensor.trend")
    reward_scale = _reading("reward_sensor.scale.value")
    reward_direction = _reading("reward_sensor.direction")


def _check_start(name: str, start: float, bounds: tuple[float, float]) -> None:
    if not bounds[0] <= start <= bounds[1]:
        raise ValueError(f"{name} must start within its bounds {bounds}, got {start!r}")


def _noise_floor(bounds: tuple[float, float], floor: float | None) -> float:
    """The least sigma whose logarithm is kept; 0 where sigma is off (method.md#noise-law)."""
    low, high = bounds
    if low > 0:
        return low
    if high == 0:
        return 0.0
    return 1e-3 * high if floor is None else floor


def group_lr(group_lr: float, alpha: float, alpha_start: float, mode: str) -> float:
    """Return one group's learning rate (method.md#modes).

    Args:
        group_lr: The group's own ``lr`` entry.
        alpha: The controller's alpha.
        alpha_start: Alpha at step 0.
        mode: ``"replace"`` or ``"modulate"``.
    """
    if alpha == alpha_start:
        return group_lr
    return group_lr * (alpha if mode == "modulate" else alpha / alpha_start)


def group_momentum(beta1: float, mu: float, mu_start: float) -> float:
    """Return the momentum of a group whose own ``betas[0]`` is ``beta1`` (method.md#modes)."""
    if mu == mu_start:
        return beta1
    return sigmoid(logit(beta1) + (logit(mu) - logit(mu_start)))


# --- Noise (method.md#random-numbers) ------------------------------------------------------------


def philox4x32(
    counter0: ArrayLike,
    counter1: ArrayLike,
    counter2: ArrayLike,
    counter3: ArrayLike,
    key0: ArrayLike,
    key1: ArrayLike,
    rounds: int = 10,
) -> tuple[Words, Words, Words, Words]:
    """Return the four output words of Philox 4x32, with ten rounds or so many.

    The generator is that of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as
    1, 2, 3" (2011).

    Args:
        counter0: Lowest word of the counter; this and the others are integers in [0, 2^32), and
            broadcast against each other.
        counter1: Second word.
        counter2: Third word.
        counter3: Highest word.
        key0: Low word of the key.
        key1: High word of the key.
        rounds: How many.
    """
    operands = (counter0, counter1, counter2, counter3, key0, key1)
    c0, c1, c2, c3, k0, k1 = np.broadcast_arrays(*(np.asarray(x, np.uint64) for x in operands))
    for _ in range(rounds):
        # Both factors are below 2^32, so the products are exact in 64 bits.
        product0 = c0 * np.uint64(0xD2511F53)
        product1 = c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (product1 >> _HALF) ^ c1 ^ k0,
            product1 & _WORD,
            (product0 >> _HALF) ^ c3 ^ k1,
            product0 & _WORD,
        )
        k0 = (k0 + np.uint64(0x9E3779B9)) & _WORD
        k1 = (k1 + np.uint64(0xBB67AE85)) & _WORD
    return (
        c0.astype(np.uint32),
        c1.astype(np.uint32),
        c2.astype(np.uint32),
        c3.astype(np.uint32),
    )


def noise_words(
    seed: int, index: int, step: int, elements: ArrayLike
) -> tuple[Words, Words, Words, Words]:
    """Return the four words of the Philox block that each element draws from.

    Args:
        seed: In [0, 2^64).
        index: The parameter's index among all of the optimizer's, in [0, 2^32).
        step: Its low 32 bits count.
        elements: Indices in the logical tensor, not negative; four neighbours share one block.

    Returns:
        Four uint32 arrays of the shape of ``elements``.
    """
    block = (np.asarray(elements, np.int64) >> 2).astype(np.uint64)
    low, high = block & _WORD, block >> _HALF
    return philox4x32(low, high, index, step & 0xFFFFFFFF, seed & 0xFFFFFFFF, seed >> 32)


def noise(seed: int, index: int, step: int, elements: ArrayLike) -> Floats:
    """Return each element's standard normal, by Box and Muller's transform of its words.

    Arguments are those of `noise_words`. Lanes 0 and 1 of a block (``element & 3``) are the cosine
    and sine of its first two words, lanes 2 and 3 those of its last two.
    """
    word0, word1, word2, word3 = noise_words(seed, index, step, elements)
    lane = np.asarray(elements, np.int64) & 3
    radius_word = np.where(lane < 2, word0, word2)
    angle_word = np.where(lane < 2, word1, word3)
    # 24 bits each: every value of u and s is then exact in float32 as well.
    u = ((radius_word >> np.uint32(8)).astype(np.float64) + 1.0) * 2.0**-24
    s = (angle_word.astype(np.int32) >> 8).astype(np.float64) * 2.0**-23
    radius = np.sqrt(-2.0 * np.log(u))
    theta = np.pi * s
    return np.asarray(radius * np.where(lane % 2 == 0, np.cos(theta), np.sin(theta)))


# --- Rounding by chance (method.md#storage) ------------------------------------------------------


def rounding_bits(seed: int, index: int, step: int, elements: ArrayLike) -> NDArray[np.int64]:
    """Return each element's 16 random bits; arguments are those of `noise_words`.

    Eight neighbours share a block of the stream whose counter has its second word's top bit set.
    Element 2k of the block has the lower half of word k, element 2k + 1 the upper half.
    """
    place = np.asarray(elements, np.int64)
    block = (place >> 3).astype(np.uint64)
    low, high = block & _WORD, (block >> _HALF) + np.uint64(2**31)
    key = (seed & 0xFFFFFFFF, seed >> 32)
    words = philox4x32(low, high, index, step & 0xFFFFFFFF, *key, rounds=7)
    number = (place & 7) // 2
    word = np.choose(number, words).astype(np.int64)
    return np.where(place % 2 == 0, word % 65536, word // 65536)


def round_by_chance(
    values: ArrayLike, bits: NDArray[np.int64], factor: int, mantissa: int, least: int
) -> Floats:
    """Return one of each number's two neighbours of a short format.

    A number that lies at the share f of the way from the neighbour nearer to 0 to the other one
    becomes the other one if f is no less than 1 - r·2^-16, with r = bits · factor modulo 2^16; of f
    as many binary digits count as float32 has beyond the short mantissa.

    Args:
        values: What float32 holds, finite.
        bits: From `rounding_bits`.
        factor: An odd number, one for each array that the bits round.
        mantissa: Digits after the point, 7 for bfloat16 and 10 for float16.
        least: The smallest normal number's exponent, -126 or -14.
    """
    x = np.abs(np.asarray(values, np.float64))
    exponent = np.maximum(np.floor(np.log2(np.where(x == 0, 1.0, x))), least)
    spacing = 2.0 ** (exponent - mantissa)
    lower = np.floor(x / spacing)
    digits = 23 - mantissa
    share = np.rint((x / spacing - lower) * 2.0**digits)
    random = ((bits * factor) % 65536) >> (16 - digits)
    upper = share + random >= 2**digits
    return np.copysign((lower + upper) * spacing, values)


# --- Error terms beside bfloat16 (method.md#error-term) ------------------------------------------

FRACTION, LEAST = 15, -126
"""Digits after the point of a number of 24 bits, and its smallest normal exponent"""


def joined(param: ArrayLike, error: ArrayLike) -> Floats:
    """Return the number that lies so many numbers of 24 bits farther from 0 than a bfloat16.

    0 and what is not finite are themselves.
    """
    p, e = (np.asarray(x, np.float64) for x in (param, error))
    alone = ~np.isfinite(p) | (p == 0)
    safe = np.where(alone, 1.0, p)
    return np.where(alone, p, np.copysign(_number_at(_place_of(np.abs(safe)) + e), safe))


def parted(values: ArrayLike, bits: NDArray[np.int64] | None) -> tuple[Floats, Floats]:
    """Return the bfloat16 and the error term of each number, which is rounded to 24 bits first.

    A bfloat16 has every 256th of the places that numbers of 24 bits have; half-way between two it
    is the one farther from 0.

    Args:
        values: What float32 holds, finite.
        bits: From `rounding_bits`; None rounds to the nearest number, half-way to the even one.
    """
    x = np.abs(np.asarray(values, np.float64))
    if bits is not None:
        place = _place_of(np.abs(round_by_chance(values, bits, 1, FRACTION, LEAST)))
    else:
        place = np.rint(_place_of(x))
    upper = 256 * np.floor((place + 128) / 256)
    param = _number_at(upper)
    param = np.where(param >= 2.0**128, np.inf, param)
    error = np.where((param == 0) | np.isinf(param), 0.0, place - upper)
    return np.copysign(param, values), error


def _place_of(magnitudes: Floats) -> Floats:
    """The place of a number among those of 24 bits, from 0 on; between two, the share of the way"""
    exponent = np.floor(np.log2(np.where(magnitudes == 0, 1.0, magnitudes)))
    exponent = np.where(magnitudes == 0, LEAST, np.maximum(exponent, LEAST))
    return (exponent - LEAST) * 2**FRACTION + magnitudes / 2.0 ** (exponent - FRACTION)


def _number_at(places: Floats) -> Floats:
    above = np.maximum(np.floor(places / 2**FRACTION) - 1, 0)
    return (places - above * 2**FRACTION) * 2.0 ** (above + LEAST - FRACTION)


# --- Blocks of 8-bit numbers (method.md#blocks) --------------------------------------------------


class BlockMap(NamedTuple):
    """Codes 0 to 2^bits - 1 in segments of 2^fraction steps, which double from each to the next.

    Attributes:
        bits: Of a code, but for the sign.
        fraction: Of these, those that count steps.
        factor: What the block's first element's random bits are multiplied by for the scale.
    """

    bits: int
    fraction: int
    factor: int

    def value(self, codes: ArrayLike) -> Floats:
        """Return what codes stand for in units of the scale."""
        segment, step = np.divmod(np.asarray(codes, np.float64), 2.0**self.fraction)
        return 2.0**segment * (1 + step / 2.0**self.fraction) - 1

    def place(self, values: ArrayLike) -> Floats:
        """Return where numbers lie among the codes, between two of them by the share of the way."""
        x = 1 + np.asarray(values, np.float64)
        segment = np.floor(np.log2(x))
        return 2.0**self.fraction * (segment + x / 2.0**segment - 1)


BLOCK_MAPS = (BlockMap(7, 5, 10745), BlockMap(8, 4, 26853))
"""Of averages of gradients, which have a sign, and of averages of squares"""


def block_codes(
    values: ArrayLike, bits: NDArray[np.int64], factor: int, kind: BlockMap, block: int = 128
) -> tuple[Floats, Floats]:
    """Return what is cut off to each number's code, without its sign, and each block's scale.

    The scale is the largest magnitude over what the largest code stands for, and is rounded by
    chance to 8 binary digits; codes are those of what was not rounded yet. Of 16 random bits the
    upper 12 count, and stand for the middle of what the lower 4 could add. A block with something
    that is not finite has NaN for its scale, and one whose scale is below 2^-120 has 0; their codes
    are 0.

    Args:
        values: What float32 holds; averages of squares are not below 0.
        bits: From `rounding_bits`.
        factor: The slot's own.
        kind: One of `BLOCK_MAPS`.
        block: Elements that share a scale.
    """
    x = np.abs(np.asarray(values, np.float64))
    top = 2**kind.bits - 1
    share = lambda of, by: ((of * by % 65536 >> 4) + 0.5) / 4096  # noqa: E731
    reached, scales = np.zeros_like(x), np.zeros(-(-x.size // block))
    for i in range(scales.size):
        here = slice(i * block, (i + 1) * block)
        largest = np.max(x[here])
        if not np.isfinite(largest):
            scales[i] = np.nan
            continue
        unit = largest / kind.value(top)
        if unit == 0:
            continue
        spacing = 2.0 ** (np.floor(np.log2(unit)) - 7)
        scale = spacing * np.floor(unit / spacing + share(bits[here][0], kind.factor))
        if not 2.0**-120 <= scale <= 2.0**100:
            scales[i] = 0.0 if scale < 1 else np.nan
            continue
        scales[i] = scale
        found = kind.place(x[here] / unit) + share(bits[here], factor)
        if kind.bits == 8:
            # No square above 0 becomes 0.
            found = np.where((found < 1) & (x[here] > 0), 1.5, found)
        reached[here] = found
    return reached, scales


# --- The parameter step (method.md#parameter-step) -----------------------------------------------


class Entering(NamedTuple):
    """How a gradient enters a step, and what noise comes with it: the same in every algorithm.

    Attributes:
        maximize: Step along the gradient instead of against it.
        noise: Sigma; at 0 nothing is added.
        xi: Standard normals; needed where ``noise`` is not 0.
        gradient_scale: Factor of the gradient: clip coefficient over the gradient scaler's scale. A
            coupled weight decay is not scaled.
        sum_of_squares: Of what the noise goes to, over the whole logical tensor: the gradient times
            ``gradient_scale``, or the parameter before the step; None if this is the whole of it.
        rms_numel: Elements of the whole logical tensor; None if the gradient is the whole of it.
        noise_target: ``"gradient"``, or ``"parameter"``: then it is added after the update, in
            units of the learning rate.
    """

    maximize: bool = False
    noise: float = 0.0
    xi: ArrayLike | None = None
    gradient_scale: float = 1.0
    sum_of_squares: float | None = None
    rms_numel: int | None = None
    noise_target: str = "gradient"

    def gradient(self, grad: ArrayLike) -> Floats:
        """The gradient as it enters the moments where there is no noise: scaled, of the sign."""
        scaled = np.asarray(grad, np.float64) * self.gradient_scale
        return -scaled if self.maximize else scaled

    def noise_terms(self, g: Floats, p: Floats, lr: float) -> tuple[Floats | float, Floats | float]:
        """What is added to the gradient before the moments, to the parameter after the update.

        Raises:
            ValueError: If ``noise`` is not 0 and ``xi`` is None, or ``noise_target`` is neither.
        """
        if self.noise_target not in ("gradient", "parameter"):
            raise ValueError(
                f"noise_target must be 'gradient' or 'parameter', got {self.noise_target!r}"
            )
        if self.noise == 0:
            return 0.0, 0.0
        if self.xi is None:
            raise ValueError(f"xi must hold standard normals where noise is {self.noise!r}")
        of = g if self.noise_target == "gradient" else p
        squares = float(np.sum(of * of)) if self.sum_of_squares is None else self.sum_of_squares
        numel = of.size if self.rms_numel is None else self.rms_numel
        rms = math.sqrt(squares / numel) if numel else 0.0
        added = self.noise * rms * np.asarray(self.xi, np.float64)
        return (added, 0.0) if self.noise_target == "gradient" else (0.0, lr * added)


class AdamWState(NamedTuple):
    """One tensor and its state after a step."""

    param: Floats
    exp_avg: Floats
    exp_avg_sq: Floats
    max_exp_avg_sq: Floats | None
    step: int
    mu_product: float


def adamw_step(
    param: ArrayLike,
    grad: ArrayLike,
    exp_avg: ArrayLike,
    exp_avg_sq: ArrayLike,
    max_exp_avg_sq: ArrayLike | None = None,
    *,
    step: int,
    mu_product: float,
    lr: float,
    momentum: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    **entering: Any,
) -> AdamWState:
    """Do one step of AdamW with noise on one real tensor, or on one shard of it.

    Args:
        param: The parameter, of any shape; the arrays below have the same.
        grad: Its gradient as backward left it.
        exp_avg: First moment before the step.
        exp_avg_sq: Second moment before the step.
        max_exp_avg_sq: Largest second moment so far; None without amsgrad.
        step: This parameter's steps before this one.
        mu_product: Product of the momenta of those steps; 1 before the first.
        lr: Effective learning rate of the parameter's group.
        momentum: Effective momentum of the parameter's group.
        beta2: Decay of the second moment.
        eps: Term of the denominator.
        weight_decay: Decoupled, applied with ``lr``.
        entering: `Entering`'s, which raises ValueError.
    """
    p, m, v = (np.asarray(x, np.float64) for x in (param, exp_avg, exp_avg_sq))
    enters = Entering(**entering)
    g = enters.gradient(grad)
    on_gradient, on_parameter = enters.noise_terms(g, p, lr)
    g = g + on_gradient

    m = momentum * m + (1.0 - momentum) * g
    v = beta2 * v + (1.0 - beta2) * g * g
    step += 1
    mu_product = (mu_product if step > 1 else 1.0) * momentum
    largest = None if max_exp_avg_sq is None else np.maximum(max_exp_avg_sq, v)

    first = m / (1.0 - mu_product)
    second = (v if largest is None else largest) / (1.0 - beta2**step)
    with np.errstate(divide="ignore", invalid="ignore"):
        # eps = 0 on an element that never had a gradient is 0/0 in torch.optim.AdamW as well.
        direction = first / (np.sqrt(second) + eps)
    p = (1.0 - lr * weight_decay) * p - lr * direction + on_parameter
    return AdamWState(p, m, v, largest, step, mu_product)


class SGDState(NamedTuple):
    """One tensor and its state after a step."""

    param: Floats
    momentum_buffer: Floats | None


def sgd_step(
    param: ArrayLike,
    grad: ArrayLike,
    momentum_buffer: ArrayLike | None,
    *,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool = False,
    decoupled: bool = False,
    **entering: Any,
) -> SGDState:
    """Do one step of SGD with noise on one real tensor, or on one shard of it.

    Args:
        param: As in `adamw_step`; so are `grad`, `lr` and `entering`.
        grad: The gradient.
        momentum_buffer: The buffer before the step; None before the first, whose gradient becomes
            the buffer.
        lr: The learning rate.
        momentum: Effective momentum of the parameter's group; at 0 there is no buffer.
        dampening: One minus the weight of a gradient that enters the buffer.
        weight_decay: Added to the gradient times the parameter, or decoupled.
        nesterov: Step along the gradient plus momentum times the new buffer.
        decoupled: Shrink the parameter by ``lr`` times the decay instead.
        entering: `Entering`'s.
    """
    p = np.asarray(param, np.float64)
    enters = Entering(**entering)
    g = enters.gradient(grad)
    on_gradient, on_parameter = enters.noise_terms(g, p, lr)
    if not decoupled:
        g = g + weight_decay * p
    g = g + on_gradient
    buffer = None
    direction = g
    if momentum != 0:
        if momentum_buffer is None:
            buffer = g
        else:
            buffer = momentum * np.asarray(momentum_buffer, np.float64) + (1.0 - dampening) * g
        direction = g + momentum * buffer if nesterov else buffer
    shrunk = (1.0 - lr * weight_decay) * p if decoupled else p
    return SGDState(shrunk - lr * direction + on_parameter, buffer)


class LionState(NamedTuple):
    """One tensor and its state after a step."""

    param: Floats
    exp_avg: Floats
    signed: Floats
    """What the step's direction is the sign of"""


def lion_step(
    param: ArrayLike,
    grad: ArrayLike,
    exp_avg: ArrayLike,
    *,
    lr: float,
    momentum: float,
    beta2: float,
    weight_decay: float,
    **entering: Any,
) -> LionState:
    """Do one step of Lion with noise on one real tensor, or on one shard of it.

    Lion is that of Chen et al., "Symbolic Discovery of Optimization Algorithms" (2023).

    Args:
        param: As in `adamw_step`; so are `grad`, `lr`, `weight_decay` and `entering`.
        grad: The gradient.
        exp_avg: The moment before the step.
        lr: The learning rate.
        momentum: Effective momentum of the parameter's group, the paper's first beta.
        beta2: Decay of the moment.
        weight_decay: Decoupled.
        entering: `Entering`'s.
    """
    p, m = (np.asarray(x, np.float64) for x in (param, exp_avg))
    enters = Entering(**entering)
    g = enters.gradient(grad)
    on_gradient, on_parameter = enters.noise_terms(g, p, lr)
    g = g + on_gradient
    signed = momentum * m + (1.0 - momentum) * g
    p = p * (1.0 - lr * weight_decay) - lr * np.sign(signed) + on_parameter
    return LionState(p, beta2 * m + (1.0 - beta2) * g, signed)


def clip_coefficient(grads: Sequence[ArrayLike], max_norm: float) -> float:
    """Return the factor by which torch.nn.utils.clip_grad_norm_ would scale these gradients.

    Args:
        grads: Every gradient of the optimizer, unscaled, before noise (method.md#clipping).
        max_norm: Largest global 2-norm to let through.
    """
    arrays = [np.asarray(grad, np.float64) for grad in grads]
    norm = math.sqrt(sum(float(np.sum(grad * grad)) for grad in arrays))
    # NumPy's minimum, for a norm of NaN must stay NaN, which Python's would turn into 1.
    return float(np.minimum(max_norm / (norm + 1e-6), 1.0))


def alignment_sums(
    grad: ArrayLike, exp_avg: ArrayLike, exp_avg_sq: ArrayLike, eps: float, **entering: Any
) -> tuple[float, float, float]:
    """Return (sum g·u, sum g², sum u²) of one tensor, with u = m/(√v + eps) from before the step.

    Args:
        grad: The gradient as backward left it; g is as it enters the moments, but without noise.
        exp_avg: First moment before the step, m.
        exp_avg_sq: Second moment before the step, v; not bias-corrected.
        eps: Term of the denominator.
        entering: `Entering`'s.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        u = np.asarray(exp_avg, np.float64) / (np.sqrt(np.asarray(exp_avg_sq, np.float64)) + eps)
        return _three_sums(Entering(**entering).gradient(grad), u)


def sgd_alignment_sums(
    param: ArrayLike,
    grad: ArrayLike,
    momentum_buffer: ArrayLike | None,
    weight_decay: float,
    **entering: Any,
) -> tuple[float, float, float]:
    """Return (sum g·u, sum g², sum u²) of one tensor, u the buffer from before the step.

    Args:
        param: The parameter before the step.
        grad: As in `alignment_sums`; so is `entering`.
        momentum_buffer: The buffer before the step; None counts as zeros.
        weight_decay: The coupled one, which is in g; 0 where it is decoupled.
        entering: `Entering`'s.
    """
    g = Entering(**entering).gradient(grad) + weight_decay * np.asarray(param, np.float64)
    return _three_sums(
        g, np.zeros_like(g) if momentum_buffer is None else np.asarray(momentum_buffer, np.float64)
    )


def _three_sums(g: Floats, u: Floats) -> tuple[float, float, float]:
    return float(np.sum(g * u)), float(np.sum(g * g)), float(np.sum(u * u))


# --- The alignment law (method.md#alignment) -----------------------------------------------------
#
# The search ends by evidence that updates overshoot (method.md#search), which is added up: the
# log-likelihood ratio of z = h / sqrt(S2), taken as normal with variance 1, between a mean of -0.3
# and a mean of 0, as far as one z of at most +-2 can speak. Sums below 0 count as 0 (Page,
# "Continuous inspection schemes", 1954). Above 5 the search goes back and the sum starts anew; it
# ends where it had come to that before, at a rate of exp(-1.5) of this one or more.


class OracleAlignmentController(OracleController):
    """`OracleController` with alpha by the alignment law; mu and sigma keep their laws.

    Keywords are the fields of `Control` under their own names. Those of alpha's other law
    (``gain_lr_reward``, ``gain_lr_loss``, ``lr_change``) are taken and have no effect.

    Attributes:
        alignment: h, the newest finite cosine.
        alignment_square: S2 as it runs from 0, before the correction for its start.
        alignment_direction: x, the newest h over its root mean square, clipped to [-1, 1].
        alignment_mean: e, the average of x, which starts at 0.
        overshoot: The evidence that the mean of h is below 0.
        log_lr_downhill: log alpha when e was last above 0.2, unless that is lower than the one
            before and the evidence is 1 or more; minus infinity before.
        log_lr_doubted: The same when that evidence last came to 5; minus infinity before.
        held: Whether the search is over.
        anneal: What the cooldown leaves of the rate that is held.
    """

    def __init__(
        self,
        *,
        lr: float,
        momentum: float,
        mode: str = "replace",
        acquire_from: float | None = None,
        reuse: tuple[int, int] | None = None,
        lr_bounds: tuple[float, float] | None = None,
        **rest: Any,
    ) -> None:
        self.minibatches, self.epochs = reuse or (1, 1)
        start = 1.0 if mode == "modulate" else lr
        if lr_bounds is None:
            lr_bounds = (1e-4 * start, 1e4 * start)
        rest |= {"gain_lr_reward": 0.0, "gain_lr_loss": 0.0}
        super().__init__(lr=lr, momentum=momentum, mode=mode, lr_bounds=lr_bounds, **rest)
        if acquire_from is None:
            acquire_from = max(start / 100.0, lr_bounds[0])
        _check_start("acquire_from", acquire_from, lr_bounds)
        self.log_lr = log(acquire_from)

        # Who has no one to anneal keeps half of what the search found.
        self.kept = 0.5 if self.horizon is None and mode == "replace" else 1.0

        self.alignment = 0.0
        self.alignment_square = 0.0
        self.alignment_direction = 0.0
        self.alignment_mean = 0.0
        self.overshoot = 0.0
        self.log_lr_downhill = -math.inf
        self.log_lr_doubted = -math.inf
        self.held = False
        self._finite = 0
        self._sums: tuple[float, float, float] | None = None

    def gather(self, gu: float, gg: float, uu: float) -> None:
        """Take what a step's sweep has summed; the next step's alpha acts on it."""
        self._sums = (gu, gg, uu)

    def advance(self, loss: float | None = None, reward: float | None = None) -> None:
        """Do one optimizer step: the search and the cooldown first, then `OracleController`'s."""
        self._read_sums()
        left = math.inf if self.horizon is None else self.horizon - (self.step + 1)
        if not self.held and left <= self.cooldown * (self.horizon or 0):
            self._hold()
        super().advance(loss, reward)

    def _read_sums(self) -> None:
        sums, self._sums = self._sums, None
        # Without a gradient, or without an update before it, there is no angle between the two.
        if sums is None or sums[1] == 0 or sums[2] == 0:
            return
        # They are of the step before this one, which counts from 0 here and has not begun.
        epoch = (self.step - 1) // self.minibatches % self.epochs
        if epoch > 0:
            return
        z = self._standardised(*sums)
        self.alignment_direction = clip(z, -1.0, 1.0)
        self.alignment_mean += 0.2 * (self.alignment_direction - self.alignment_mean)
        if not self.held:
            self._search(z)

    def _standardised(self, gu: float, gg: float, uu: float) -> float:
        """h over its root mean square, within +-2; -1 where h is not finite."""
        h = gu / math.sqrt(gg) / math.sqrt(uu)
        if not math.isfinite(h):
            return -1.0
        self.alignment = h
        self._finite += 1
        self.alignment_square = 0.95 * self.alignment_square + 0.05 * h * h
        root_mean_square = math.sqrt(self.alignment_square / self.alignment_weight)
        return clip(normalised(h, root_mean_square), -2.0, 2.0)

    @property
    def alignment_weight(self) -> float:
        """What the weights of S2 add up to so far."""
        return 1.0 - 0.95**self._finite

    def _search(self, z: float) -> None:
        lower = self.log_lr < self.log_lr_downhill
        if self.alignment_mean > 0.2 and not (lower and self.overshoot >= 1.0):
            self.log_lr_downhill = self.log_lr
        seen_downhill = self.log_lr_downhill > -math.inf
        if seen_downhill:
            # Twice the log-densities, up to what they have in common.
            uphill, level = -((z + 0.3) ** 2), -(z**2)
            self.overshoot = max(0.0, self.overshoot + (uphill - level) / 2)
            if self.overshoot > 5.0:
                self._doubt()
                return
        push = _above_its_error(self.alignment_mean) + 0.2 * (5.0 - self.overshoot) / 5.0
        log_lr = self.log_lr + (1.0 - self.momentum) * push
        if seen_downhill:
            log_lr = min(log_lr, self.log_lr_downhill + 0.3)
        self.log_lr = clip(log_lr, *self.log_lr_bounds)

    def _doubt(self) -> None:
        if self.log_lr_downhill - self.log_lr_doubted <= 1.5:
            self.log_lr_downhill = min(self.log_lr_downhill, self.log_lr_doubted)
            self._hold()
        else:
            self.log_lr = clip(self.log_lr_downhill, *self.log_lr_bounds)
            self.log_lr_doubted = self.log_lr_downhill
            self.overshoot = 0.0

    def _hold(self) -> None:
        self.held = True
        found = self.log_lr if self.log_lr_downhill == -math.inf else self.log_lr_downhill
        self.log_lr = clip(found + log(self.kept), *self.log_lr_bounds)


def _above_its_error(mean: float) -> float:
    """The average e of x, shrunk by se^2 / e^2 of itself; 0 where it is within its error se.

    An average with weight b of the newest of values with variance s^2 has the variance
    s^2 * b / (2 - b), which for b = 0.2 is s^2 / 9; and x has the variance 1 - e^2 or less.
    """
    variance = (1.0 - mean**2) / 9.0
    return 0.0 if mean**2 <= variance else (mean**2 - variance) / mean


# --- The range test (method.md#range-test) -------------------------------------------------------
#
# A ramp: log alpha gains 0.35 in every step. Its mark is the first rate, from the floor on, at
# which the mean e of h is not above 0. It is confirmed where the likelihood ratio of the alignment
# law's test comes above 4 within a factor of 100 of the mark, or the loss rises within a factor of
# 30; then everything goes back, and seven tenths of the mark are held. An h speaks of the update
# before it, and so of the rate of that update: rates are kept in a list, and the newest h is about
# the last but one. So is the newest loss. A mark that nothing confirmed is a place for the
# alignment law to begin, no more. Where the loss did not confirm it, two windows of losses are
# compared after the warm-up.


class OracleRangeTestController(OracleController):
    """`OracleController` with alpha by the range test; mu and sigma keep their laws.

    Keywords are the fields of `Control` under their own names, those of alpha's other laws
    without effect.

    Attributes:
        alignment: h, the newest finite cosine.
        alignment_direction: x, the newest h over its root mean square, clipped to [-1, 1].
        overshoot: S.
        log_lr_zero: log alpha of the first update of this ramp after which e was not above 0.
        log_lr_risen: The same when the loss had risen by nine standard errors of a difference.
        log_lr_downhill: The alignment law's, as it climbs; so is log_lr_doubted.
        ramp_losses: How many finite losses the ramp was told; what it makes of them is below.
        ramp_loss_least: The least of their means from the twelfth on.
        ramp_loss_limit: A mean above this has risen.
        watches: Windows of losses that are over, 3 where a climb followed from the two; what is
            made of the one in progress is below.
        watched_before: The mean of the last of them; watched_error: its squared standard error.
        undershoot: The evidence that the mean of h is above 0 where the rate is held.
        climbing: The alignment law goes on where the ramp left off.
        searching: On the ramp.
        search_steps: Steps since the first foot of the ramp.
        held: Whether the search is over; held_at: the step that ended it, 0 where there was none.
        anneal: What warm-up and cooldown leave of the rate.
        active: Whether the tensors take this step.
        rewind: Whether they go back to where the ramp began.
    """

    def __init__(
        self,
        *,
        lr: float,
        momentum: float,
        mode: str = "replace",
        horizon: int | None = None,
        cooldown: float = 0.4,
        acquire_from: float | None = None,
        lr_bounds: tuple[float, float] | None = None,
        **rest: Any,
    ) -> None:
        unit = 1.0 if mode == "replace" else 1.0 / lr
        start = 1.0 if mode == "modulate" else lr
        foot = 1e-6 * unit if acquire_from is None else acquire_from
        self.length = 1000 if horizon is None else horizon
        # Forty steps of the run's first quarter, before the cooldown; a long run lends more.
        room = min(0.25, 1.0 - cooldown) * self.length
        too_short = horizon is not None and room < 40
        self.longest = 0 if too_short else max(40 if horizon else 0, int(0.15 * self.length))
        bounds = lr_bounds
        if bounds is None:
            inside = (foot, start) if too_short else (foot,)
            bounds = (min(1e-6 * unit, *inside), max(3.0 * unit, *inside))
        rest |= {"gain_lr_reward": 0.0, "gain_lr_loss": 0.0}
        # What was given need not lie inside: this law does not start there.
        around = (min(bounds[0], start), max(bounds[1], start))
        rest |= {"horizon": horizon, "cooldown": cooldown}
        super().__init__(lr=lr, momentum=momentum, mode=mode, lr_bounds=around, **rest)
        self.lr_bounds = bounds
        self.log_lr_bounds = (log(bounds[0]), log(bounds[1]))
        self.foot = log(start) if too_short else clip(log(foot), *self.log_lr_bounds)
        if self.foot == self.log_lr_bounds[1]:  # there is nothing above it to look at
            self.longest = 0
        self.floor = clip(log(100.0 * foot), *self.log_lr_bounds)
        self.log_lr = self.foot
        self.log_given = log(start)

        self.last_step = math.inf if horizon is None else (1.0 - cooldown) * horizon
        alone = horizon is None and mode == "replace"
        longer = max(1.0, self.length / 1000)
        self.share = 0.7 / longer ** (1 / 3)
        self.warm_from = 0.1 / longer
        self.warm_up = 0.15 * self.length
        self.window = max(30, int(0.05 * self.length + 1e-9))
        self.kept = 0.5 if alone else 1.0

        self.alignment = 0.0
        self.alignment_direction = 0.0
        of_climb = {"lr": lr, "momentum": momentum, "mode": mode, "horizon": horizon}
        self._of_climb: dict[str, Any] = {**of_climb, "lr_bounds": around}
        self.climb = self._new_climb()
        self.climbing = False
        self.log_lr_risen = self.log_lr_downhill = self.log_lr_doubted = -math.inf
        self.watches = 0
        self.watched_before = self.watched_error = 0.0
        self._watched: list[float] = []
        self.ramp_loss_least = self.ramp_loss_limit = 0.0
        self._losses: list[float] = []
        self._told: float | None = None
        self.searching = self.held = self.rewind = False
        self.search_steps = self.held_at = 0
        self.active = True
        self._sums: tuple[float, float, float] | None = None
        self._forget()

    def _new_climb(self) -> OracleAlignmentController:
        climb = OracleAlignmentController(**self._of_climb)
        climb.lr_bounds, climb.log_lr_bounds = self.lr_bounds, self.log_lr_bounds
        return climb

    def _forget_cosines(self) -> None:
        self.overshoot = self.undershoot = 0.0
        self.alignment_peak = 0.0
        self._cosines: list[float] = []

    def _forget(self) -> None:
        self._forget_cosines()
        self.log_lr_zero = self.log_lr_risen = -math.inf
        self.ramp_losses = 0
        self._told = None
        self._rates = [self.log_lr, self.log_lr] if self.searching else [-math.inf, -math.inf]

    def gather(self, gu: float, gg: float, uu: float) -> None:
        """Take what a step's sweep has summed; a step that nothing takes has no sweep."""
        if self.active:
            self._sums = (gu, gg, uu)

    def advance(self, loss: float | None = None, reward: float | None = None) -> None:
        """Do one optimizer step: the search first, then `OracleController`'s."""
        self.active, self.rewind = True, False
        now = self.step + 1
        if self.climbing:
            self._climb(now)
        else:
            h = self._cosine()
            z = None if h is None else self._standardised(h)
            if self.held:
                self._creep(z, now)
                self._watch(now)
            else:
                self._search(z)
        super().advance(loss, reward)
        self._tell(loss)

    def _left_of_the_rate(self) -> float:
        """And the warm-up's, unless a climb was the warm-up."""
        if self.climbing:
            return super()._left_of_the_rate()
        if not self.held:
            return 1.0
        risen = min(1.0, (self.step - self.held_at) / self.warm_up)
        return self.warm_from ** (1.0 - risen) * super()._left_of_the_rate()

    def update(self, loss: float, reward: float | None = None) -> None:
        """Do one epoch-wise update, as `OracleController` does."""
        super().update(loss, reward)
        self._tell(loss)

    def _tell(self, loss: float | None) -> None:
        self._told = self._told if loss is None else loss

    def _hear(self) -> None:
        """The loss that was told since the step before, if that is a finite one."""
        told, self._told = self._told, None
        if told is None or not math.isfinite(told):
            return
        if self.ramp_losses == 0:
            self._losses = []
        self._losses.append(told)
        self.ramp_losses += 1
        mean = self.ramp_loss_mean
        if self.ramp_losses == 12 or (self.ramp_losses > 12 and mean < self.ramp_loss_least):
            self.ramp_loss_least = mean
            # The mean's variance is 0.3/1.7 of a loss's, and a difference's is twice that.
            self.ramp_loss_limit = mean + 9.0 * math.sqrt(self.ramp_loss_square * 0.6 / 1.7)
        elif self.ramp_losses > 12 and self.log_lr_risen == -math.inf:
            if min(mean, *self._losses[-2:]) > self.ramp_loss_limit:
                self.log_lr_risen = self.log_lr_judged

    @property
    def ramp_loss(self) -> float:
        """The last loss that the ramp was told."""
        return self._losses[-1] if self._losses else 0.0

    @property
    def ramp_loss_mean(self) -> float:
        """Their mean, with 0.3 for the newest, started at the first; 0 before it."""
        if not self._losses:
            return 0.0
        first, *rest = self._losses
        total = first
        for value in rest:
            total += 0.3 * clip(value - total, -SATURATION, SATURATION)
        return total

    @property
    def ramp_loss_square(self) -> float:
        """Half the mean square of their differences, 0.1 for the newest, started at the first."""
        steps = [clip(b - a, -SATURATION, SATURATION) for a, b in pairwise(self._losses)]
        halves = [min(step * step, SATURATION) / 2 for step in steps]
        if not halves:
            return 0.0
        total = halves[0]
        for half in halves[1:]:
            total = 0.9 * total + 0.1 * half
        return total

    def _cosine(self) -> float | None:
        """The newest h; None where there is no angle."""
        sums, self._sums = self._sums, None
        if sums is None or sums[1] == 0 or sums[2] == 0:
            return None
        return sums[0] / math.sqrt(sums[1]) / math.sqrt(sums[2])

    def _standardised(self, h: float) -> float:
        if not math.isfinite(h):
            return math.nan
        self.alignment = h
        self._cosines.append(h)
        z = clip(normalised(h, math.sqrt(self.alignment_square / self.alignment_weight)), -2.0, 2.0)
        self.alignment_direction = clip(z, -1.0, 1.0)
        return z

    def _average(self, values: Sequence[float], rate: float) -> float:
        """The sum of the values with weights that fall by 1 - rate from the newest back."""
        total = 0.0
        for value in values:
            total = (1.0 - rate) * total + rate * value
        return total

    @property
    def alignment_square(self) -> float:
        """S2 as it runs from 0, before the correction for its start."""
        if self.climbing:
            return self.climb.alignment_square
        return self._average([h * h for h in self._cosines], 0.1)

    @property
    def alignment_weight(self) -> float:
        """What the weights of S2 add up to so far."""
        if self.climbing:
            return self.climb.alignment_weight
        return 1.0 - 0.9 ** len(self._cosines)

    @property
    def alignment_mean_weight(self) -> float:
        """What the weights of e add up to so far."""
        return 1.0 - 0.7 ** len(self._cosines)

    @property
    def alignment_mean(self) -> float:
        """The mean e of h, weighted; 0 before the first. In the climb it is of x."""
        if self.climbing:
            return self.climb.alignment_mean
        if not self._cosines:
            return 0.0
        return clip(self._average(self._cosines, 0.3) / self.alignment_mean_weight, -1.0, 1.0)

    @property
    def log_lr_judged(self) -> float:
        """log alpha of the update that the newest h speaks of; minus infinity before a ramp."""
        return self._rates[-2]

    def _search(self, z: float | None) -> None:
        late = self.step + 1 >= self.last_step
        if not self.searching:
            if self.longest == 0 or late:
                self.held = True
                return
            self.searching = True
            self.search_steps = 0
            self.log_lr = self.foot
            self._forget()
            return
        self.search_steps += 1
        late = late or self.search_steps >= self.longest
        low = self.log_lr_judged < self.floor
        self._hear()
        if z is None:
            if late or self._says_no_more:
                self._end(late)
            return
        if math.isnan(z):
            if low and not late:
                self._go_back()
                self.log_lr = self.foot
                self._forget()
            else:
                if self.log_lr_risen == -math.inf:
                    self.log_lr_risen = self.log_lr_judged
                self._end(late)
            return
        e = self.alignment_mean
        if not low:
            self.overshoot = max(0.0, self.overshoot - 0.3 * (z + 0.15))
            if self.log_lr_zero == -math.inf and e <= 0:
                self.log_lr_zero = self.log_lr_judged
        if late or self._says_no_more:
            self._end(late)
            return
        self.alignment_peak = max(e, self.alignment_peak)
        growth = 0.35 if low else 0.35 * clip(normalised(e, self.alignment_peak), 0.3, 1.0)
        self.log_lr = clip(self.log_lr + growth, *self.log_lr_bounds)
        self._rates.append(self.log_lr)

    def _go_back(self) -> None:
        self.rewind, self.active = True, False

    @property
    def _is_lost(self) -> bool:
        """The loss rose at less than a tenth of what was marked afterwards."""
        return -math.inf < self.log_lr_risen < self.log_lr_zero - log(10.0)

    @property
    def _rose_soon(self) -> bool:
        mark = self.log_lr_zero
        return self.log_lr_risen > -math.inf and self.log_lr_risen - mark <= log(30.0)

    @property
    def _is_confirmed(self) -> bool:
        mark = self.log_lr_zero
        if mark == -math.inf or self._is_lost:
            return False
        return self._rose_soon or (self.overshoot > 4.0 and self.log_lr_judged - mark <= log(100.0))

    @property
    def _says_no_more(self) -> bool:
        """Whether the ramp has its answer, or none is to be had."""
        top = self.log_lr_bounds[1]
        at_top = self.log_lr_judged >= top
        mark = self.log_lr_zero
        beyond = mark > -math.inf and self.log_lr_judged - mark > log(100.0)
        return at_top or beyond or self._is_lost or self._is_confirmed

    def _end(self, late: bool) -> None:
        self._go_back()
        self.searching, self.held_at = False, self.step + 1
        confirmed, unmarked = self._is_confirmed, self.log_lr_zero == -math.inf
        lost = self._is_lost or (unmarked and self.log_lr_risen > -math.inf)
        if lost:
            self.log_lr_zero = -math.inf
        mark = self.log_lr_zero
        topped = False
        if unmarked and not lost and self.log_lr_judged >= self.floor and self.alignment_mean > 0:
            mark = self.log_lr_judged
            topped = mark >= self.log_lr_bounds[1]
            if topped:
                self.log_lr_zero = mark
        wanted = self.log_given if mark == -math.inf else mark + log(self.share)
        self._forget_cosines()
        taken = confirmed or topped or (late and mark > -math.inf)
        if taken or self.last_step - self.held_at < 100:
            self.held = True
            self.log_lr = clip(wanted + log(self.kept), *self.log_lr_bounds)
        else:
            self._begin_climb(self.floor if lost else wanted + log(0.3))

    def _begin_climb(self, start: float) -> None:
        self.climbing, self.held = True, False
        self._forget_cosines()
        self.log_lr_downhill = self.log_lr_doubted = -math.inf
        self.climb = self._new_climb()
        self.climb.alignment = self.alignment
        self.climb.alignment_direction = self.alignment_direction
        self.log_lr = self.climb.log_lr = clip(start, *self.log_lr_bounds)

    def _watch(self, now: int) -> None:
        """Two windows of the losses after the warm-up: the second must be lower by an error."""
        told, self._told = self._told, None
        room = self.held_at + self.warm_up < now < self.last_step - 100
        if told is None or not math.isfinite(told) or not room:
            return
        top = self.log_lr_bounds[1]
        if self.watches >= 2 or self._rose_soon or self.log_lr >= top or self.log_lr_zero >= top:
            return
        self._watched.append(clip(told, -SATURATION, SATURATION))
        if len(self._watched) < self.window:
            return
        before, before_error = self.watched_before, self.watched_error
        self.watches += 1
        self.watched_before = self.watched_mean
        self.watched_error = self.watched_square / self.window**2
        self._watched = []
        if self.watches == 2:
            error = math.sqrt(before_error + self.watched_error)
            if not before - self.watched_before > error and not self._has_learned:
                self.watches = 3
                rose = self.watched_before - before > error
                self._rates = [self.log_lr + (log(0.3) if rose else 0.0)] * 2
                self.log_lr_risen = -math.inf
                self.ramp_losses = 0
                self._begin_climb(self.log_lr + log(0.3))

    @property
    def _has_learned(self) -> bool:
        """Since the ramp the loss has fallen by more than would have been a rise there."""
        least = self.ramp_loss_least
        rise = self.ramp_loss_limit - least
        return self.ramp_losses >= 12 and least - self.watched_before > rise

    @property
    def watched(self) -> int:
        """Losses of the window in progress."""
        return len(self._watched)

    @property
    def watched_mean(self) -> float:
        """Their mean; 0 before the first."""
        return math.fsum(self._watched) / len(self._watched) if self._watched else 0.0

    @property
    def watched_square(self) -> float:
        """The sum of their squared deviations from it."""
        rest = [x - self.watched_mean for x in self._watched]
        return min(sum(x * x for x in rest), SATURATION)

    def _climb(self, now: int) -> None:
        """One step of the alignment law, at this one's momentum."""
        law = self.climb
        law.logit_momentum = self.logit_momentum
        law._sums, self._sums = self._sums, None
        law._read_sums()
        if not law.held and now >= self.last_step:
            law._hold()
        self.held, self.log_lr, self.overshoot = law.held, law.log_lr, law.overshoot
        self.alignment, self.alignment_direction = law.alignment, law.alignment_direction
        self.log_lr_downhill, self.log_lr_doubted = law.log_lr_downhill, law.log_lr_doubted
        if self.held:
            self._watch(now)
        elif self.watches == 3:  # this climb is the watch's, and the loss may end it
            self._hear()
            if self.log_lr_risen > -math.inf:
                self.climbing, self.held = False, True
                self.log_lr = self.log_lr_judged
                self._forget_cosines()

    def _creep(self, z: float | None, now: int) -> None:
        """The held rate rises by 0.3 where h is sure to be above 0."""
        if z is None or math.isnan(z) or not self._stretch(now):
            return
        self.undershoot = max(0.0, self.undershoot + 0.3 * (z - 0.15))
        if self.undershoot > 5.0:
            self.undershoot = 0.0
            if self.log_lr_zero == -math.inf:
                self.log_lr = clip(self.log_lr + 0.3, *self.log_lr_bounds)
            elif self.log_lr < self.log_lr_zero:
                self.log_lr = clip(self.log_lr + 0.3, self.log_lr, self.log_lr_zero)

    def _stretch(self, now: int) -> bool:
        """Neither warming up nor cooling down."""
        return self.held_at + self.warm_up < now < self.last_step

    @property
    def lr(self) -> float:
        """Alpha in effect, warming up or annealed."""
        return clip(math.exp(self.log_lr), *self.lr_bounds) * self.anneal


class Window(NamedTuple):
    """A window that is over: whose it was, what it was worth, and how far from what was known."""

    arm: int
    reward: float
    square: float


class OracleBanditController(OracleController):
    """`OracleController` whose gains, cap and cadence are one arm's at a time (method.md#bandit).

    Every window is remembered, and all that is known of an arm is worked out from them anew.

    Keywords are the fields of `Control` under their own names; each arm is a mapping of those that
    an arm has, and has the defaults of those that are missing.

    Attributes:
        arm: The one in force.
        arm_draws: How often an arm was chosen.
        window_left: Losses that the window in progress still takes; 0 before the first.
        window_start: The mean loss when it began.
        window_path: How far the mean loss has moved since, to and fro.
        window_broken: Whether a loss in it was not finite.
        window_scale: The usual path of a window.
        window_reward: Of the last window that is over.
        played_count: What was known of the arm in force when it was chosen.
        played_mean: Likewise.
    """

    ARM: Mapping[str, Any] = {
        "every": 10,
        "gain_lr_reward": 0.05,
        "gain_lr_loss": 0.05,
        "gain_momentum_reward": 0.02,
        "gain_momentum_loss": 0.04,
        "gain_noise_plateau": 0.08,
        "gain_noise_reward": 0.06,
        "lr_change": (0.9, 1.2),
    }

    def __init__(
        self,
        *,
        arms: Sequence[Mapping[str, Any]],
        window: int,
        discount: float = 0.95,
        seed: int = 0,
        **rest: Any,
    ) -> None:
        self.arms = [{**self.ARM, **arm} for arm in arms]
        super().__init__(**self.arms[0], **rest)
        self.window = window
        self.discount = discount
        self.seed = seed
        self.windows: list[Window] = []
        self.arm = self.arm_draws = self.window_left = 0
        self.window_start = self.window_path = self.window_scale = self.window_reward = 0.0
        self.window_broken = False
        self.played_count = self.played_mean = 0.0

    def _observe(self, loss: float | None, reward: float | None) -> None:
        super()._observe(loss, reward)
        if loss is None:
            return
        if self.window_left:
            self.window_left -= 1
            if math.isfinite(loss):
                self.window_path += abs(self.loss_trend)
            else:
                self.window_broken = True
            if self.window_left:
                return
            self._end_window()
        if self.loss_sensor.samples:
            self._choose()

    def _end_window(self) -> None:
        self.window_reward = -1.0
        if not self.window_broken:
            n = len(self.windows) + 1
            if self.window_scale == 0:
                self.window_scale = self.window_path
            else:
                newest = 1 / sum(self.discount**age for age in range(n))
                self.window_scale = (1 - newest) * self.window_scale + newest * self.window_path
            drop = self.window_start - self.loss_mean
            self.window_reward = normalised(drop, abs(drop) + self.window_scale)
        count, before = self.known(self.arm)
        new = Window(self.arm, self.window_reward, 0.0)
        self.windows.append(new)
        _, after = self.known(self.arm)
        # By Welford's rule: the mean that the reward is compared with has a part of it.
        square = (new.reward - before) * (new.reward - after) if count else 0.0
        self.windows[-1] = new._replace(square=square)

    def known(self, arm: int) -> tuple[float, float]:
        """How many windows an arm had and the mean of their rewards, both discounted by age."""
        weights = [
            (self.discount**age, window.reward)
            for age, window in enumerate(reversed(self.windows))
            if window.arm == arm
        ]
        count = sum(weight for weight, _ in weights)
        return count, normalised(sum(weight * reward for weight, reward in weights), count)

    def _choose(self) -> None:
        low, high = self.arm_draws % 2**32, self.arm_draws // 2**32
        places = np.arange(len(self.arms))
        key = self.seed % 2**32, self.seed // 2**32
        radial, angular, _, _ = philox4x32(places, 2**30, low, high, *key)
        u, turn = (radial + 1.0) / 2.0**32, angular / 2.0**32
        normals = np.sqrt(-2.0 * np.log(u)) * np.cos(2.0 * np.pi * turn)
        # Rewards vary by a quarter, as far as two windows' worth of what is believed goes.
        ages = range(len(self.windows))
        weight = 2.0 + sum(self.discount**age for age in ages)
        noise_square = (2.0 * 0.25**2 + self.reward_square) / weight
        drawn = []
        for arm, normal in enumerate(normals):
            count, mean = self.known(arm)
            # The normal model with a known variance, and a prior of N(0, ½²).
            precision = 4.0 + count / noise_square
            drawn.append(count * mean / noise_square / precision + normal / math.sqrt(precision))
        self.arm = int(np.argmax(drawn))
        self.arm_draws += 1
        self.played_count, self.played_mean = self.known(self.arm)
        self.window_left, self.window_start = self.window, self.loss_mean
        self.window_path, self.window_broken = 0.0, False
        arm_in_force = self.arms[self.arm]
        self.every, self.lr_change = arm_in_force["every"], arm_in_force["lr_change"]
        self.gains_lr = (arm_in_force["gain_lr_reward"], arm_in_force["gain_lr_loss"])
        self.gains_momentum = (
            arm_in_force["gain_momentum_reward"],
            arm_in_force["gain_momentum_loss"],
        )
        self.gains_noise = (arm_in_force["gain_noise_plateau"], arm_in_force["gain_noise_reward"])

    @property
    def reward_square(self) -> float:
        """Squared deviations of all rewards, discounted by age."""
        newest_first = enumerate(reversed(self.windows))
        return sum(self.discount**age * window.square for age, window in newest_first)

    def __getattr__(self, name: str) -> Any:
        """What is known of an arm under the names that `State` has for it."""
        for place, prefix in enumerate(("arm_count", "arm_mean")):
            if name.startswith(prefix):
                return self.known(int(name.removeprefix(prefix)))[place]
        raise AttributeError(name)


class OracleDistilledController(OracleAlignmentController):
    """A network moves all three knobs, from the sensors (method.md#distilled).

    Keywords are the fields of `Control` under their own names. ``weights`` has the units of each
    hidden layer as ``hidden``, and as ``numbers`` each layer's matrix row by row, a row's bias
    behind it.

    Attributes:
        held: Whether updates were ever sure to overshoot.
        held_at: The step at which they were.
        moved_at: The step of the last update.
        move_lr: What the network then said of log alpha, for a whole run.
        move_momentum: Of logit mu.
        move_noise: Of log sigma.
    """

    def __init__(
        self, *, weights: Any, horizon: int | None, lr: float, momentum: float, **rest: Any
    ) -> None:
        super().__init__(lr=lr, momentum=momentum, **rest)
        self.log_lr = log(self.lr_start)
        self.horizon = horizon
        self.held_at = self.moved_at = 0
        self.move_lr = self.move_momentum = self.move_noise = 0.0
        self.layers: list[Floats] = []
        left, inputs = np.array(weights.numbers), 8
        for units in (*weights.hidden, 3):
            size = units * (inputs + 1)
            self.layers.append(left[:size].reshape(units, inputs + 1))
            left, inputs = left[size:], units

    def advance(self, loss: float | None = None, reward: float | None = None) -> None:
        """Do one optimizer step: the sums first, then `OracleController`'s."""
        self._read_sums()
        OracleController.advance(self, loss, reward)

    def _search(self, z: float) -> None:
        self.overshoot = max(0.0, self.overshoot + (z**2 - (z + 0.3) ** 2) / 2)
        if self.overshoot > 5.0:
            self.held, self.held_at = True, self.step + 1

    def _said(self, run: float) -> Floats:
        ratio = self.variance_sensor.ratio
        seen = [
            self.loss_direction,
            self.plateau,
            1.0 - 1.0 / (1.0 + ratio),
            clip(self.alignment, -1.0, 1.0),
            self.alignment_mean,
            min(self.step / run, 1.0),
            float(self.held),
            min((self.step - self.held_at) / run, 1.0) if self.held else 0.0,
        ]
        values = np.array(seen)
        for place, layer in enumerate(self.layers):
            if place:
                values = values / (1.0 + np.abs(values))
            values = layer[:, :-1] @ values + layer[:, -1]
        return values

    def _act(self) -> None:
        if not self._observed:
            return
        elapsed, self.moved_at = self.step - self.moved_at, self.step
        low, high = (log(change) for change in self.lr_change)
        if self.horizon is not None and self.step <= self.horizon:
            run = float(self.horizon)
            said = self._said(run)
            if self._alarmed:
                said = np.array([low * run / max(elapsed, 1), 0.0, 0.0])
            self.move_lr, self.move_momentum, self.move_noise = map(float, said)
            moves = np.clip(said * (elapsed / run), low, high)
            self.log_lr = clip(self.log_lr + moves[0], *self.log_lr_bounds)
            self.logit_momentum = clip(self.logit_momentum + moves[1], *self.logit_momentum_bounds)
            if self.noise_bounds[1] > 0:
                self.log_noise = clip(self.log_noise + moves[2], *self.log_noise_bounds)
        super()._act()
