"""What data reuse does to the alignment: ``python -m bench.rl.alignment``.

PPO takes sixteen updates from one rollout. The laws that find the rate look at the cosine h of the
newest gradient and the last update (method.md#alignment); from the second epoch on the update was
made of the very samples that the gradient is of. Here each run has twice the environments, of which
it trains on half: the other half's gradient says what h would be without reuse. By torch's Adam at
constant rates, apart for actor and critic.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from bench.rl.environments import TASKS, Task
from bench.rl.learners import EPSILON, Adam
from bench.rl.ppo import MINIBATCHES, PER_ROLLOUT, Run, Training, loss
from bench.rl.rollout import COPIES, Samples, Worlds

RATES = (2.5e-5, 2.5e-4, 2.5e-3, 2.5e-2)
PARTS = ("all", "actor", "critic")
FIRST_SEED = 900


class Watched(Training):
    """A training that records h of every update, with and without reuse.

    Attributes:
        reused, fresh: Per update (parts, runs): of the samples that are trained on, of the others.
        share: Per update (runs,), the critic's part of Σg².
    """

    def __init__(self, task: Task, runs: Sequence[Run], steps: int) -> None:
        super().__init__(task, runs, steps)
        self.worlds = Worlds(task, self.agents, [run.seed for run in runs], 2 * COPIES)
        self.reused: list[Tensor] = []
        self.fresh: list[Tensor] = []
        self.share: list[Tensor] = []
        numbers = torch.arange(2 * PER_ROLLOUT).expand(len(runs), -1)
        in_use = numbers[0] % (2 * COPIES) < COPIES
        self.mine, self.others = numbers[:, in_use], numbers[:, ~in_use]

    def rollout(self) -> None:
        lived = self.worlds.roll_out()
        self.new_returns()
        mine, others = lived.taken(self.mine), lived.taken(self.others)
        for _ in range(self.task.epochs):
            order = self.worlds.drawn(PER_ROLLOUT).argsort(1)
            for numbers in order.chunk(MINIBATCHES, 1):
                self.compare(mine.taken(numbers), others.taken(numbers))
                self.update(mine.taken(numbers))

    def compare(self, mine: Samples, others: Samples) -> None:
        optimizers = [learner.optimizer for _, learner in self.learners]  # type: ignore[attr-defined]
        states = [[o.state[p] for p in o.param_groups[0]["params"]] for o in optimizers]
        if not states[0][0]:
            return
        last = [
            torch.cat([s["exp_avg"] / (s["exp_avg_sq"].sqrt() + EPSILON) for s in of_all])
            for of_all in zip(*states, strict=True)
        ]
        parameters, split = self.agents.parameters, len(self.agents.actor)
        for batch, kept in ((mine, self.reused), (others, self.fresh)):
            losses, _ = loss(self.agents, batch, self.task.value_clip)
            gradients = torch.autograd.grad(losses.sum(), parameters)
            sums = torch.stack([_sums(g, u) for g, u in zip(gradients, last, strict=True)])
            actor, critic = sums[:split].sum(0), sums[split:].sum(0)
            parts = torch.stack([actor + critic, actor, critic])  # (parts, three sums, runs)
            kept.append(parts[:, 0] / (parts[:, 1] * parts[:, 2]).sqrt())
        self.share.append(critic[1] / (actor[1] + critic[1]))


def _sums(gradient: Tensor, update: Tensor) -> Tensor:
    """Σg·u, Σg², Σu² of every run: (3, runs)."""
    g, u = gradient.flatten(1), update.flatten(1)
    return torch.stack([(g * u).sum(1), (g * g).sum(1), (u * u).sum(1)])


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--task", default="CartPole-v1", choices=TASKS)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=30_000, help="environment steps of a run")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    seeds = range(FIRST_SEED, FIRST_SEED + given.seeds)
    method = Adam("adam-constant", "Adam, constant", anneals=False)
    runs = [Run(method, rate, seed) for rate in RATES for seed in seeds]
    watched = Watched(TASKS[given.task], runs, given.steps)
    watched.run()
    print(f"{given.task}, {given.steps:,} steps, {given.seeds} seeds: mean h\n")
    print(f"| rate | of | {' | '.join(COLUMNS)} | critic's share of Σg² |")
    print("| --- | --- |" + " ---: |" * (len(COLUMNS) + 1))
    for i, rate in enumerate(RATES):
        mine = slice(i * given.seeds, (i + 1) * given.seeds)
        share = float(torch.stack(watched.share)[:, mine].mean())
        for j, part in enumerate(PARTS):
            cells = [f"{number:+.3f}" for number in _means(watched, j, mine)]
            print(f"| {rate:g} | {part} | {' | '.join(cells)} | {share:.3f} |", flush=True)


COLUMNS = (
    "first epoch",
    "the same, other samples",
    "last epoch",
    "the same, other samples",
)


def _means(watched: Watched, part: int, mine: slice) -> list[float]:
    numbers = []
    for epoch in (0, watched.task.epochs - 1):
        for kept in (watched.reused, watched.fresh):
            # The first update had no other before it.
            h = torch.stack([kept[0].new_zeros(kept[0].shape), *kept])[:, part, mine]
            by_epoch = h.nan_to_num().view(-1, watched.task.epochs, MINIBATCHES * h.shape[1])
            numbers.append(float(by_epoch[:, epoch].mean()))
    return numbers


if __name__ == "__main__":
    main(sys.argv[1:])
