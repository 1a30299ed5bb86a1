"""Another checkout's package, in a process of its own, timed in the same rounds as this one's.

``python -m bench.speed.against`` is that process: it imports the other ``adaptiverl`` under this
checkout's contenders, which use public names only, and times a step whenever it is asked to.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import torch

from bench.speed.shapes import Workload

ROOT = Path(__file__).resolve().parents[2]


class There:
    """Contenders whose package is another checkout's; a `measure.Side`.

    Args:
        checkout: Built: its ``adaptiverl`` holds the compiled operators.
        workload: What they step.
        names: Keys of `CONTENDERS`.
        device: CPU or CUDA.
        in_a_row: Steps of a contender in every round.

    Raises:
        ValueError: The checkout is not built, or its package does not run.
    """

    def __init__(
        self,
        checkout: Path,
        workload: Workload,
        names: Sequence[str],
        device: torch.device,
        in_a_row: int,
    ) -> None:
        if not list(checkout.glob("adaptiverl/_C*")):
            raise ValueError(
                f"--against must be a checkout with a built package, and {checkout / 'adaptiverl'} "
                "has no compiled operators: `pip install --no-build-isolation -e .` there"
            )
        self.workload, self.names = workload, names
        task = {
            "checkout": str(checkout),
            "shapes": workload.shapes,
            "names": list(names),
            "device": str(device),
            "in_a_row": in_a_row,
            "threads": torch.get_num_threads(),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.speed.against", json.dumps(task)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.commit: str = self._answer()

    def _answer(self) -> Any:
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise ValueError(f"the package of --against ended with {self._process.wait()}")
        return json.loads(line)

    def _ask(self, what: str, name: str) -> Any:
        self._process.stdin.write(json.dumps([what, name]) + "\n")  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]
        return self._answer()

    def time(self, name: str) -> tuple[float, float]:
        """Seconds of one step."""
        on_device, on_host = self._ask("time", name)
        return on_device, on_host

    def noise(self, name: str) -> float:
        """σ in effect."""
        return float(self._ask("noise", name))

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait(timeout=60)
        self._process.stdout.close()  # type: ignore[union-attr]


class _Checkout(MetaPathFinder):
    """Finds ``adaptiverl`` in a checkout, before whatever is installed."""

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
    checkout: str, shapes: str, names: Sequence[str], device: str, in_a_row: int, threads: int
) -> None:
    """Answer one line for each line asked, until there are no more; `There` says what it gets."""
    # Whatever a package prints is no answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.meta_path.insert(0, _Checkout(Path(checkout)))
    # Only now: they import the package.
    from bench.machine import commit
    from bench.speed.measure import Here

    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", ".*never told a loss")
    side = Here(Workload(shapes), names, torch.device(device), in_a_row)
    gc.collect()
    gc.disable()
    answer: object = commit(Path(checkout))
    with contextlib.suppress(EOFError):
        while True:
            print(json.dumps(answer), file=answers, flush=True)
            what, name = json.loads(input())
            answer = side.time(name) if what == "time" else side.noise(name)


if __name__ == "__main__":
    serve(**json.loads(sys.argv[1]))
