"""The file of finished runs: a CSV that only grows, a row a run."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from bench.rl import agents, environments, learners, ppo, rollout
from bench.rl.learners import Adaptive, Length, Method
from bench.run.fingerprint import ROOT, c_code, python_code
from bench.run.rows import RowsError, records

Key = tuple[str, str, float, int, int]
SHARED = (agents, environments, learners, ppo, rollout)
WINDOW = 100  # episodes
RECENT = 20  # episodes


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        steps: Of the environments.
        final: Mean return of the last hundred episodes.
        area: Mean over the rollouts of the mean return of the last twenty episodes by then.
        highest_rate: Of those in effect after a rollout.
        seconds: Its share of the processor's time.
        fingerprint: Of the method's definition and of the code.
    """

    task: str
    method: str
    rate: float
    seed: int
    steps: int
    final: float
    area: float
    highest_rate: float
    seconds: float
    fingerprint: str
    commit: str
    torch: str

    @property
    def key(self) -> Key:
        return self.task, self.method, self.rate, self.seed, self.steps


COLUMNS = [field.name for field in fields(Row)]
KINDS = {f.name: {"str": str, "int": int, "float": float}[str(f.type)] for f in fields(Row)}


def measured(finished: Sequence[float], ended: Sequence[int]) -> tuple[float, float]:
    """A run's `final` and `area`.

    Args:
        finished: Its returns, in the order in which the episodes ended.
        ended: How many there were after each rollout.

    Returns:
        NaN, both, where no episode ended.
    """
    recent = [_mean(finished[max(0, count - RECENT) : count]) for count in ended if count]
    return _mean(finished[-WINDOW:]), _mean(recent)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def fingerprint(method: Method) -> str:
    """Twelve hexadecimal digits that change when the numbers of a run may change."""
    files = [Path(inspect.getfile(module)) for module in SHARED]
    said = repr(method)
    if isinstance(method, Adaptive):
        files += sorted([*ROOT.glob("adaptiverl/law/*.py"), *ROOT.glob("csrc/law/*.h")])
        said = f"{method.name} {method.control(Length(1000, 4, 4))} {method.told} {method.anneals}"
    code = {".py": python_code, ".h": c_code}
    parts = [said, *(code[path.suffix](path.read_text("utf-8")) for path in files)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def read(path: Path) -> list[Row]:
    """Every whole row; a last line without its end is left out: its writer was killed.

    Raises:
        RowsError: Another file, or a damaged line.
    """
    return [Row(**record) for record in records(path, KINDS)] if path.exists() else []


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add rows, behind the last whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
        lines = [] if whole else [",".join(COLUMNS)]
        lines += [",".join(map(str, asdict(row).values())) for row in rows]
        file.write(("\n".join(lines) + "\n").encode())


def writable(path: Path) -> None:
    """Find out before the work is done.

    Raises:
        RowsError: Rows cannot be added to this file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):
            pass
    except OSError as error:
        raise RowsError(
            f"{path} must be a file that rows can be added to ({error}): give another --out"
        ) from None
