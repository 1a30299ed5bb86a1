"""A run that survives a rank's death: torchrun starts it again, DCP gives it back its state.

``torchrun --nproc-per-node=2 --max-restarts=3 -m bench.ranks.elastic``: see ``--help``.
"""

import argparse
import gc
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from adaptiverl import AdaptiveAdamW, Control
from bench.requests import RequestError
from bench.run.ranks import started, wrapped
from bench.tasks.characters import Characters

COMMAND = "--max-restarts=3 -m bench.ranks.elastic"
# σ is on from the start: a restart must also draw the noise that would have been drawn.
CONTROL = Control(every=5, noise_bounds=(0.01, 0.1))
SIZES = {"steps": 60, "layers": 4, "width": 128, "context": 128, "batch": 16}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"torchrun --nproc-per-node=2 {COMMAND}",
        description="Train the demo's GPT on several ranks with AdaptiveAdamW. A checkpoint every "
        "few steps; started again, the run goes on from the last one.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--out", type=Path, default="runs/elastic", help="folder for checkpoints and the log")
    add("--text", help="a UTF-8 text file (Python's own sources)")
    add("--shard", action="store_true", help="FSDP2 instead of DDP")
    add("--kill-rank", type=int, help="this rank kills itself, once")
    add("--kill-at", type=int, default=0, help="before this step")
    add("--again", type=Path, help="folder of a second run, from the start, that nobody disturbs")
    for name, value in {"checkpoint-every": 10, "seed": 0, **SIZES}.items():
        add(f"--{name}", type=int, default=value, help=f"({value})")
    return parser


def main() -> int:
    given = parser().parse_args()
    if not started(COMMAND):
        return 2
    sizes: Any = {name: getattr(given, name) for name in SIZES}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    task = Characters(name="elastic", device=device, heads=4, path=given.text, **sizes)
    try:
        task.text()
        ranks = int(os.environ["WORLD_SIZE"])
        if task.batch % ranks:
            raise RequestError(f"--batch must be a multiple of the {ranks} ranks, got {task.batch}")
    except RequestError as error:
        print(f"elastic: {error}", file=sys.stderr)
        return 2
    join(device)
    try:
        train(given, task, given.out)
        if given.again is not None:
            given.kill_rank = None
            train(given, task, given.again)
    finally:
        # FSDP2's cycles hold the group, whose threads must end before the interpreter does: without
        # this, every fifth run was seen to abort at its exit.
        gc.collect()
        dist.destroy_process_group()
    return 0


def join(device: str) -> None:
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        # torchrun asks for one thread each anyway; sums must not depend on how many there are.
        torch.set_num_threads(1)
    backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    # torchrun's attempts share one store, where gloo would find the dead ranks' addresses.
    store, rank, size = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"attempt-{attempt()}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)


def attempt() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def train(given: argparse.Namespace, task: Characters, out: Path) -> None:
    """Train on from the last checkpoint; rank 0 logs floats that read back the same."""
    rank, size = dist.get_rank(), dist.get_world_size()
    problem = task.start(given.seed)
    model = wrapped(problem.objective, given.shard)  # type: ignore[arg-type]
    optimizer = AdaptiveAdamW(
        model.parameters(), lr=1e-3, control=CONTROL, max_grad_norm=1.0, seed=given.seed
    )
    done = load(model, optimizer, out)
    log = out / "log.jsonl"
    if rank == 0:
        cut(log, done)
        print(f"attempt {attempt()}: from step {done} on", flush=True)
    # Data is a function of the step alone, so a checkpoint needs no state of a loader.
    for step in range(done, task.steps):
        if rank == given.kill_rank and step == given.kill_at and attempt() == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        loss = model(*(part[rank::size] for part in problem.batch(step)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.observe(loss)
        optimizer.step()
        if rank == 0:
            # What was observed is the mean over the ranks already.
            knobs = optimizer.knobs()
            line = {"step": step + 1, **{name: knobs[name] for name in ("loss", "lr", "noise")}}
            with log.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
        if (step + 1) % given.checkpoint_every == 0:
            save(model, optimizer, out, step + 1)
    # Whoever left now would take the connection from one that still reads.
    dist.barrier()


def cut(log: Path, done: int) -> None:
    """Drop the lines after the checkpoint; the last one may be torn."""
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.exists() else []
    log.write_text("".join(lines[:done]), encoding="utf-8")


def save(model: nn.Module, optimizer: AdaptiveAdamW, out: Path, done: int) -> None:
    weights, state = get_state_dict(model, optimizer)
    name = f"step-{done:08d}"
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=out / name)
    # DCP returns on rank 0 after all have written; only then does the name become the latest.
    if dist.get_rank() == 0:
        scratch = out / "latest.new"
        scratch.write_text(name, encoding="utf-8")
        os.replace(scratch, out / "latest")


def load(model: nn.Module, optimizer: AdaptiveAdamW, out: Path) -> int:
    """Steps that the last whole checkpoint has done; 0 where there is none."""
    out.mkdir(parents=True, exist_ok=True)
    latest = out / "latest"
    names = [latest.read_text(encoding="utf-8") if latest.exists() else ""]
    # One rank's look decides: the others' file system may be slower to show the name.
    dist.broadcast_object_list(names, src=0)
    if not names[0]:
        return 0
    weights, state = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=out / names[0])
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
    return int(names[0].removeprefix("step-"))


if __name__ == "__main__":
    sys.exit(main())
