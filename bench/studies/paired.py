"""What the studies by paired seeds share: a run, and a table's cell."""

import statistics
from collections.abc import Sequence

from adaptiverl import AdaptiveAdamW, Control
from adaptiverl.trace import Trace
from bench.studies.storage import difference
from bench.tasks import Task


def train(task: Task, control: Control, rate: float, seed: int) -> tuple[float, Trace]:
    """The held-out loss at the end of a run of AdamW, and what the knobs did."""
    problem = task.start(seed)
    optimizer = AdaptiveAdamW(problem.objective.parameters(), rate, control=control, seed=seed)
    for step in range(task.steps):
        loss = problem.loss(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss.detach())
    return problem.held_out_loss(), optimizer.trace()


def cell(losses: Sequence[float], plain: Sequence[float]) -> str:
    """The mean of the plain runs themselves; of others how far they are from these, and ±."""
    if losses is plain:
        return f"{statistics.mean(losses):.4f}"
    mean, error = difference(losses, plain)
    return f"{mean:+.1%} ± {error:.1%}"
