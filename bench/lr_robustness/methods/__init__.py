"""The methods, in the order in which they are reported."""

from __future__ import annotations

from bench.lr_robustness.methods.base import Method, Stepper
from bench.lr_robustness.methods.loss_driven import GreedyAdamW, PlateauAdamW
from bench.lr_robustness.methods.ours import Adaptive, AdaptiveOverCosine, AdaptiveWithHorizon
from bench.lr_robustness.methods.published import Prodigy, ScheduleFree
from bench.lr_robustness.methods.scheduled import ConstantAdamW, DecayedAdamW

__all__ = ["METHODS", "Method", "Stepper"]

_METHODS: tuple[Method, ...] = (
    ConstantAdamW(name="constant", title="AdamW constant"),
    DecayedAdamW(name="cosine", title="AdamW cosine to 0", decay="cosine"),
    DecayedAdamW(name="linear", title="AdamW linear to 0", decay="linear"),
    DecayedAdamW(name="cooldown", title="AdamW constant, 40 % cooldown", decay="cooldown"),
    PlateauAdamW(name="plateau", title="AdamW, ReduceLROnPlateau"),
    GreedyAdamW(name="greedy", title="AdamW, GreedyLR"),
    ScheduleFree(name="schedule-free", title="Schedule-Free AdamW"),
    Prodigy(name="prodigy", title="Prodigy, cosine"),
    Adaptive(name="loss", title="ours: loss law", law="loss"),
    AdaptiveOverCosine(name="loss-cosine", title="ours: loss law × cosine", law="loss"),
    AdaptiveWithHorizon(name="alignment", title="ours: alignment, horizon"),
    Adaptive(name="alignment-open", title="ours: alignment, no horizon", law="alignment"),
    AdaptiveOverCosine(name="alignment-cosine", title="ours: alignment × cosine", law="alignment"),
)

METHODS: dict[str, Method] = {method.name: method for method in _METHODS}
