"""``torchrun --nproc-per-node=2 -m bench.scaling``: host time and collectives of one step.

Every rank times the optimizer's own step, `observe` included; forward and backward are outside the
clock. Contenders take turns in every round, and a barrier stands before each. The second table is
what one more sharded tensor costs, its work being next to nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

from adaptiverl import AdaptiveAdamW, Control
from bench.demo.model import GPT, GPTConfig
from bench.machine import load, provenance

CONFIG = GPTConfig(vocabulary=64, context=16, layers=12, heads=4, width=64)
OFF, ON = Control(noise_bounds=(0.0, 0.0)), Control(noise_bounds=(0.01, 0.01))
CONTENDERS: dict[str, dict[str, Any] | None] = {
    "torch AdamW, fused": None,
    "AdaptiveAdamW, frozen": {"control": Control.frozen()},
    "AdaptiveAdamW, σ off": {"control": OFF},
    "AdaptiveAdamW, σ on": {"control": ON},
    "AdaptiveAdamW, σ on, clipping": {"control": ON, "max_grad_norm": 1.0},
}


@dataclass
class Contender:
    """A model of its own with gradients in place, and the optimizer that steps it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Tensor
    seconds: list[float]

    def step(self) -> None:
        """What the clock is around."""
        if isinstance(self.optimizer, AdaptiveAdamW):
            self.optimizer.observe(self.loss)
        self.optimizer.step()


def make(wrapper: str, options: dict[str, Any] | None) -> Contender:
    """Build, wrap, and leave the gradients of one backward pass."""
    torch.manual_seed(0)
    gpt = GPT(CONFIG)
    model: nn.Module = gpt
    if wrapper == "DDP":
        model = DistributedDataParallel(gpt)
    else:
        for block in gpt.blocks:
            fully_shard(block)
        fully_shard(gpt)
    if options is None:
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    else:
        optimizer = AdaptiveAdamW(model.parameters(), **options)
    tokens = torch.randint(CONFIG.vocabulary, (4, CONFIG.context + 1))
    loss = model(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    return Contender(model, optimizer, loss.detach(), [])


LAYERS = (10, 110)
"""Of the models whose difference is the cost of a tensor; a layer has two"""


def tiny(layers: int) -> nn.Module:
    """Layers of 16 weights, each of them a unit of FSDP2, after one backward pass."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(layers)])
    for layer in model:
        fully_shard(layer)
    fully_shard(model)
    return model


def seconds_of_tiny(layers: int, rounds: int) -> dict[str, float]:
    """CPU time of a step of each contender, the least of all rounds; gradients are new in each."""
    least: dict[str, float] = {}
    for name in ("torch AdamW, fused", "AdaptiveAdamW, frozen", "AdaptiveAdamW, σ off"):
        model, options = tiny(layers), CONTENDERS[name]
        optimizer = (
            torch.optim.AdamW(model.parameters(), fused=True)
            if options is None
            else AdaptiveAdamW(model.parameters(), **options)
        )
        contender = Contender(model, optimizer, torch.tensor(1.0), [])
        for _ in range(rounds):
            optimizer.zero_grad()
            model(torch.randn(2, 4)).square().mean().backward()
            dist.barrier()
            begin = time.thread_time()
            contender.step()
            contender.seconds.append(time.thread_time() - begin)
        least[name] = min(contender.seconds)
    return least


def report_tensors(rounds: int) -> None:
    """Measure on all ranks; print on rank 0."""
    few, many = (seconds_of_tiny(layers, rounds) for layers in LAYERS)
    if dist.get_rank() != 0:
        return
    print("\n| FSDP2, CPU time of a step | µs per tensor | without tensors, µs |")
    print("| --- | ---: | ---: |")
    for name in few:
        slope = (many[name] - few[name]) / (2 * (LAYERS[1] - LAYERS[0]))
        rest = few[name] - slope * 2 * LAYERS[0]
        print(f"| {name} | {slope * 1e6:.2f} | {rest * 1e6:.0f} |")


def collectives(contender: Contender) -> str:
    """Every collective of one optimizer step, as torch's profiler saw them."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        contender.step()
    names = Counter(e.name for e in seen.events() if e.name.startswith("c10d::"))
    return ", ".join(f"{n} {name.removeprefix('c10d::')}" for name, n in names.items()) or "none"


def measure(wrapper: str, rounds: int) -> dict[str, Contender]:
    """Time every contender once per round."""
    contenders = {name: make(wrapper, options) for name, options in CONTENDERS.items()}
    for number in range(-3, rounds):
        for contender in contenders.values():
            dist.barrier()
            begin = time.perf_counter()
            contender.step()
            if number >= 0:
                contender.seconds.append(time.perf_counter() - begin)
    return contenders


def report(wrapper: str, contenders: dict[str, Contender], counted: dict[str, str]) -> None:
    """Print one wrapper's rows, by rank 0's clock."""
    rival = contenders["torch AdamW, fused"].seconds
    for name, contender in contenders.items():
        ratio = statistics.median(
            ours / theirs for ours, theirs in zip(contender.seconds, rival, strict=True)
        )
        milliseconds = 1e3 * statistics.median(contender.seconds)
        print(f"| {wrapper} | {name} | {counted[name]} | {milliseconds:.2f} | {ratio:.2f} |")


def main() -> int:
    """Measure under both wrappers; return the exit status."""
    parser = argparse.ArgumentParser(prog="torchrun --nproc-per-node=2 -m bench.scaling")
    parser.add_argument("--rounds", type=int, default=50, help="(50)")
    rounds = parser.parse_args().rounds
    if "RANK" not in os.environ:
        print("scaling: start it with torchrun, see bench/README.md", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    if dist.get_rank() == 0:
        facts = ", ".join(f"{k} {v}" for k, v in provenance(torch.device("cpu")).items())
        print(f"{dist.get_world_size()} ranks on gloo; load average {load():.1f}; {facts}\n")
        print("| wrapper | optimizer | collectives per step | ms | time / fused |")
        print("| --- | --- | --- | ---: | ---: |")
    for wrapper in ("DDP", "FSDP2"):
        contenders = measure(wrapper, rounds)
        counted = {name: collectives(contender) for name, contender in contenders.items()}
        if dist.get_rank() == 0:
            report(wrapper, contenders, counted)
    report_tensors(min(rounds, 30))
    dist.barrier()
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
