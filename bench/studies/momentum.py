"""μ by the alignment of gradient and update, by the climb: ``python -m bench.studies.momentum``.

None of these rules is in the package: β₁ is set from outside, before every step, by paired seeds.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from adaptiverl import AdaptiveAdamW, Control
from bench.studies.paired import cell
from bench.tasks import LAW_TASKS, TASKS, Task

ALL = TASKS | LAW_TASKS
USUAL = ("digits-mlp", "autoencoder", "friedman")
RATE, START, BETA2 = 1e-3, 0.9, 0.999
BOUNDS = (0.8, 0.98)
GAIN = 0.02
CANDIDATES = (0.8, 0.9, 0.95, 0.98)
FORGETTING = 0.05
FIRST_SEED = 700

Rule = Callable[[AdaptiveAdamW], float]
"""β₁ of the step that is about to be taken, whose gradients are there"""


def still() -> Rule:
    """β₁ stays."""
    return lambda optimizer: START


def following(gain: float) -> Rule:
    """logit μ moves by `gain` times e, the mean alignment: up while updates agree."""
    logit = math.log(START / (1 - START))
    low, high = (math.log(x / (1 - x)) for x in BOUNDS)

    def rule(optimizer: AdaptiveAdamW) -> float:
        nonlocal logit
        logit = min(max(logit + gain * optimizer.knobs()["alignment_mean"], low), high)
        return 1 / (1 + math.exp(-logit))

    return rule


class Best:
    """GAP's choice (arXiv 2512.06370): the β₁ whose own update the next gradient agrees with most.

    Of each candidate Σ g·m/(√v + ε) times √(1 − β²), averaged over some twenty steps; what all
    candidates share is left out.
    """

    def __init__(self) -> None:
        self.scores = dict.fromkeys(CANDIDATES, 0.0)
        self.momenta: dict[float, list[Tensor]] = {}

    def __call__(self, optimizer: AdaptiveAdamW) -> float:
        params = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in params if p.grad is not None]
        if not self.momenta:
            self.momenta = {b: [torch.zeros_like(g) for g in gradients] for b in CANDIDATES}
        squares = [optimizer.state[p]["exp_avg_sq"] for p in params if optimizer.state[p]]
        weights = [1 / (v.sqrt() + 1e-8) for v in squares]
        for beta, momenta in self.momenta.items():
            if weights:
                triples = zip(gradients, momenta, weights, strict=True)
                agreed = sum(float((g * m * w).sum()) for g, m, w in triples)
                score = agreed * math.sqrt(1 - beta * beta)
                self.scores[beta] += FORGETTING * (score - self.scores[beta])
            torch._foreach_lerp_(momenta, gradients, 1 - beta)
        return max(self.scores, key=self.scores.__getitem__) if weights else START


RULES: dict[str, Callable[[], Rule]] = {
    "μ stays": still,
    "μ up with e": lambda: following(GAIN),
    "μ down with e": lambda: following(-GAIN),
    "GAP's choice of four": Best,
}
"""What is compared, the first with all others"""


def train(task: Task, rule: Rule, seed: int) -> float:
    """The held-out loss at the end of a run under the climb."""
    problem = task.start(seed)
    control = Control.climb(task.steps)
    optimizer = AdaptiveAdamW(problem.objective.parameters(), RATE, control=control)
    for step in range(task.steps):
        loss = problem.loss(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["betas"] = (rule(optimizer), BETA2)
        optimizer.step()
    return problem.held_out_loss()


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", nargs="*", default=list(USUAL), choices=ALL, metavar="TASK")
    parser.add_argument("--seeds", type=int, default=8)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    seeds = range(FIRST_SEED, FIRST_SEED + given.seeds)
    print("| task | " + " | ".join(RULES) + " |\n| --- |" + " ---: |" * len(RULES), flush=True)
    for name in given.tasks:
        found = [[train(ALL[name], make(), seed) for seed in seeds] for make in RULES.values()]
        cells = [cell(losses, found[0]) for losses in found]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
