"""The grid of runs: what is missing is trained, some side by side, and rows are added."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm import tqdm

from bench.machine import commit
from bench.rl.environments import TASKS
from bench.rl.methods import METHODS
from bench.rl.ppo import Run, Training
from bench.rl.rows import Key, Row, append, fingerprint, measured, read
from bench.run.rows import newest

BESIDE = 36
"""Runs in one training: fewer have more of the overhead, and more do not fit the cache"""


def plan(
    tasks: Iterable[str],
    methods: Sequence[str],
    rates: Sequence[float],
    seeds: Iterable[int],
    steps: int,
) -> list[Key]:
    """Seed by seed, so that what is interrupted has whole tables of fewer seeds."""
    return [
        (task, method, rate, seed, steps)
        for seed in seeds
        for task in tasks
        for method in methods
        for rate in rates
    ]


def complete(path: Path, wanted: Sequence[Key], workers: int) -> list[Row]:
    """Train what has no row of today's definition yet.

    Args:
        path: The file of rows.
        wanted: All runs of the study.
        workers: Processes, each of one thread.

    Returns:
        The rows that were asked for.
    """
    done = {
        row.key
        for row in read(path)
        if row.method in METHODS and row.fingerprint == fingerprint(METHODS[row.method])
    }
    missing = [key for key in wanted if key not in done]
    if missing:
        bar = tqdm(total=len(missing), desc="runs", file=sys.stderr, disable=None)
        with bar, closing(trained(missing, workers)) as results:
            for rows in results:
                append(path, rows)
                bar.update(len(rows))
    asked = set(wanted)
    return [row for row in newest(read(path)) if row.key in asked]


def trained(keys: Sequence[Key], workers: int) -> Generator[list[Row]]:
    """Group by group, as they get done."""
    revision = commit()
    groups = list(grouped(keys))
    if workers == 1:
        for group in groups:
            yield train(group, revision)
        return
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        futures = [pool.submit(train, group, revision) for group in groups]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def grouped(keys: Sequence[Key]) -> Iterator[list[Key]]:
    """Of one task and length, at most `BESIDE`; those of one method and rate side by side."""
    kinds = dict.fromkeys((task, steps) for task, *_, steps in keys)
    for kind in kinds:
        mine = [key for key in keys if (key[0], key[-1]) == kind]
        for begin in range(0, len(mine), BESIDE):
            yield sorted(mine[begin : begin + BESIDE], key=lambda key: key[1:4])


def train(keys: Sequence[Key], revision: str) -> list[Row]:
    """The rows of some runs of one task and length."""
    torch.set_num_threads(1)
    task, *_, steps = keys[0]
    begin = time.process_time()
    training = Training(TASKS[task], [Run(METHODS[m], r, s) for _, m, r, s, _ in keys], steps)
    training.run()
    share = (time.process_time() - begin) / len(keys)
    rows = []
    for i, (key, rate) in enumerate(zip(keys, training.highest_rates, strict=True)):
        _, method, start, seed, _ = key
        final, area = measured(training.worlds.finished[i], [ended[i] for ended in training.ended])
        digits = (round(final, 2), round(area, 2), float(f"{rate:.3g}"), round(share, 2))
        mark = fingerprint(METHODS[method])
        rows.append(
            Row(*(task, method, start, seed, steps), *digits, mark, revision, torch.__version__)
        )
    return rows
