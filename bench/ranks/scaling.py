"""``torchrun --nproc-per-node=2 -m bench.ranks.scaling``: host time and collectives of one step.

Forward and backward are outside the clock; contenders take turns, with a barrier before each.
"""

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from adaptiverl import AdaptiveAdamW, Control
from bench.machine import load, provenance
from bench.run.ranks import started, wrapped
from bench.speed.measure import Times, time_rounds
from bench.speed.names import FROZEN, FUSED
from bench.speed.tables import median_ratio, table
from bench.tasks.gpt import GPT, GPTConfig

CONFIG = GPTConfig(vocabulary=64, context=16, layers=12, heads=4, width=64)
ON = Control(noise_bounds=(0.01, 0.01))
OFF = "AdaptiveAdamW, σ off"
CONTENDERS: dict[str, dict[str, Any] | None] = {
    FUSED: None,
    FROZEN: {"control": Control.frozen()},
    OFF: {"control": Control(noise_bounds=(0.0, 0.0))},
    "AdaptiveAdamW, σ on": {"control": ON},
    "AdaptiveAdamW, σ on, clipping": {"control": ON, "max_grad_norm": 1.0},
}

Step = Callable[[], None]


def stepper(name: str, model: nn.Module, loss: Tensor) -> Step:
    """What the clock is around: one contender's step on a model whose gradients are in place."""
    options = CONTENDERS[name]
    if options is None:
        return torch.optim.AdamW(model.parameters(), fused=True).step  # type: ignore[return-value]
    optimizer = AdaptiveAdamW(model.parameters(), **options)

    def step() -> None:
        optimizer.observe(loss)
        optimizer.step()

    return step


def make(name: str, sharded: bool) -> Step:
    torch.manual_seed(0)
    model = wrapped(GPT(CONFIG), sharded)
    tokens = torch.randint(CONFIG.vocabulary, (4, CONFIG.context + 1))
    loss = model(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    return stepper(name, model, loss.detach())


def clock(step: Step) -> Callable[[], Times]:
    def timed() -> Times:
        dist.barrier()
        begin = time.perf_counter()
        step()
        elapsed = time.perf_counter() - begin
        return elapsed, elapsed

    return timed


def collectives(step: Step) -> str:
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        step()
    names = Counter(e.name for e in seen.events() if e.name.startswith("c10d::"))
    return ", ".join(f"{n} {name.removeprefix('c10d::')}" for name, n in names.items()) or "none"


def rows_of(wrapper: str, rounds: int) -> list[tuple[str, ...]]:
    steps = {name: make(name, wrapper == "FSDP2") for name in CONTENDERS}
    clocks = {name: clock(step) for name, step in steps.items()}
    seconds = {name: [t for t, _ in ts] for name, ts in time_rounds(clocks, rounds).items()}
    rows: list[tuple[str, ...]] = []
    for name, step in steps.items():
        ratio = median_ratio(seconds[name], seconds[FUSED])
        milliseconds = 1e3 * statistics.median(seconds[name])
        rows.append((wrapper, name, collectives(step), f"{milliseconds:.2f}", f"{ratio:.2f}"))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="torchrun --nproc-per-node=2 -m bench.ranks.scaling")
    parser.add_argument("--rounds", type=int, default=50, help="(50)")
    rounds = parser.parse_args().rounds
    if not started("-m bench.ranks.scaling"):
        return 2
    torch.set_num_threads(1)
    busy = load()
    dist.init_process_group("gloo")
    rows = [row for wrapper in ("DDP", "FSDP2") for row in rows_of(wrapper, rounds)]
    if dist.get_rank() == 0:
        facts = ", ".join(f"{k} {v}" for k, v in provenance(torch.device("cpu")).items())
        print(f"{dist.get_world_size()} ranks on gloo; load average {busy:.1f}; {facts}\n")
        of_steps = ("wrapper", "optimizer", "collectives per step", "ms", "time / fused")
        print(table(of_steps, rows))
    dist.barrier()
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
