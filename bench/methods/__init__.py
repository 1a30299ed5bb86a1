"""Every method, by name, in the order in which tables show them."""

from __future__ import annotations

from bench.methods.base import AdamW, Method, Stepper
from bench.methods.ours import Adaptive, find_lr, find_lr_open, loss_law
from bench.methods.published import Prodigy, ScheduleFree
from bench.methods.reacting import GreedyAdamW, PlateauAdamW

__all__ = ["METHODS", "Method", "Stepper"]

_METHODS: tuple[Method, ...] = (
    AdamW(name="constant", title="AdamW constant"),
    AdamW(name="cosine", title="AdamW cosine to 0", decay="cosine", has_horizon=True),
    AdamW(name="linear", title="AdamW linear to 0", decay="linear", has_horizon=True),
    AdamW(
        name="cooldown", title="AdamW constant, 40 % cooldown", decay="cooldown", has_horizon=True
    ),
    PlateauAdamW(name="plateau", title="AdamW, ReduceLROnPlateau"),
    GreedyAdamW(name="greedy", title="AdamW, GreedyLR"),
    ScheduleFree(name="schedule-free", title="Schedule-Free AdamW"),
    Prodigy(name="prodigy", title="Prodigy, cosine"),
    Adaptive(name="loss", title="ours: loss law", control=loss_law),
    Adaptive(
        name="loss-cosine",
        title="ours: loss law × cosine",
        control=loss_law,
        over_cosine=True,
        has_horizon=True,
    ),
    Adaptive(name="alignment", title="ours: alignment, horizon", control=find_lr, has_horizon=True),
    Adaptive(name="alignment-open", title="ours: alignment, no horizon", control=find_lr_open),
    # The search is a warm-up of its own, so that its cosine has none, as the README advises.
    Adaptive(
        name="alignment-cosine",
        title="ours: alignment × cosine",
        control=find_lr,
        over_cosine=True,
        has_horizon=True,
        warm_up=0.0,
    ),
)

METHODS: dict[str, Method] = {method.name: method for method in _METHODS}
