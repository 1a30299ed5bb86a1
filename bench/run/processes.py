"""The engine "processes": cells in parallel, one process a core, each outcome as it comes."""

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

Result = tuple[Cell, Outcome | str]
"""A cell and what it came to; a traceback where it raised an exception."""


def in_processes(cells: Sequence[Cell], workers: int) -> Generator[Result]:
    """Run cells in about their order; those that fail don't stop the others."""
    on_cpu = [cell for cell in cells if cell.task.device == "cpu"]
    on_cuda = [cell for cell in cells if cell.task.device != "cpu"]
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


def _here(cells: Sequence[Cell]) -> Generator[Result]:
    with in_one_thread():
        for cell in cells:
            yield cell, _attempt(cell)


def _in_workers(cells: Sequence[Cell], workers: int) -> Generator[Result]:
    # Spawned, not forked: neither torch's threads nor CUDA survive a fork.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(
        min(workers, len(cells)), mp_context=context, initializer=_start_worker
    )
    try:
        pending = {executor.submit(_attempt, cell): cell for cell in cells}
        for future in as_completed(pending):
            yield pending[future], future.result()
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        # Waiting for the cells that have begun can take a minute each.
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    executor.shutdown()


def _attempt(cell: Cell) -> Outcome | str:
    try:
        return run(cell)
    except Exception:
        return traceback.format_exc()


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
