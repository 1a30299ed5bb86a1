"""What is compared, by name."""

from __future__ import annotations

from dataclasses import replace

from adaptiverl import Control
from bench.rl.learners import Adam, Adaptive, KlAdaptive, Length, Method


def loss_law(length: Length) -> Control:
    """As it comes: told every minibatch's loss."""
    return Control()


def by_returns(length: Length) -> Control:
    """The loss law, once after every rollout, its loss being −return."""
    return Control.epochwise()


def rewarded(length: Length) -> Control:
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


def climb(length: Length) -> Control:
    """Told that each rollout is gone through several times."""
    return Control.climb(length.updates, reuse=(length.minibatches, length.epochs))


def climb_own(length: Length) -> Control:
    """The same, and actor and critic have a rate each."""
    return Control.climb(length.updates, groups="own", reuse=(length.minibatches, length.epochs))


def climb_untold(length: Length) -> Control:
    """As if every update were made of new samples."""
    return Control.climb(length.updates)


def find_lr(length: Length) -> Control:
    return Control.find_lr(length.updates)


# Rows of results are named by these: "find-lr" is what the climb was called when they were made.
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Adam("adam", "Adam, annealed"),
        Adam("adam-constant", "Adam, constant", anneals=False),
        KlAdaptive("kl", "Adam, rate by the KL divergence"),
        Adaptive("find-lr", "climb, first epochs", climb),
        Adaptive("find-lr-annealed", "climb, first epochs, × annealed", climb, anneals=True),
        Adaptive("own", "climb, first epochs, rates of their own", climb_own),
        Adaptive(
            "own-annealed",
            "climb, first epochs, rates of their own, × annealed",
            climb_own,
            anneals=True,
        ),
        Adaptive("find-lr-untold", "climb, all epochs", climb_untold),
        Adaptive("untold-annealed", "climb, all epochs, × annealed", climb_untold, anneals=True),
        Adaptive("range-test", "range test, told the loss", find_lr, "loss"),
        Adaptive("loss-law", "loss law, told the loss", loss_law, "loss"),
        Adaptive("returns", "loss law, told −return", by_returns, "return"),
        Adaptive("rewarded", "reward term alone, told the return", rewarded, "return"),
        Adaptive(
            "rewarded-annealed", "reward term alone × annealed", rewarded, "return", anneals=True
        ),
    )
}
