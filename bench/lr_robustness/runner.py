"""Runs cells in parallel, one process a core, and hands over each outcome as it comes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass

import torch
from tqdm import tqdm

from bench.lr_robustness.cells import Cell, Outcome, run

Result = tuple[Cell, Outcome | str]


@dataclass(frozen=True)
class Failure:
    """A cell that raised an exception.

    Attributes:
        cell: Which.
        message: The traceback.
    """

    cell: Cell
    message: str


def run_all(
    cells: Sequence[Cell], workers: int, finished: Callable[[Cell, Outcome], None]
) -> list[Failure]:
    """Run cells, in about their order, with a progress bar on standard error.

    Args:
        cells: Those on the CPU share the workers; then those on CUDA run one by one, on the first
            device.
        workers: Processes; with one, everything runs in this process.
        finished: Is called in this process as soon as a cell is done.

    Returns:
        The cells that failed; they don't stop the others.

    Raises:
        KeyboardInterrupt: The workers were stopped; what was finished has been handed over.
        concurrent.futures.BrokenExecutor: A worker died; likewise.
    """
    failures: list[Failure] = []
    on_cpu = [cell for cell in cells if cell.task.device == "cpu"]
    on_cuda = [cell for cell in cells if cell.task.device != "cpu"]
    done = 0
    with _bar(cells) as bar:
        for phase, count in ((on_cpu, workers), (on_cuda, 1)):
            # Closed at once, not when it is collected: closing stops the workers.
            with closing(_results(phase, min(count, len(phase)))) as results:
                for cell, result in results:
                    if isinstance(result, Outcome):
                        finished(cell, result)
                    else:
                        failures.append(Failure(cell, result))
                    done += 1
                    bar.set_postfix_str(f"{done} of {len(cells)} runs", refresh=False)
                    bar.update(cell.task.seconds)
    return failures


def _results(cells: Sequence[Cell], workers: int) -> Generator[Result]:
    return _in_this_process(cells) if workers <= 1 else _in_workers(cells, workers)


def _in_this_process(cells: Sequence[Cell]) -> Generator[Result]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for cell in cells:
            yield cell, _attempt(cell)
    finally:
        torch.set_num_threads(threads)


def _in_workers(cells: Sequence[Cell], workers: int) -> Generator[Result]:
    # Spawned, not forked: neither torch's threads nor CUDA survive a fork.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
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


def _bar(cells: Sequence[Cell]) -> tqdm:
    """A bar over the tasks' estimated seconds: one run of a task takes fifty of another's."""
    return tqdm(
        total=sum(cell.task.seconds for cell in cells),
        desc="runs",
        mininterval=0.1 if sys.stderr.isatty() else 30.0,
        bar_format="{desc} {percentage:3.0f}% |{bar:20}| {elapsed}<{remaining}{postfix}",
    )
