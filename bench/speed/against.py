"""Two checkouts' packages, each in a process of its own, timed in the same rounds.

``python -m bench.speed.against`` is such a process: it imports its ``adaptiverl`` under this
checkout's contenders, which use public names only, and times a step whenever it is asked to.
"""

import contextlib
import gc
import importlib.util
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import torch

from bench.speed.shapes import Workload

ROOT = Path(__file__).resolve().parents[2]


def check_built(checkout: Path) -> None:
    if not list(checkout.glob("adaptiverl/_C*")):
        raise ValueError(
            f"--against must be a checkout with a built package, and {checkout / 'adaptiverl'} "
            "has no compiled operators: `pip install --no-build-isolation -e .` there"
        )


@contextlib.contextmanager
def there(
    checkout: Path | None,
    workload: Workload,
    names: Sequence[str],
    device: torch.device,
    in_a_row: int,
) -> Iterator[Any]:
    """A `measure.Side` whose package is that of a checkout, built; None for the installed one."""
    from bench.speed.measure import Side

    threads = torch.get_num_threads()
    place = None if checkout is None else str(checkout)
    task = [place, workload.shapes, list(names), str(device), in_a_row, threads]
    command = [sys.executable, "-m", "bench.speed.against", json.dumps(task)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        questions, answers = process.stdin, process.stdout

        def answer() -> Any:
            line = answers.readline()
            if not line:
                raise ValueError(f"the package of --against ended with {process.wait()}")
            return json.loads(line)

        def ask(what: str, name: str) -> Any:
            print(json.dumps([what, name]), file=questions, flush=True)
            return answer()

        yield Side(answer(), names, lambda name: ask("time", name), lambda name: ask("noise", name))


class Checkout(MetaPathFinder):
    def __init__(self, root: Path) -> None:
        self._folders = {"adaptiverl": root / "adaptiverl", "adaptiverl.kernels": root / "kernels"}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        folder = self._folders.get(name)
        if folder is None or not folder.exists():
            return None
        return importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


def serve(
    checkout: str | None,
    shapes: str,
    names: Sequence[str],
    device: str,
    in_a_row: int,
    threads: int,
) -> None:
    """Answer one line for each line asked, until there are no more."""
    # Whatever a package prints is no answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if checkout is not None:
        sys.meta_path.insert(0, Checkout(Path(checkout)))
    # Only now: they import the package.
    from bench.machine import commit
    from bench.speed.measure import Here

    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", ".*never told a loss")
    side = Here(Workload(shapes), names, torch.device(device), in_a_row)
    gc.collect()
    gc.disable()
    answer: object = "" if checkout is None else commit(Path(checkout))
    with contextlib.suppress(EOFError):
        while True:
            print(json.dumps(answer), file=answers, flush=True)
            what, name = json.loads(input())
            answer = side.time(name) if what == "time" else side.noise(name)


if __name__ == "__main__":
    serve(*json.loads(sys.argv[1]))
