"""What the agents live through: a few steps in every environment, and how good each action was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from bench.rl.agents import Agents
from bench.rl.environments import Task

COPIES = 4  # environments of one run
LENGTH = 128  # steps in each, between two trainings
DISCOUNT = 0.99
TRACE = 0.95  # λ of the generalised advantage estimate (Schulman et al. 2016)


@dataclass
class Samples:
    """Each (runs, samples, …): what happened, and what the agents thought of it."""

    observations: Tensor
    actions: Tensor  # int64
    log_probabilities: Tensor  # of those actions, when they were taken
    values: Tensor
    advantages: Tensor
    returns: Tensor
    weights: Tensor  # 1; 0 where an episode had ended, and the action did nothing

    def taken(self, order: Tensor) -> Samples:
        """Of every run those whose numbers are in its row of `order`."""

        def take(part: Tensor) -> Tensor:
            if part.dim() == 2:
                return part.gather(1, order)
            return part.gather(1, order[..., None].expand(-1, -1, part.shape[2]))

        return Samples(*(take(getattr(self, f.name)) for f in fields(self)))


class Worlds:
    """The environments of all runs, and where they stand.

    Each run has draws of its own, so that it does not matter which others are beside it.

    Args:
        task: Of all.
        agents: Who acts in them.
        seeds: One for each run: of its environments, actions and minibatches.
        copies: Environments of each run.
    """

    def __init__(
        self, task: Task, agents: Agents, seeds: Sequence[int], copies: int = COPIES
    ) -> None:
        self.task, self.agents, self.runs, self.copies = task, agents, len(seeds), copies
        self.chances = [np.random.default_rng(seed) for seed in seeds]
        self.environments = task.make(self.runs * self.copies)
        self.environments.reset(seed=0)
        self.ended = np.ones(self.runs * self.copies, dtype=np.bool_)
        self._begin_episodes()
        self.ended[:] = False
        self.so_far = np.zeros(self.runs * self.copies)
        self.finished: list[list[float]] = [[] for _ in seeds]
        """Each run's returns of whole episodes, in the order in which they ended"""

    def drawn(self, *shape: int) -> Tensor:
        """(runs, …), uniform in [0, 1)."""
        chances = [chance.random(shape, dtype=np.float32) for chance in self.chances]
        return torch.as_tensor(np.stack(chances))

    @torch.no_grad()
    def roll_out(self) -> Samples:
        seen, acted, likely, rewards, ended = [], [], [], [], [self.ended]
        chances = self.drawn(LENGTH, self.copies)
        for t in range(LENGTH):
            log_probabilities = self.agents.log_probabilities(self.observations)
            actions = chosen(log_probabilities, chances[:, t])
            seen.append(self.observations)
            acted.append(actions[..., 0])
            likely.append(log_probabilities.gather(2, actions)[..., 0])
            rewards.append(self._step(actions.view(-1).numpy()))
            ended.append(self.ended)
        observations = torch.stack([*seen, self.observations], 1)  # (runs, steps + 1, copies, …)
        values = self.agents.values(observations.flatten(1, 2)).view(self.runs, -1, self.copies)
        alive = 1 - torch.as_tensor(np.stack(ended)).float().view(-1, self.runs, self.copies)
        alive = alive.transpose(0, 1)
        advantages = estimated(torch.stack(rewards, 1), values, alive)
        parts = (
            *(observations[:, :-1], torch.stack(acted, 1), torch.stack(likely, 1)),
            *(values[:, :-1], advantages, advantages + values[:, :-1], alive[:, :-1]),
        )
        return Samples(*(part.flatten(1, 2) for part in parts))

    def _step(self, actions: object) -> Tensor:
        _, rewards, terminated, truncated, _ = self.environments.step(actions)
        self._begin_episodes()
        self.ended = terminated | truncated
        self.so_far += rewards
        for i in np.flatnonzero(self.ended):
            self.finished[i // self.copies].append(float(self.so_far[i]))
        self.so_far[self.ended] = 0.0
        return torch.as_tensor(rewards, dtype=torch.float32).view(self.runs, self.copies)

    def _begin_episodes(self) -> None:
        """Where one had ended the next begins, from a state that its run draws."""
        state = self.environments.state
        for i in np.flatnonzero(self.ended):
            state[:, i] = self.chances[i // self.copies].uniform(
                -self.task.start, self.task.start, 4
            )
        observations = torch.as_tensor(self.task.observed(state))
        self.observations = observations.view(self.runs, self.copies, -1)


def chosen(log_probabilities: Tensor, chances: Tensor) -> Tensor:
    """Actions, (runs, copies, 1), by a number between 0 and 1 for each, (runs, copies)."""
    up_to = log_probabilities[..., :-1].exp().cumsum(-1)
    return (chances[..., None] > up_to).sum(-1, keepdim=True)


def estimated(rewards: Tensor, values: Tensor, alive: Tensor) -> Tensor:
    """Generalised advantages: (runs, steps, copies); `values` and `alive` have one step more.

    Where an episode has ended nothing after it counts. An end by the clock is one, as in CleanRL.
    """
    after = alive[:, 1:]
    surprise = rewards + DISCOUNT * values[:, 1:] * after - values[:, :-1]
    advantages = torch.empty_like(surprise)
    later = torch.zeros_like(surprise[:, 0])
    for t in reversed(range(rewards.shape[1])):
        later = surprise[:, t] + DISCOUNT * TRACE * after[:, t] * later
        advantages[:, t] = later
    return advantages
