"""Training with checkpoints that any number of ranks can go on from."""

from __future__ import annotations

import gc
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from adaptiverl import AdaptiveAdamW, Control
from bench.demo.text import DemoError, Text
from bench.demo.train import Batches, Settings, build_model, draw_starts

# σ is on from the start: a restart must also draw the noise that would have been drawn.
CONTROL = Control(every=5, noise_bounds=(0.01, 0.1))


@dataclass(frozen=True)
class Plan:
    """What a run does besides training.

    Attributes:
        out: folder for checkpoints and ``log.jsonl``.
        every: steps between two checkpoints.
        sharded: FSDP2 instead of DDP.
        kill_rank: which rank sends itself SIGKILL in the first attempt, or None.
        kill_at: before this step.
    """

    out: Path
    every: int
    sharded: bool
    kill_rank: int | None
    kill_at: int


def train(settings: Settings, text: Text, plan: Plan) -> None:
    """Train until the last step, from the last checkpoint on where there is one.

    Rank 0 logs a line per step: the step, the mean loss over the ranks, α and σ. Floats are
    written so that they read back the same, so two logs can be compared by the byte.

    Raises:
        DemoError: The batch can't be divided among the ranks.
    """
    _join(settings)
    try:
        _train(settings, text, plan)
    finally:
        # FSDP2's cycles hold the group, whose threads must end before the interpreter does: without
        # this, every fifth run was seen to abort at its exit.
        gc.collect()
        dist.destroy_process_group()


def _join(settings: Settings) -> None:
    if settings.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    else:
        # torchrun asks for one thread each anyway; sums must not depend on how many there are.
        torch.set_num_threads(1)
        backend = "gloo"
    # torchrun's attempts share one store, where gloo would find the dead ranks' addresses.
    store, rank, size = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"attempt-{_attempt()}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)


def _train(settings: Settings, text: Text, plan: Plan) -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    if settings.batch % size:
        raise DemoError(f"--batch must be a multiple of the {size} ranks, got {settings.batch}")
    model = _wrap(build_model(text, settings), plan.sharded)
    optimizer = AdaptiveAdamW(
        model.parameters(), lr=settings.lr, control=CONTROL, max_grad_norm=1.0, seed=settings.seed
    )
    done = _load(model, optimizer, plan)
    if rank == 0:
        _cut_log(plan.out / "log.jsonl", done)
        print(f"attempt {_attempt()}: from step {done} on", flush=True)
    # Data is a function of the step alone, so a checkpoint needs no state of a loader.
    starts = draw_starts(len(text.train), settings)[:, rank::size].contiguous()
    batches = Batches(text.train, starts, settings)
    for step in range(done, settings.steps):
        if rank == plan.kill_rank and step == plan.kill_at and _attempt() == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        loss = model(*batches[step])
        optimizer.zero_grad()
        loss.backward()
        optimizer.observe(loss)
        optimizer.step()
        if rank == 0:
            _log(plan.out / "log.jsonl", step, optimizer)
        if (step + 1) % plan.every == 0:
            _save(model, optimizer, plan, step + 1)
    # Whoever left now would take the connection from one that still reads.
    dist.barrier()


def _attempt() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _wrap(model: Any, sharded: bool) -> nn.Module:
    if not sharded:
        return DistributedDataParallel(model)
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    return model


# The log: what was observed is the mean over the ranks already


def _log(path: Path, step: int, optimizer: AdaptiveAdamW) -> None:
    knobs = optimizer.knobs()
    line = {"step": step + 1, "loss": knobs["loss"], "lr": knobs["lr"], "noise": knobs["noise"]}
    with path.open("a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")


def _cut_log(path: Path, done: int) -> None:
    """Drop the lines after the checkpoint; the last one may be torn."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    path.write_text("".join(lines[:done]), encoding="utf-8")


# Checkpoints


def _save(model: nn.Module, optimizer: AdaptiveAdamW, plan: Plan, done: int) -> None:
    weights, state = get_state_dict(model, optimizer)
    name = f"step-{done:08d}"
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=plan.out / name)
    # DCP returns on rank 0 after all have written; only then does the name become the latest.
    if dist.get_rank() == 0:
        scratch = plan.out / "latest.new"
        scratch.write_text(name, encoding="utf-8")
        os.replace(scratch, plan.out / "latest")


def _load(model: nn.Module, optimizer: AdaptiveAdamW, plan: Plan) -> int:
    """Steps that the last whole checkpoint has done; 0 where there is none."""
    plan.out.mkdir(parents=True, exist_ok=True)
    latest = plan.out / "latest"
    names = [latest.read_text(encoding="utf-8") if latest.exists() else ""]
    # One rank's look decides: the others' file system may be slower to show the name.
    dist.broadcast_object_list(names, src=0)
    if not names[0]:
        return 0
    weights, state = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=plan.out / names[0])
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
    return int(names[0].removeprefix("step-"))
