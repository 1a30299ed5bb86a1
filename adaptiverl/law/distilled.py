"""The law that asks f_φ, fitted to schedules made in hindsight (method.md#distilled).

The twin of csrc/law/distilled.h.
"""

from __future__ import annotations

from collections.abc import Sequence

from adaptiverl.law import alignment, sensors
from adaptiverl.law.alignment import next_overshoot, sense_alignment
from adaptiverl.law.arithmetic import clip, ratio
from adaptiverl.law.base import Law
from adaptiverl.law.knobs import bounded_log_lr
from adaptiverl.layout import ControlNumbers, State

FEATURES = 8
OUTPUTS = 3


def features(state: State, control: ControlNumbers) -> list[float]:
    """What f_φ is given: no unit, no rate, every number within ±1."""
    variance_ratio = min(ratio(state.variance, state.variance_scale), sensors.LARGEST)
    since = (state.step - state.held_at) / control.horizon if state.held != 0 else 0.0
    return [
        state.loss_direction,
        state.plateau,
        variance_ratio / (1 + variance_ratio),
        clip(state.alignment, -1.0, 1.0),
        state.alignment_mean,
        clip(state.step / control.horizon, 0.0, 1.0),
        state.held,
        clip(since, 0.0, 1.0),
    ]


def bent(x: float) -> float:
    """What stands between layers; no function of a library, so that every device has its bits."""
    return x / (1 + abs(x))


def layer(weights: Sequence[float], inputs: Sequence[float], units: int) -> list[float]:
    """Each unit's sum: its weights, one for each input, and its bias behind them."""
    sums = []
    for unit in range(units):
        place = unit * (len(inputs) + 1)
        total = weights[place + len(inputs)]
        for i, x in enumerate(inputs):
            total += weights[place + i] * x
        sums.append(total)
    return sums


def answer(control: ControlNumbers, given: Sequence[float]) -> list[float]:
    """f_φ(given): how far log α, logit μ and log σ are to move in a whole run, at this pace."""
    place, values = 0, list(given)
    for units in (int(control.hidden0), int(control.hidden1)):
        if units > 0:
            sums = layer(control.weights[place:], values, units)
            place += units * (len(values) + 1)
            values = [bent(x) for x in sums]
    return layer(control.weights[place:], values, OUTPUTS)


def sense(state: State, control: ControlNumbers) -> bool:
    """h and e; "held" is here that updates were once sure to overshoot."""
    score = sense_alignment(state)
    if state.held == 0 and score is not None:
        state.overshoot = next_overshoot(state.overshoot, score)
        if state.overshoot > alignment.OVERSHOOT_ENOUGH:
            state.held, state.held_at = 1.0, state.step
    if state.anneal == 1:
        return False
    state.anneal = 1.0  # another law's
    return True


def act(state: State, control: ControlNumbers, reward_direction: float, worsening: float) -> None:
    """All three knobs; after the last step of the run, or where nobody has said it, nothing."""
    steps = state.step - state.moved_at
    state.moved_at = state.step
    if control.horizon == 0 or state.step > control.horizon:
        return
    said = answer(control, features(state, control))
    if state.nonfinite_pending != 0:  # f_φ never saw any: as the loss law's reflex at its fullest
        said = [control.log_lr_change_down * control.horizon / max(steps, 1.0), 0.0, 0.0]
    state.move_lr, state.move_momentum, state.move_noise = said
    share = steps / control.horizon
    moves = [clip(x * share, control.log_lr_change_down, control.log_lr_change_up) for x in said]
    state.log_lr = bounded_log_lr(state.log_lr + moves[0], state.log_lr, control)
    state.logit_momentum = clip(
        state.logit_momentum + moves[1], control.logit_momentum_min, control.logit_momentum_max
    )
    if control.noise_max != 0:
        state.log_noise = clip(
            state.log_noise + moves[2], control.log_noise_floor, control.log_noise_max
        )


DISTILLED = Law(needs_loss=True, needs_sums=True, sense=sense, act=act)
