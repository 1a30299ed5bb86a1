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


def find_lr(length: Length) -> Control:
    """Told that each rollout is gone through several times."""
    return Control.find_lr(length.updates, reuse=(length.minibatches, length.epochs))


def find_own(length: Length) -> Control:
    """The same, and actor and critic have a rate each."""
    return Control.find_lr(length.updates, groups="own", reuse=(length.minibatches, length.epochs))


def find_lr_untold(length: Length) -> Control:
    """As if every update were made of new samples."""
    return Control.find_lr(length.updates)


def range_test(length: Length) -> Control:
    return Control.range_test(length.updates)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Adam("adam", "Adam, annealed"),
        Adam("adam-constant", "Adam, constant", anneals=False),
        KlAdaptive("kl", "Adam, rate by the KL divergence"),
        Adaptive("find-lr", "find_lr, first epochs", find_lr),
        Adaptive("find-lr-annealed", "find_lr, first epochs, × annealed", find_lr, anneals=True),
        Adaptive("own", "find_lr, first epochs, rates of their own", find_own),
        Adaptive(
            "own-annealed",
            "find_lr, first epochs, rates of their own, × annealed",
            find_own,
            anneals=True,
        ),
        Adaptive("find-lr-untold", "find_lr, all epochs", find_lr_untold),
        Adaptive(
            "untold-annealed", "find_lr, all epochs, × annealed", find_lr_untold, anneals=True
        ),
        Adaptive("range-test", "range test, told the loss", range_test, "loss"),
        Adaptive("loss-law", "loss law, told the loss", loss_law, "loss"),
        Adaptive("returns", "loss law, told −return", by_returns, "return"),
        Adaptive("rewarded", "reward term alone, told the return", rewarded, "return"),
        Adaptive(
            "rewarded-annealed", "reward term alone × annealed", rewarded, "return", anneals=True
        ),
    )
}
