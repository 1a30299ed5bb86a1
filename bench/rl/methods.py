"""What is compared, by name."""

from __future__ import annotations

from dataclasses import replace

from adaptiverl import Control
from bench.rl.learners import Adam, Adaptive, KlAdaptive, Method


def loss_law(updates: int) -> Control:
    """As it comes: told every minibatch's loss."""
    return Control()


def by_returns(updates: int) -> Control:
    """The loss law, once after every rollout, its loss being −return."""
    return Control.epochwise()


def rewarded(updates: int) -> Control:
    """The reward term alone: α rises with the returns, and falls with them."""
    return replace(
        Control.epochwise(),
        reward="given",
        gain_lr_reward=0.2,
        lr_change=(0.8, 1.25),
        gain_lr_loss=0.0,
        gain_momentum_loss=0.0,
        gain_momentum_reward=0.0,
        noise_bounds=(0.0, 0.0),
    )


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Adam("adam", "Adam, annealed"),
        Adam("adam-constant", "Adam, constant", anneals=False),
        KlAdaptive("kl", "Adam, rate by the KL divergence"),
        Adaptive("find-lr", "find_lr", Control.find_lr),
        Adaptive("find-lr-annealed", "find_lr × annealed", Control.find_lr, anneals=True),
        Adaptive("range-test", "range test", Control.range_test),
        Adaptive("range-test-loss", "range test, told the loss", Control.range_test, "loss"),
        Adaptive("loss-law", "loss law, told the loss", loss_law, "loss"),
        Adaptive("returns", "loss law, told −return", by_returns, "return"),
        Adaptive("rewarded", "reward term, told the return", rewarded, "return"),
        Adaptive("rewarded-annealed", "reward term × annealed", rewarded, "return", anneals=True),
    )
}
