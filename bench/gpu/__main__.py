"""``bench/gpu.sh``: build, check, measure, report; or, with ``--check``, all but the GPU's part.

Ends with 0 if every check passed and every figure was met, 1 if not, 2 if this machine can't do it.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.gpu.build import FOLDER, ROOT, BuildError, build, environment
from bench.gpu.figures import Results, fake_results, figures
from bench.gpu.plan import CONTENDERS, SANITIZERS, workloads
from bench.gpu.report import markdown, save

RESULTS = ROOT / "bench" / "results"
MINUTES = 8.0
CHECKS_SECONDS, SANITIZER_SECONDS, MARGIN = 150.0, 75.0, 15.0


class Unfit(Exception):
    """This machine cannot do what was asked; the message says why, and what to do."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="bench/gpu.sh",
        description="Build, check and measure the fused step on this machine's GPU.",
    )
    parser.add_argument("--check", action="store_true", help="what can be done without a GPU")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the report goes")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help=f"in all (default {MINUTES:g})"
    )
    parser.add_argument("--no-measure", action="store_true", help="build and check only")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run it; the exit status is in this module's docstring."""
    given = parser().parse_args(arguments)
    if given.minutes <= 0:
        print(f"bench/gpu.sh: --minutes must be above 0, got {given.minutes:g}", file=sys.stderr)
        return 2
    try:
        return rehearse() if given.check else run(given)
    except Unfit as error:
        print(f"bench/gpu.sh: {error}", file=sys.stderr)
        return 2


# Without a GPU


def rehearse() -> int:
    """Import everything, print the plan, and write a report of made-up numbers."""
    for module in ("contenders", "measure", "checks"):
        name = f"bench.gpu.{module}"
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise Unfit(f"{name} does not import: {error}. `pip install -e .` first") from error
    print(f"python {platform.python_version()}; {_tools()}")
    for workload in workloads():
        print(
            f"{workload!s:<24} {workload.elements:>13,} numbers {workload.tensors:>5} tensors "
            f"{workload.gibibytes:6.1f} GiB"
        )
    print(f"{len(CONTENDERS)} contenders: {', '.join(CONTENDERS)}")
    about = {"card": "made up", "date": "2000-01-01", "left_out": {}}
    with tempfile.TemporaryDirectory() as folder:
        paths = save(fake_results(), about, [], Path(folder))
        read = json.loads(paths[0].read_text(encoding="utf-8"))
        if len(read["figures"]) != len(figures(fake_results())):
            raise Unfit("the report that was written is not the one that was read")
        print(paths[1].read_text(encoding="utf-8"))
    print("Everything that needs no GPU works. The numbers above are made up.")
    return 0


def _tools() -> str:
    names = ("nvcc", "g++", "compute-sanitizer", "nvidia-smi")
    found = [f"{name} {'found' if _tool(name) else 'missing'}" for name in names]
    triton = "found" if importlib.util.find_spec("triton") else "missing"
    return ", ".join([*found, f"triton {triton}"])


def _tool(name: str) -> str | None:
    beside = Path("/usr/local/cuda/bin") / name
    return shutil.which(name) or (str(beside) if beside.exists() else None)


# With one


def run(given: argparse.Namespace) -> int:
    """All of it."""
    start = time.monotonic()
    end = start + 60 * given.minutes
    card = check_machine()
    print(f"{card}; {_tools()}")
    try:
        library = build()
    except BuildError as error:
        raise Unfit(str(error)) from error
    print(f"built in {time.monotonic() - start:.0f} s")
    runner = Runner(library, FOLDER / "out")
    about = runner.about() | {"card": card}
    seconds = min(CHECKS_SECONDS, end - time.monotonic() - MARGIN)
    checks = runner.lines("bench.gpu.checks", seconds)
    about["sanitizer"] = {
        tool: runner.sanitize(tool, min(SANITIZER_SECONDS, end - time.monotonic() - MARGIN))
        for tool in SANITIZERS
    }
    parts: list[dict[str, Any]] = []
    if not given.no_measure:
        parts = runner.lines("bench.gpu.measure", end - time.monotonic() - MARGIN)
    about |= {"left_out": merged(parts, "left_out"), "problems": runner.problems}
    results = gather(parts, checks)
    for path in save(results, about, checks, given.out):
        print(f"wrote {path}")
    print(markdown(results, about, checks))
    print(f"{time.monotonic() - start:.0f} s in all")
    for problem in runner.problems:
        print(f"bench/gpu.sh: {problem}", file=sys.stderr)
    failed = [check["name"] for check in checks if check["outcome"] == "failed"]
    missed = [figure.name for figure in figures(results) if figure.met is False]
    return int(bool(failed or missed or runner.problems))


def check_machine() -> str:
    """The card's name.

    Raises:
        Unfit: There is no GPU, or something that it needs is missing.
    """
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
    if _tool("nvcc") is None:
        raise Unfit("nvcc is neither on PATH nor in /usr/local/cuda/bin: install the CUDA toolkit")
    return str(torch.cuda.get_device_name(0))


class Runner:
    """Runs each part in a process of its own, so that one that dies leaves the others alone.

    Args:
        library: Of `build.build`.
        folder: For what the parts write.

    Attributes:
        problems: What went wrong with a process, in words.
    """

    def __init__(self, library: Path, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._library, self._folder = library, folder
        self._environment = environment(library)
        self.problems: list[str] = []

    def lines(self, module: str, seconds: float) -> list[dict[str, Any]]:
        """What a module reports, one JSON object per line, up to where it stopped."""
        if seconds <= 0:
            self.problems.append(f"{module} was not run: the time was up")
            return []
        out = self._folder / f"{module.rsplit('.', 1)[-1]}.jsonl"
        out.unlink(missing_ok=True)
        command = [sys.executable, "-m", module, str(out), "--seconds", str(seconds)]
        try:
            # What has begun may end: so a little longer than it was told.
            done = subprocess.run(
                command, cwd=self._library, env=self._environment, timeout=seconds + 60
            )
            if done.returncode != 0:
                self.problems.append(f"{module} ended with {done.returncode}")
        except subprocess.TimeoutExpired:
            self.problems.append(f"{module} did not end within {seconds + 60:.0f} s")
        if not out.exists():
            return []
        return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines() if line]

    def sanitize(self, tool: str, seconds: float) -> str:
        """The verdict of one of compute-sanitizer's tools on a small case, in words."""
        sanitizer = _tool("compute-sanitizer")
        if sanitizer is None:
            return "compute-sanitizer is not there"
        if seconds <= 0:
            return "the time was up"
        command = [sanitizer, "--tool", tool, "--error-exitcode", "9"]
        if tool == "memcheck":
            command += ["--report-api-errors", "no"]
        command += [sys.executable, "-m", "bench.gpu.checks", "--small"]
        # Without the allocator's cache a tensor's end is the end of its memory.
        variables = {**self._environment, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        try:
            done = subprocess.run(
                command,
                cwd=self._library,
                env=variables,
                timeout=seconds,
                capture_output=True,
                text=True,
            )
        except subprocess.TimeoutExpired:
            return f"did not end within {seconds:.0f} s"
        (self._folder / f"{tool}.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
        return self._verdict(tool, done.returncode, done.stdout + done.stderr)

    def _verdict(self, tool: str, code: int, output: str) -> str:
        found_none = "ERROR SUMMARY: 0 errors" in output or "0 hazards displayed" in output
        if code == 0 and found_none and "stepped" in output:
            return "no errors"
        if code == 9:
            self.problems.append(f"{tool} found errors: see build/gpu/out/{tool}.txt")
            return "errors"
        last = (output.strip().splitlines() or ["it said nothing"])[-1]
        return f"it could not check (exit {code}): {last}"

    def about(self) -> dict[str, Any]:
        """Versions, commit and day."""
        program = (
            "import json, torch, triton; from bench.step.machine import provenance\n"
            "about = provenance(torch.device('cuda', 0))\n"
            "about |= {'triton': triton.__version__, 'cuda': torch.version.cuda}\n"
            "print(json.dumps(about))"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=self._library,
            env=self._environment,
            capture_output=True,
            text=True,
        )
        about: dict[str, Any] = {"date": datetime.date.today().isoformat()}
        if done.returncode == 0:
            about |= json.loads(done.stdout.splitlines()[-1])
        else:
            self.problems.append(f"the built package does not import: {done.stderr.strip()[-800:]}")
        return about | {"driver": _driver()}


def _driver() -> str:
    tool = _tool("nvidia-smi")
    if tool is None:
        return "unknown"
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True)
    return (done.stdout.splitlines() or ["unknown"])[0].strip()


def merged(parts: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any]:
    """All that the parts have under one key."""
    found: dict[str, Any] = {}
    for part in parts:
        found |= part.get(key, {})
    return found


def gather(parts: Sequence[Mapping[str, Any]], checks: Sequence[Mapping[str, Any]]) -> Results:
    """What `measure` reported, put together."""
    rows = [row for part in parts for row in part.get("rows", [])]
    copies = [part["copy_bandwidth"] for part in parts if "copy_bandwidth" in part]
    return Results(rows, copies[0] if copies else None, merged(parts, "extra"), checks)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
