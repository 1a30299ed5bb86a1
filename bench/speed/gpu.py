"""``bench/gpu.sh``: build, check, measure, report; or, with ``--check``, all but the GPU's part.

Ends with 0 if every check passed and every figure was met, 1 if not, 2 if this machine can't do it.
Nothing that is imported here imports the package, which is not built yet.
"""

import argparse
import datetime
import importlib
import importlib.util
import json
import platform
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.speed.build import FOLDER, ROOT, BuildError, build, environment
from bench.speed.figures import Results, fake_results, figures
from bench.speed.names import ON_A_CARD
from bench.speed.parts import Parts, find_tool
from bench.speed.report import SANITIZERS, markdown
from bench.speed.shapes import CARD_WORKLOADS
from bench.speed.tables import save, slug, with_ratios

PARTS = CHECKS, CARD = "bench.speed.checks", "bench.speed.card"
CHECKS_SECONDS, SANITIZER_SECONDS, MARGIN = 150.0, 75.0, 15.0


class Unfit(Exception):
    """This machine cannot do what was asked; the message says why, and what to do."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="bench/gpu.sh",
        description="Build, check and measure the fused step on this machine's GPU.",
    )
    add = parser.add_argument
    add("--check", action="store_true", help="what can be done without a GPU")
    add("--out", type=Path, default=ROOT / "bench" / "results", help="where the report goes")
    add("--minutes", type=float, default=8.0, help="in all (default 8)")
    add("--no-measure", action="store_true", help="build and check only")
    given = parser.parse_args(arguments)
    try:
        if given.minutes <= 0:
            raise Unfit(f"--minutes must be above 0, got {given.minutes:g}")
        return rehearse() if given.check else run(given)
    except (Unfit, BuildError) as error:
        print(f"bench/gpu.sh: {error}", file=sys.stderr)
        return 2


def rehearse() -> int:
    """Without a GPU: import everything, print the plan, write a report of made-up numbers."""
    for part in PARTS:
        try:
            importlib.import_module(part)
        except ImportError as error:
            raise Unfit(f"{part} does not import: {error}. `pip install -e .` first") from error
    print(f"python {platform.python_version()}; {_tools()}")
    for workload in CARD_WORKLOADS:
        print(
            f"{workload!s:<24} {workload.elements:>13,} numbers {workload.tensors:>5} tensors "
            f"{workload.gibibytes:6.1f} GiB"
        )
    print(f"{len(ON_A_CARD)} contenders: {'; '.join(ON_A_CARD)}")
    about = {"card": "made up", "date": "2000-01-01", "left_out": {}}
    with tempfile.TemporaryDirectory() as folder:
        paths = save_report(fake_results(), about, [], Path(folder))
        read = json.loads(paths[0].read_text(encoding="utf-8"))
        if len(read["figures"]) != len(figures(fake_results())):
            raise Unfit("the report that was written is not the one that was read")
        print(paths[1].read_text(encoding="utf-8"))
    print("Everything that needs no GPU works. The numbers above are made up.")
    return 0


def _tools() -> str:
    names = ("nvcc", "g++", "compute-sanitizer", "nvidia-smi")
    found = [f"{name} {'found' if find_tool(name) else 'missing'}" for name in names]
    triton = "found" if importlib.util.find_spec("triton") else "missing"
    return ", ".join([*found, f"triton {triton}"])


def run(given: argparse.Namespace) -> int:
    start = time.monotonic()

    def left(most: float = float("inf")) -> float:
        return min(most, start + 60 * given.minutes - time.monotonic() - MARGIN)

    card = check_machine()
    print(f"{card}; {_tools()}")
    library = build()
    print(f"built in {time.monotonic() - start:.0f} s")
    parts = Parts(library, environment(library), FOLDER / "out")
    about: dict[str, Any] = {"date": datetime.date.today().isoformat()}
    about |= parts.about() | {"card": card}
    checks = parts.run(CHECKS, left(CHECKS_SECONDS))
    about["sanitizer"] = {
        tool: parts.sanitize(tool, ["-m", CHECKS, "--small"], left(SANITIZER_SECONDS))
        for tool in SANITIZERS
    }
    measured = [] if given.no_measure else parts.run(CARD, left())
    about |= {"left_out": merged(measured, "left_out"), "problems": parts.problems}
    results = gather(measured, checks)
    paths = save_report(results, about, checks, given.out)
    print(f"wrote {paths[0]}\nwrote {paths[1]}\n{paths[1].read_text(encoding='utf-8')}")
    print(f"{time.monotonic() - start:.0f} s in all")
    for problem in parts.problems:
        print(f"bench/gpu.sh: {problem}", file=sys.stderr)
    missed = any(figure.met is False for figure in figures(results))
    return int(missed or "failed" in results.checks.values() or bool(parts.problems))


def check_machine() -> str:
    if importlib.util.find_spec("torch") is None:
        raise Unfit(f"{sys.executable} has no torch: set PYTHON to one that has, with CUDA")
    import torch

    if not torch.cuda.is_available():
        raise Unfit(
            f"no CUDA device is seen by torch {torch.__version__} of {sys.executable}: run it on a "
            "machine with a GPU, with a torch built for CUDA; `bench/gpu.sh --check` does what "
            "needs none"
        )
    if importlib.util.find_spec("triton") is None:
        raise Unfit(f"{sys.executable} has no triton, which the step is written in")
    if find_tool("nvcc") is None:
        raise Unfit("nvcc is neither on PATH nor in /usr/local/cuda/bin: install the CUDA toolkit")
    return str(torch.cuda.get_device_name(0))


def merged(parts: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any]:
    return {name: value for part in parts for name, value in part.get(key, {}).items()}


def gather(parts: Sequence[Mapping[str, Any]], checks: Sequence[Mapping[str, Any]]) -> Results:
    rows = [row for part in parts for row in part.get("rows", [])]
    copies = [part["copy_bandwidth"] for part in parts if "copy_bandwidth" in part]
    outcomes = {check["name"]: check["outcome"] for check in checks}
    return Results(with_ratios(rows), next(iter(copies), None), merged(parts, "extra"), outcomes)


def save_report(
    results: Results, about: Mapping[str, Any], checks: Sequence[Mapping[str, Any]], folder: Path
) -> tuple[Path, Path]:
    data = {
        **about,
        "copy_bandwidth": results.copy_bandwidth,
        "figures": [vars(figure) for figure in figures(results)],
        "checks": list(checks),
        "extra_memory": dict(results.extra),
        "rows": results.rows,
    }
    name = f"{slug(about['card'])}-{about['date']}"
    return save(folder, name, data, markdown(results, about, checks))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
