"""Processes that play ranks: started once, given one job after another, killed when they hang."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

LIMIT = 60.0
"""Seconds that a job may take; a deadlock becomes a failed test after that"""
MEETING_LIMIT = 30.0
"""Seconds that a rank waits for another in a collective"""

PRELOADED = ["adaptiverl", "pytest", "torch._dynamo", "torch.distributed.checkpoint"]
"""What most jobs import"""

Job = Callable[..., Any]


class Failed(AssertionError):
    """A job failed or hung on some rank; the message has every rank's traceback."""


class Crew:
    """As many processes as the largest job had ranks.

    Args:
        folder: For the files by which the ranks of a job find each other.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._workers: list[tuple[Any, Connection]] = []

    def run(self, size: int, job: Job, *arguments: Any, limit: float = LIMIT) -> list[Any]:
        """Run ``job(rank, size, *arguments)`` in `size` processes that form the world, on gloo.

        Args:
            size: How many.
            job: A function of a module that the processes can import.
            arguments: The same for every rank.
            limit: Seconds after which every process is killed.

        Returns:
            What each rank returned.

        Raises:
            Failed: A rank raised, died, or took too long.
        """
        while len(self._workers) < size:
            self._workers.append(_start())
        crew = self._workers[:size]
        meeting = self._folder / uuid.uuid4().hex
        for rank, (_, pipe) in enumerate(crew):
            pipe.send((job, rank, size, str(meeting), arguments))
        answers = self._collect(crew, limit)
        failures = [f"rank {r}: {a}" for r, (ok, a) in enumerate(answers) if not ok]
        if failures:
            self.stop()
            raise Failed("\n".join(failures))
        return [answer for _, answer in answers]

    def _collect(self, crew: list[tuple[Any, Connection]], limit: float) -> list[tuple[bool, Any]]:
        answers: dict[int, tuple[bool, Any]] = {}
        pipes = {pipe: rank for rank, (_, pipe) in enumerate(crew)}
        end = time.monotonic() + limit
        while pipes:
            ready = wait(list(pipes), max(0.0, end - time.monotonic()))
            if not ready:
                break
            for pipe in ready:
                assert isinstance(pipe, Connection)
                rank = pipes.pop(pipe)
                try:
                    answers[rank] = pickle.loads(pipe.recv_bytes())
                except EOFError:
                    answers[rank] = False, "died"
            if any(not ok for ok, _ in answers.values()):
                end = min(end, time.monotonic() + 5)  # the others may be waiting for it
        hung = (False, f"hung: no answer within {limit:.0f} s")
        return [answers.get(rank, hung) for rank in range(len(crew))]

    def stop(self) -> None:
        """Kill every process."""
        for process, pipe in self._workers:
            process.kill()
            process.join()
            pipe.close()
        self._workers = []


@contextmanager
def crew_in(folder: Path) -> Iterator[Crew]:
    crew = Crew(folder)
    try:
        yield crew
    finally:
        crew.stop()


def _start() -> tuple[Any, Connection]:
    here, there = multiprocessing.Pipe()
    # Forked from a process that has imported torch once for all ranks, and run nothing of it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_serve, args=(there,), daemon=True)
    kept = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME")}
    os.environ |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    try:
        process.start()
    finally:
        for name, value in kept.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    there.close()
    return process, here


def _serve(pipe: Connection) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    # torch's own, of its own code.
    warnings.filterwarnings("ignore", module=r"torch\.")
    while True:
        try:
            job, rank, size, meeting, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = pickle.dumps((True, _in_world(job, rank, size, meeting, arguments)))
        except BaseException:
            answer = pickle.dumps((False, traceback.format_exc()))
        pipe.send_bytes(answer)


def _in_world(job: Job, rank: int, size: int, meeting: str, arguments: tuple[Any, ...]) -> Any:
    torch.manual_seed(0)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=MEETING_LIMIT),
    )
    try:
        return job(rank, size, *arguments)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


# What jobs share


@contextmanager
def counted_collectives() -> Iterator[list[tuple[str, int, torch.dtype]]]:
    """Every all-reduce that Python code asks for meanwhile: its group's size, numbers, dtype."""
    seen: list[Any] = []
    original = dist.all_reduce

    def counting(tensor: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        seen.append((dist.get_world_size(options.get("group")), tensor.numel(), tensor.dtype))
        return original(tensor, *arguments, **options)

    dist.all_reduce = counting  # type: ignore[assignment]
    try:
        yield seen
    finally:
        dist.all_reduce = original  # type: ignore[assignment]


def bits(tensor: torch.Tensor) -> bytes:
    """A tensor's memory, so that NaN equals itself and −0 does not equal 0."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
