"""The one table of what Python, C++, CUDA and Triton lay out alike, a line for each number.

`csrc/layout.h` and `kernels/layout.py` are written from it: `python tests/layout_files.py`. A new
number of the state is a line in `State`, the next `LAYOUT_VERSION` and one in `migrations.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from adaptiverl.kinds import (
    AS_IT_CAME,
    COUNT,
    DIRECTION,
    FLAG,
    LOGARITHM,
    LOGARITHM_OR_OFF,
    REAL,
    SEED_WORD,
    SHARE,
    SIZE,
    Kind,
    address,
    number,
    real,
)
from adaptiverl.kinds import Column as Column
from adaptiverl.kinds import columns as columns
from adaptiverl.kinds import names as names

LAYOUT_VERSION = 8
ARMS = 8
"""Arms that a bandit may have"""


WHICH_ARM = Kind(0.0, ARMS - 1.0, whole=True)


@dataclass
class State:
    """The controller's whole state, packed in this order as float64, counters included."""

    version: float = number(LAYOUT_VERSION, REAL, "of the layout")
    step: float = number(0.0, COUNT, "t, optimizer steps taken")
    seed_low: float = number(0.0, SEED_WORD, "the noise's key, 32 bits to a number")
    seed_high: float = number(0.0, SEED_WORD, "")

    log_lr: float = number(0.0, LOGARITHM, "log α")
    logit_momentum: float = number(0.0, LOGARITHM_OR_OFF, "logit μ")
    log_noise: float = number(-math.inf, LOGARITHM_OR_OFF, "log σ")
    log_lr_start: float = number(0.0, LOGARITHM, "where the user put α")
    logit_momentum_start: float = number(0.0, LOGARITHM_OR_OFF, "where the user put μ")
    lr: float = number(1.0, SIZE, "α in effect")
    momentum: float = number(0.0, SHARE, "μ in effect")
    noise: float = number(0.0, SIZE, "σ in effect: σ_min while log σ is at its floor")

    loss_count: float = number(0.0, COUNT, "finite losses seen")
    loss_mean: float = number(0.0, REAL, "ℓ̄")
    loss_trend: float = number(0.0, REAL, "Δℓ")
    loss_scale: float = number(0.0, SIZE, "S_ℓ")
    loss_direction: float = number(0.0, DIRECTION, "Δ̃ℓ")
    variance: float = number(0.0, SIZE, "v")
    variance_scale: float = number(0.0, SIZE, "S_v")
    plateau: float = number(0.0, SHARE, "P")
    reward_count: float = number(0.0, COUNT, "finite rewards seen")
    reward_mean: float = number(0.0, REAL, "r̄")
    reward_trend: float = number(0.0, REAL, "Δr")
    reward_scale: float = number(0.0, SIZE, "S_r")
    reward_direction: float = number(0.0, DIRECTION, "Δ̃r")
    loss: float = number(math.nan, AS_IT_CAME, "ℓ, the newest observation as it came")
    reward: float = number(math.nan, AS_IT_CAME, "r, likewise")

    observed_pending: float = number(0.0, FLAG, "1: something was observed since the law acted")
    rewarded_pending: float = number(0.0, FLAG, "1: so was a reward")
    nonfinite_pending: float = number(0.0, FLAG, "1: and something that is not finite")
    nonfinite: float = number(0.0, COUNT, "observations that were not finite, in all")
    updates: float = number(0.0, COUNT, "times the law acted")

    aligned_gu: float = number(0.0, AS_IT_CAME, "Σ g·u of the newest pass, u the last direction")
    aligned_gg: float = number(0.0, AS_IT_CAME, "Σ g²")
    aligned_uu: float = number(0.0, AS_IT_CAME, "Σ u²")
    aligned_pending: float = number(0.0, FLAG, "1: nobody has read those three yet")
    alignment: float = number(0.0, REAL, "h, their cosine")
    alignment_square: float = number(0.0, SIZE, "S2, the average of h² that starts at 0")
    alignment_weight: float = number(0.0, SHARE, "S2 over this starts at its first sample")
    alignment_direction: float = number(0.0, DIRECTION, "x")
    alignment_mean: float = number(0.0, DIRECTION, "e")
    overshoot: float = number(0.0, REAL, "Page's sum that the mean of h is below 0; never below 0")
    log_lr_downhill: float = number(
        -math.inf, LOGARITHM_OR_OFF, "log α when updates last clearly pointed downhill"
    )
    log_lr_doubted: float = number(
        -math.inf, LOGARITHM_OR_OFF, "the same when updates were last sure to overshoot"
    )
    log_lr_zero: float = number(-math.inf, LOGARITHM_OR_OFF, "the ramp's mark: e was first ≤ 0")
    log_lr_risen: float = number(-math.inf, LOGARITHM_OR_OFF, "the same when the loss had risen")
    log_lr_judged: float = number(
        -math.inf, LOGARITHM_OR_OFF, "log α of the update that the newest sums judge"
    )
    alignment_mean_weight: float = number(0.0, SHARE, "what the weights in e add up to")
    alignment_peak: float = number(0.0, SHARE, "the largest e of the ramp")
    undershoot: float = number(0.0, REAL, "Page's sum that the mean of h is above 0")
    ramp_losses: float = number(0.0, COUNT, "losses that the ramp was told")
    losses_heard: float = number(0.0, COUNT, "finite losses seen when it last heard one")
    ramp_loss: float = number(0.0, REAL, "the last of them")
    ramp_loss_mean: float = number(0.0, REAL, "their mean, which looks back over three steps")
    ramp_loss_square: float = number(0.0, SIZE, "their variance, of successive differences")
    ramp_loss_least: float = number(0.0, REAL, "the least mean")
    ramp_loss_limit: float = number(0.0, REAL, "a mean above this is one that has risen")
    watches: float = number(0.0, COUNT, "windows of losses over; 3: a climb followed")
    watched: float = number(0.0, COUNT, "losses of the window in progress")
    watched_mean: float = number(0.0, REAL, "their mean")
    watched_square: float = number(0.0, SIZE, "Σ of their squared deviations")
    watched_before: float = number(0.0, REAL, "the mean of the window before")
    watched_error: float = number(0.0, SIZE, "its squared standard error")
    searching: float = number(0.0, FLAG, "1: on the ramp; the weights of its start are kept")
    climbing: float = number(0.0, FLAG, "1: nothing confirmed the mark; the slow climb goes on")
    search_steps: float = number(0.0, COUNT, "steps since the ramp began")
    held: float = number(0.0, FLAG, "1: the rate is found")
    held_at: float = number(0.0, COUNT, "the step at which the ramp ended")
    anneal: float = number(1.0, SHARE, "what warm-up and cooldown multiply α by")

    arms_key: float = number(0.0, SEED_WORD, "of the arms that the posterior is of; 0: none")
    arm: float = number(0.0, WHICH_ARM, "the one in force")
    arm_draws: float = number(0.0, COUNT, "times that an arm was chosen")
    window_left: float = number(0.0, COUNT, "losses until the window ends; 0: none has begun")
    window_start: float = number(0.0, REAL, "ℓ̄ when it began")
    window_path: float = number(0.0, SIZE, "Σ|Δℓ| since")
    window_broken: float = number(0.0, FLAG, "1: a loss in it was not finite")
    window_scale: float = number(0.0, SIZE, "m, the usual path of a window")
    window_reward: float = number(0.0, DIRECTION, "of the last window")
    reward_square: float = number(0.0, SIZE, "Σ of rewards' squared deviations, discounted")
    played_count: float = number(0.0, SIZE, "of the arm in force, when it was chosen")
    played_mean: float = number(0.0, DIRECTION, "likewise")
    arm_count0: float = number(0.0, SIZE, "windows of each arm, discounted", array="arm_count")
    arm_count1: float = number(0.0, SIZE, "", array="arm_count")
    arm_count2: float = number(0.0, SIZE, "", array="arm_count")
    arm_count3: float = number(0.0, SIZE, "", array="arm_count")
    arm_count4: float = number(0.0, SIZE, "", array="arm_count")
    arm_count5: float = number(0.0, SIZE, "", array="arm_count")
    arm_count6: float = number(0.0, SIZE, "", array="arm_count")
    arm_count7: float = number(0.0, SIZE, "", array="arm_count")
    arm_mean0: float = number(
        0.0, DIRECTION, "mean of each arm's rewards, discounted", array="arm_mean"
    )
    arm_mean1: float = number(0.0, DIRECTION, "", array="arm_mean")
    arm_mean2: float = number(0.0, DIRECTION, "", array="arm_mean")
    arm_mean3: float = number(0.0, DIRECTION, "", array="arm_mean")
    arm_mean4: float = number(0.0, DIRECTION, "", array="arm_mean")
    arm_mean5: float = number(0.0, DIRECTION, "", array="arm_mean")
    arm_mean6: float = number(0.0, DIRECTION, "", array="arm_mean")
    arm_mean7: float = number(0.0, DIRECTION, "", array="arm_mean")

    aligned_elements: float = number(0.0, SIZE, "that the newest pass's sums are over")
    gradient_count: float = number(0.0, COUNT, "passes whose gradient was sensed")
    gradient_rms: float = number(0.0, SIZE, "of the newest of them; 0: none yet")
    gradient_rms_mean: float = number(0.0, SIZE, "its average")
    gradient_variance: float = number(0.0, SIZE, "of it around that")
    update_rms: float = number(0.0, SIZE, "of the direction of the update before")

    moved_at: float = number(0.0, COUNT, "the step at which f_φ was last asked")
    move_lr: float = number(0.0, REAL, "what it said: log-units of α in a whole run, at this pace")
    move_momentum: float = number(0.0, REAL, "logit-units of μ, likewise")
    move_noise: float = number(0.0, REAL, "log-units of σ, likewise")

    pulse: float = number(0.0, AS_IT_CAME, "the newest held-out loss as it came")
    pulses: float = number(0.0, COUNT, "held-out losses that were told, in all")
    pulse_readings: float = number(0.0, COUNT, "n, readings of them")
    pulses_waiting: float = number(0.0, COUNT, "losses that the next reading is the mean of")
    pulse_waiting: float = number(0.0, REAL, "their mean so far")
    pulse_at: float = number(0.0, COUNT, "the step of the last reading")
    pulse_reading: float = number(0.0, REAL, "y, the last one")
    pulse_change: float = number(0.0, REAL, "its difference from the one before")
    pulse_roughness: float = number(0.0, SIZE, "average size of second differences, from 0")
    pulse_roughness_weight: float = number(0.0, SHARE, "it over this starts at its first sample")
    pulse_mean: float = number(0.0, REAL, "ȳ, which looks back over five readings")
    pulse_least: float = number(0.0, REAL, "the least ȳ")
    pulse_limit: float = number(0.0, REAL, "a ȳ above this is one that has worsened")
    pulse_training: float = number(0.0, AS_IT_CAME, "ℓ̄ at the least ȳ; NaN: none was told")
    pulse_rest: float = number(0.0, COUNT, "readings before α may be cut again")
    pulse_cuts: float = number(0.0, COUNT, "times that α was cut")
    log_lr_ceiling: float = number(
        -math.inf, LOGARITHM_OR_OFF, "what the last cut left: nothing raises α above; −∞: none"
    )

    # What follows is of the step in progress; what comes before it is what checkpoints keep.
    active: float = number(1.0, FLAG, "0: no tensor takes this step")
    rewind: float = number(0.0, FLAG, "1: the weights go back to where the ramp began")


@dataclass
class ArmNumbers:
    """What an arm of the bandit puts in the place of the control's own."""

    every: float = real("K; 0: epoch-wise")
    gain_lr_reward: float = real("k_r")
    gain_lr_loss: float = real("k_ℓ")
    gain_momentum_reward: float = real("k_μr")
    gain_momentum_loss: float = real("k_μℓ")
    gain_noise_plateau: float = real("k_σP")
    gain_noise_reward: float = real("k_σr")
    log_lr_change_down: float = real("log c↓")
    log_lr_change_up: float = real("log c↑")


@dataclass
class ControlNumbers:
    """`Control` and its limits as the law reads them (`law/numbers.py`).

    Bounds come with their logarithms, so that a knob pinned at a bound on one device is at the same
    bound, to the bit, on another.
    """

    every: float = real("K; 0: epoch-wise")
    reward_source: float = real("a number of REWARD_SOURCES")
    beta_loss: float = real("β_ℓ")
    beta_reward: float = real("β_r")
    beta_variance: float = real("β_v")
    gain_lr_reward: float = real("k_r")
    gain_lr_loss: float = real("k_ℓ")
    gain_momentum_reward: float = real("k_μr")
    gain_momentum_loss: float = real("k_μℓ")
    gain_noise_plateau: float = real("k_σP")
    gain_noise_reward: float = real("k_σr")
    lr_min: float = real("α_min")
    lr_max: float = real("α_max")
    momentum_min: float = real("μ_min")
    momentum_max: float = real("μ_max")
    noise_min: float = real("σ_min")
    noise_max: float = real("σ_max; 0: no noise")
    log_lr_min: float = real("")
    log_lr_max: float = real("")
    logit_momentum_min: float = real("")
    logit_momentum_max: float = real("")
    log_noise_floor: float = real("stands in for log 0; −∞: no noise")
    log_noise_max: float = real("−∞: no noise")
    log_lr_change_down: float = real("log c↓")
    log_lr_change_up: float = real("log c↑")
    spike_clip: float = real("c")
    trend_center: float = real("ε_Δ")
    trend_slope: float = real("s_Δ")
    variance_center: float = real("ε_v")
    variance_slope: float = real("s_v")
    law: float = real("a number of LAWS")
    log_lr_acquire: float = real("where α starts")
    horizon: float = real("T; 0: none")
    hold_by: float = real("the step of the cooldown; infinite: no horizon")
    annealed_over: float = real("steps of the cooldown; 0: the controller does not anneal")
    log_held_share: float = real("what is held of the rate that is found")
    log_ramp_share: float = real("what of the rate that a ramp marks, beside")
    log_ramp_floor: float = real("log α below which the ramp judges no update")
    search_within: float = real("steps that the ramp may take; 0: there is none")
    warm_up: float = real("steps over which α rises to the rate that is held; 0: none")
    log_warm_from: float = real("from what share of it")
    window: float = real("losses for which an arm is in force")
    discount: float = real("γ")
    arms_key: float = real("tells these arms, and this window, from others; 0: no bandit")
    cooldown_shape: float = real("a number of COOLDOWN_SHAPES")
    reused_for: float = real("updates that are made of the same samples; 0: of none twice")
    fresh_for: float = real("of them, those of samples that no other was made of before")
    weight_count: float = real("numbers of f_φ, which lie behind these; 0: none")
    hidden0: float = real("units of its first layer; 0: there is none")
    hidden1: float = real("of its second, likewise")
    pulse_spacing: float = real("steps between two readings of a held-out loss, at least")
    arm_count: float = real("arms that there are")
    arms: tuple[ArmNumbers, ...] = field(
        default=(),
        metadata={"kind": REAL, "doc": "the first `arm_count` of them", "record": ArmNumbers},
    )
    weights: tuple[float, ...] = field(default=(), metadata={"behind": True})


@dataclass
class Inbox:
    """What was observed since the last step; sums, so that micro-batches average."""

    loss_sum: float = real("")
    loss_count: float = real("")
    reward_sum: float = real("")
    reward_count: float = real("")


@dataclass
class PulseSums:
    """A held-out loss, and ℓ̄ where one is told: sums over the ranks that decide together."""

    held_out: float = real("")
    held_out_count: float = real("")
    training: float = real("")
    training_count: float = real("0: none is told")


@dataclass
class AlignmentSums:
    """Of one tensor, of several or of all.

    g is the gradient as the state entries see it, but for the noise; u is the direction of the
    update before.
    """

    gu: float = real("Σ g·u")
    gg: float = real("Σ g²")
    uu: float = real("Σ u²")


@dataclass
class Group:
    """A parameter group's numbers as the user set them; hyper0 and hyper1 are the algorithm's."""

    lr: float = real("")
    momentum: float = real("where μ starts: AdamW's β₁, SGD's momentum")
    hyper0: float = real("AdamW: β₂; SGD: dampening")
    hyper1: float = real("AdamW: eps; SGD: its options")
    weight_decay: float = real("below 0: independent of the controller")


@dataclass
class EffectiveGroup:
    """The same as this step uses them."""

    lr: float = real("")
    momentum: float = real("")


@dataclass
class Product:
    """A parameter's product of momenta, and what its last step left it and `step` at.

    A `step` that is another number, beside a product that is not, was edited alone.
    """

    product: float = real("of the momenta of its steps: `mu_product` in a checkpoint")
    left_product: float = real("")
    left_step: float = real("")


@dataclass
class TensorRow:
    """A row of the address table: where one parameter's tensors lie, int64."""

    param: int = address("")
    grad: int = address("")
    state0: int = address("AdamW: exp_avg; SGD: momentum_buffer; 0: none")
    state1: int = address("AdamW: exp_avg_sq; 0: none")
    state2: int = address("AdamW: max_exp_avg_sq; 0: none")
    step: int = address("float32")
    mu_product: int = address("a `Product`; 0: none")
    numel: int = address("elements that lie here")
    group: int = address("row of the group table")
    index: int = address("the parameter's place in the optimizer: the noise's key")
    offset: int = address("the first element's place in the whole logical tensor")
    logical_numel: int = address("elements of the whole logical tensor")
    maximize: int = address("")
    error: int = address("int8, beside a bfloat16 parameter; 0: none")


@dataclass
class Region:
    """A run of memory that goes back to what it was (`state.rewind`), int64."""

    target: int = address("")
    source: int = address("where the same bytes are kept; 0: it is filled with zeros")
    bytes: int = address("")


TRACE_COLUMNS = (
    *("step", "loss", "reward", "loss_mean", "reward_mean"),
    *("loss_direction", "reward_direction", "variance", "plateau"),
    *("lr", "momentum", "noise"),
    *("alignment", "alignment_direction", "alignment_mean", "held"),
    *("arm", "played_count", "played_mean", "window_reward"),
    *("gradient_rms", "gradient_variance", "update_rms"),
    *("move_lr", "move_momentum", "move_noise"),
    *("pulse", "pulse_mean", "pulse_limit", "pulse_cuts"),
)
"""What the trace keeps of the state at an update of the knobs, by the state's names"""

REWARD_SOURCES = {"none": 0.0, "neg_loss": 1.0, "given": 2.0}
"""`Control.reward` as a control number"""
REWARD_NONE, REWARD_NEG_LOSS, REWARD_GIVEN = REWARD_SOURCES.values()
LAWS = {"loss": 0.0, "alignment": 1.0, "range_test": 2.0, "bandit": 3.0, "distilled": 4.0}
"""`Control.law` as a control number"""
COOLDOWN_SHAPES = {"linear": 0.0, "1-sqrt": 1.0}
"""`Control.cooldown_shape` as a control number"""
COOLDOWN_1_SQRT = COOLDOWN_SHAPES["1-sqrt"]


FIELDS = names(State)
SLOT = {name: i for i, name in enumerate(FIELDS)}
IN_PROGRESS = 2
"""Numbers of the step in progress: the state's last"""
MEMORY_SIZE = len(FIELDS) - IN_PROGRESS
"""Numbers that checkpoints keep: all the others"""
ALIGNMENT = slice(SLOT["aligned_gu"], SLOT["aligned_uu"] + 1)
"""Σ g·u, Σ g², Σ u² in the state"""
ARM_COUNTS = tuple(f"arm_count{arm}" for arm in range(ARMS))
"""Each arm's count in the state"""
ARM_MEANS = tuple(f"arm_mean{arm}" for arm in range(ARMS))
"""Each arm's mean in the state"""
