"""What dominated and where it left the knobs, in sentences made of the numbers alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

from adaptiverl.layout import State
from adaptiverl.limits import Limits
from adaptiverl.replay.recordings import Recording
from adaptiverl.replay.updates import Push
from adaptiverl.replay.words import counted


def divergence(recording: Recording) -> list[str]:
    """That the curve ends in losses that are none, or may be none; no sentence if it does not."""
    losses = recording.losses
    bad = _tail(not math.isfinite(loss) for loss in reversed(losses))
    if bad:
        return [
            f"The recorded run diverged: from step {recording.steps[-bad]:,.0f} to its end no loss "
            f"is finite ({bad:,} of {len(losses):,})."
        ]
    zeros = _tail(loss == 0 for loss in reversed(losses)) if recording.hidden.doubtful else 0
    if zeros > 1:
        return [
            f"The recorded run may have diverged: from step {recording.steps[-zeros]:,.0f} to its "
            f"end every loss is 0 ({zeros:,} of {len(losses):,}). If those were NaN, the "
            "improvement from there on is none."
        ]
    return []


def _tail(found: Iterable[bool]) -> int:
    """How many come before the first that is false."""
    return sum(1 for _ in itertools.takewhile(bool, found))


def verdict(history: Sequence[State], updates: Sequence[Push], start: State, limits: Limits) -> str:
    """What dominated, and where it left the knobs; made of the numbers alone."""
    return " ".join(
        [
            _dominance(updates),
            _rate_fate(history, updates, start, limits),
            _other_fates(history, updates, start, limits),
            *_troubles(history, updates),
        ]
    )


def _dominance(updates: Sequence[Push]) -> str:
    up = sum(max(push.reward, 0.0) for push in updates)
    down = sum(max(-push.reward, 0.0) - push.loss for push in updates)
    reward = sum(abs(push.reward) for push in updates)
    loss = sum(abs(push.loss) for push in updates)
    if up + down == 0:
        return "What dominated: nothing. No term pushed α in any update."
    if max(up, down) < 1.1 * min(up, down):
        winner = "neither side"
    else:
        winner = "improvement" if up > down else "worsening"
    share = reward / (reward + loss)
    return (
        f"What dominated: {winner}. Over {counted(len(updates), 'update')}, improvement pushed "
        f"log α up by {up:.2f} in all and worsening pushed it down by {down:.2f}; {share:.0%} of "
        f"the pushing was the reward term's (k_r·Δ̃r), {1 - share:.0%} the loss term's "
        "(k_ℓ·max(Δ̃ℓ, 0))."
    )


def _rate_fate(
    history: Sequence[State], updates: Sequence[Push], start: State, limits: Limits
) -> str:
    rates = [history[push.index].lr for push in updates]
    text = (
        f"α went from {start.lr:.3g} to {rates[-1]:.3g}, {rates[-1] / start.lr:.3g} times its "
        f"start, and between {min(rates):.3g} and {max(rates):.3g} on the way"
    )
    at_low, at_high = rates.count(limits.lr_min), rates.count(limits.lr_max)
    if not at_low and not at_high:
        return f"{text}, never at a bound."
    held = [
        f"at its {name} bound {bound:.3g} after {counted(times, 'update')}"
        for name, bound, times in (
            ("lower", limits.lr_min, at_low),
            ("upper", limits.lr_max, at_high),
        )
        if times
    ]
    return f"{text}; it was {' and '.join(held)}."


def _other_fates(
    history: Sequence[State], updates: Sequence[Push], start: State, limits: Limits
) -> str:
    momenta = [history[push.index].momentum for push in updates]
    pinned = sum(m in (limits.momentum_min, limits.momentum_max) for m in momenta)
    text = f"μ went from {start.momentum:.3f} to {momenta[-1]:.3f}"
    if pinned:
        text += f", at a bound after {counted(pinned, 'update')}"
    noises = [history[push.index].noise for push in updates]
    lifted = sum(noise > limits.noise_min for noise in noises)
    if not lifted:
        return f"{text}; σ never left its floor."
    above = f"σ was above its floor after {counted(lifted, 'update')}"
    return f"{text}; {above}, {max(noises):.2g} at most."


def _troubles(history: Sequence[State], updates: Sequence[Push]) -> list[str]:
    sentences = []
    bad = int(history[-1].nonfinite)
    if bad:
        reflexes = sum(push.reflex for push in updates)
        sentences.append(
            f"{counted(bad, 'observation')} {'was' if bad == 1 else 'were'} not finite, answered "
            f"by the regression reflex in {counted(reflexes, 'update')}."
        )
    capped = sum(push.capped for push in updates)
    if capped:
        sentences.append(f"The change cap cut {counted(capped, 'update')} short.")
    return sentences
