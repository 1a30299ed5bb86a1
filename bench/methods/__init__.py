"""Every method, by name, in the order in which tables show them."""

from typing import Any

from bench.methods.ablations import ABLATIONS
from bench.methods.base import AdamW, Method, Stepper
from bench.methods.ours import (
    Adaptive,
    Controls,
    bandit,
    climb,
    climb_open,
    distilled,
    find_lr,
    find_lr_open,
    loss_law,
    loss_law_to_zero,
)
from bench.methods.published import Prodigy, ScheduleFree
from bench.methods.reacting import ReactingAdamW, greedy, reduce_on_plateau
from bench.methods.variants import VARIANTS

__all__ = ["ABLATIONS", "METHODS", "VARIANTS", "Method", "Stepper"]


def _ours(name: str, law: str, control: Controls, **more: Any) -> Adaptive:
    return Adaptive(name=name, title=f"ours: {law}", control=control, **more)


TOLD: dict[str, Any] = {"has_horizon": True}
OVER_COSINE: dict[str, Any] = {"over_cosine": True, "has_horizon": True}

_METHODS: tuple[Method, ...] = (
    AdamW(name="default", title="AdamW default, 1e-3", warm_up=0.0, fixed_rate=1e-3),
    AdamW(name="constant", title="AdamW constant"),
    AdamW(name="cosine", title="AdamW cosine to 0", decay="cosine", **TOLD),
    AdamW(name="linear", title="AdamW linear to 0", decay="linear", **TOLD),
    AdamW(name="cooldown", title="AdamW constant, 40 % cooldown", decay="cooldown", **TOLD),
    # One time-constant of the average, and a factor for many cuts; then GreedyLR's defaults.
    ReactingAdamW(
        name="plateau",
        title="AdamW, ReduceLROnPlateau",
        scheduler=reduce_on_plateau,
        factor=0.5,
        patience=50,
    ),
    ReactingAdamW(
        name="greedy",
        title="AdamW, GreedyLR",
        package="transformers",
        scheduler=greedy,
        factor=0.95,
        patience=10,
    ),
    ScheduleFree(name="schedule-free", title="Schedule-Free AdamW"),
    Prodigy(name="prodigy", title="Prodigy, cosine", **TOLD),
    Prodigy(name="prodigy-constant", title="Prodigy", decay="none"),
    _ours("loss", "loss law", loss_law),
    _ours("loss-cosine", "loss law × cosine", loss_law, **OVER_COSINE),
    _ours("loss-horizon", "loss law, horizon", loss_law_to_zero, **TOLD),
    _ours("bandit", "bandit", bandit),
    _ours("distilled", "distilled law", distilled, **TOLD),
    _ours("alignment", "alignment, horizon", climb, **TOLD),
    _ours("alignment-open", "alignment, no horizon", climb_open),
    # The search is a warm-up of its own, so that its cosine has none, as docs/guide.md advises.
    _ours("alignment-cosine", "alignment × cosine", climb, warm_up=0.0, **OVER_COSINE),
    _ours("range-test", "range test, horizon", find_lr, **TOLD),
    _ours("range-test-open", "range test, no horizon", find_lr_open),
)

METHODS: dict[str, Method] = {method.name: method for method in _METHODS}
