"""The parts of ``bench/gpu.sh``, each in a process of its own: one that dies leaves the others be.

A part is a module that writes JSON objects to a file, one a line, up to where it stopped.
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Object = dict[str, Any]
ABOUT = """
import json, torch, triton
from bench.machine import provenance
about = provenance(torch.device("cuda", 0))
print(json.dumps(about | {"triton": triton.__version__, "cuda": torch.version.cuda}))
"""


def find_tool(name: str) -> str | None:
    beside = Path("/usr/local/cuda/bin") / name
    return shutil.which(name) or (str(beside) if beside.exists() else None)


@contextlib.contextmanager
def part_of(
    name: str, arguments: Sequence[str], describe: Callable[[Object], str]
) -> Iterator[tuple[float, Callable[[Object], None]]]:
    """The part's side: its deadline of `time.monotonic`, and what takes each of its objects."""
    parser = argparse.ArgumentParser(prog=f"python -m {name}")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=240.0, help="begin nothing after these")
    given = parser.parse_args(arguments)
    begin = time.monotonic()
    with given.out.open("w", encoding="utf-8") as stream:

        def report(part: Object) -> None:
            print(json.dumps(part), file=stream, flush=True)
            print(f"{time.monotonic() - begin:6.1f} s  {describe(part)}", flush=True)

        yield begin + given.seconds, report


class Parts:
    """The command's side: runs modules of a built package."""

    def __init__(self, library: Path, environment: Mapping[str, str], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._library, self._environment, self._folder = library, environment, folder
        self.problems: list[str] = []

    def _run(
        self, command: Sequence[str], seconds: float, capture: bool = True, **more: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self._library, env={**self._environment, **more}, timeout=seconds,
            capture_output=capture, text=True,
        )  # fmt: skip

    def run(self, module: str, seconds: float) -> list[Object]:
        if seconds <= 0:
            self.problems.append(f"{module} was not run: the time was up")
            return []
        out = self._folder / f"{module}.jsonl"
        out.unlink(missing_ok=True)
        command = [sys.executable, "-m", module, str(out), "--seconds", str(seconds)]
        limit = seconds + 60  # what has begun may end
        try:
            status = self._run(command, limit, capture=False).returncode
            self.problems += [f"{module} ended with {status}"] if status else []
        except subprocess.TimeoutExpired:
            self.problems.append(f"{module} did not end within {limit:.0f} s")
        lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
        return [json.loads(line) for line in lines if line]

    def sanitize(self, tool: str, command: Sequence[str], seconds: float) -> str:
        """The verdict of one of compute-sanitizer's tools on a command of Python's, in words."""
        sanitizer = find_tool("compute-sanitizer")
        if sanitizer is None:
            return "compute-sanitizer is not there"
        if seconds <= 0:
            return "the time was up"
        options = ["--tool", tool, "--error-exitcode", "9"]
        options += ["--report-api-errors", "no"] if tool == "memcheck" else []
        try:
            # Without the allocator's cache a tensor's end is the end of its memory.
            done = self._run(
                [sanitizer, *options, sys.executable, *command],
                seconds,
                PYTORCH_NO_CUDA_MEMORY_CACHING="1",
            )
        except subprocess.TimeoutExpired:
            return f"did not end within {seconds:.0f} s"
        output = done.stdout + done.stderr
        (self._folder / f"{tool}.txt").write_text(output, encoding="utf-8")
        return self.verdict(tool, done.returncode, output)

    def verdict(self, tool: str, code: int, output: str) -> str:
        found_none = "ERROR SUMMARY: 0 errors" in output or "0 hazards displayed" in output
        if code == 0 and found_none and "stepped" in output:
            return "no errors"
        if code == 9:
            self.problems.append(f"{tool} found errors: see build/gpu/out/{tool}.txt")
            return "errors"
        last = (output.strip().splitlines() or ["it said nothing"])[-1]
        return f"it could not check (exit {code}): {last}"

    def about(self) -> Object:
        done, about = self._run([sys.executable, "-c", ABOUT], 120), {}
        if done.returncode == 0:
            about = json.loads(done.stdout.splitlines()[-1])
        else:
            self.problems.append(f"the built package does not import: {done.stderr.strip()[-800:]}")
        smi = find_tool("nvidia-smi")
        if smi is not None:
            query = [smi, "--query-gpu=driver_version", "--format=csv,noheader"]
            about["driver"] = self._run(query, 60).stdout.partition("\n")[0].strip()
        return about
