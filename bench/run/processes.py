"""Jobs in parallel, one process a core, each outcome as it comes.

A job is one cell, or the cells that `side_by_side` trains at once.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing, contextmanager

import torch

from bench.run.cells import Cell, Outcome, run
from bench.run.side_by_side import run_together

Job = Sequence[Cell]
Result = tuple[Cell, Outcome | str]
"""A cell and what it came to; a traceback where it raised an exception."""


def in_processes(jobs: Sequence[Job], workers: int) -> Generator[Result]:
    """Run jobs in about their order; those that fail don't stop the others."""
    on_cpu = [job for job in jobs if job[0].task.device == "cpu"]
    on_cuda = [job for job in jobs if job[0].task.device != "cpu"]
    for phase, count in ((on_cpu, workers), (on_cuda, 1)):
        few = min(count, len(phase)) <= 1
        # Closed at once, not when it is collected: closing stops the workers.
        with closing(_here(phase) if few else _in_workers(phase, count)) as results:
            yield from results


@contextmanager
def in_one_thread() -> Iterator[None]:
    """Models this small lose more to handing work over than they gain from a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _here(jobs: Sequence[Job]) -> Generator[Result]:
    with in_one_thread():
        for job in jobs:
            yield from zip(job, _attempt(job), strict=True)


def _in_workers(jobs: Sequence[Job], workers: int) -> Generator[Result]:
    # Spawned, not forked: neither torch's threads nor CUDA survive a fork.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(
        min(workers, len(jobs)), mp_context=context, initializer=_start_worker
    )
    try:
        pending = {executor.submit(_attempt, job): job for job in jobs}
        for future in as_completed(pending):
            yield from zip(pending[future], future.result(), strict=True)
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        # Waiting for the jobs that have begun can take a minute each.
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    executor.shutdown()


def _attempt(job: Job) -> Sequence[Outcome | str]:
    try:
        return [run(job[0])] if len(job) == 1 else run_together(job)
    except Exception:
        return [traceback.format_exc()] * len(job)


def _start_worker() -> None:
    """Make this process a quiet one: one thread, no Ctrl-C of its own, no life of its own."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot stop its workers, and they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
