"""`make cuda-stack`: one wheel file under each torch that it has to work with, without a GPU.

A CUDA build of torch can be installed and loaded where there is no GPU. What a GPU machine would
stumble over then shows here: symbols that do not bind, another Triton, what this torch's optimizers
do otherwise. Names of stacks may be given; without, all are run:

    cpu     the torch of requirements.txt, in an environment that borrows everything from .venv
    cuda    requirements-cuda.txt, in .venv-cuda
    newest  the newest torch that pip finds, in .venv-newest

Both environments are kept: what is there already is not installed again.
"""

from __future__ import annotations

import argparse
import os
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements-cuda.txt"

# What torch, its build or its Triton may do otherwise.
CONTRACT = ("build", "linking", "devices", "contract", "controller", "checkpoints", "amp")
STEPS = ("pass", "normals", "frozen", "sgd", "optimizer", "parameter_noise", "schedulers")
# Whether everything is packaged: these import what the others don't.
PACKAGE = ("integrations", "plots", "replay", "huggingface")
KERNELS = ("compile", "codegen", "kernels", "triton_backend", "alignment_sums", "gpu")


class Unfit(Exception):
    """Something is missing here; the message says what."""


@dataclass(frozen=True)
class Stack:
    """One environment to put the wheel into.

    Attributes:
        name: As the command line has it.
        prepare: Makes the environment, and returns its Python.
        tests: Names of test files, without ``test_``.
        cuda: Whether its torch has to be a CUDA build.
    """

    name: str
    prepare: Callable[[], Path]
    tests: tuple[str, ...]
    cuda: bool = False


def borrowing() -> Path:
    """An environment with all that this one has, but for the editable install."""
    folder = ROOT / "build" / "wheel" / "venv"
    python = venv(folder)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    there = Path(said_by(python, ask))
    borrowed = [path for path in sys.path if Path(path).name == "site-packages"]
    (there / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    return python


def pinned() -> Path:
    """The CUDA build of requirements-cuda.txt."""
    folder = ROOT / ".venv-cuda"
    stamp, wanted = folder / ".installed", f"{sys.version}\n{REQUIREMENTS.read_text()}"
    python = folder / "bin" / "python"
    if not stamp.exists() or stamp.read_text() != wanted:
        python = venv(folder)
        pip(python, "-r", str(REQUIREMENTS))
        stamp.write_text(wanted)
    return python


def newest() -> Path:
    """The newest torch of the registry, asked for every time."""
    folder = ROOT / ".venv-newest"
    stamp = folder / ".python"
    python = folder / "bin" / "python"
    if not stamp.exists() or stamp.read_text() != sys.version:
        python = venv(folder)
        stamp.write_text(sys.version)
    lines = REQUIREMENTS.read_text().splitlines()
    others = [line.split("#")[0].strip() for line in lines if not line.startswith("torch")]
    pip(python, "--upgrade", "torch", *filter(None, others))
    return python


STACKS = (
    # `make test` has run the rest on this torch.
    Stack("cpu", borrowing, ("build", "linking", "contract", *PACKAGE)),
    Stack("cuda", pinned, (*CONTRACT, *STEPS, *KERNELS), cuda=True),
    Stack("newest", newest, CONTRACT),
)


def venv(folder: Path) -> Path:
    """A new, empty environment's Python."""
    shutil.rmtree(folder, ignore_errors=True)
    run([sys.executable, "-m", "venv", "--without-pip", str(folder)], "cannot make " + str(folder))
    return folder / "bin" / "python"


def pip(python: Path, *arguments: str) -> None:
    """`pip install` into another environment."""
    own = [sys.executable, "-m", "pip", "--python", str(python)]
    install = ["install", "--quiet", "--disable-pip-version-check", *arguments]
    run([*own, *install], f"pip cannot install {shlex.join(arguments)}")


def run(command: list[str], failure: str, **environment: str) -> str:
    """What a command prints.

    Raises:
        Unfit: It ended with an error.
    """
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise Unfit(f"{last}\n{failure} (exit {done.returncode}; its last lines are above)")
    return done.stdout


def said_by(python: Path, program: str) -> str:
    """What a program prints in another environment."""
    return run([str(python), "-I", "-c", program], f"{python} fails").strip()


def check_compilers() -> None:
    """Ask for what the wheel is built with.

    Raises:
        Unfit: There is no C++ compiler, or no nvcc.
    """
    setup = runpy.run_path(str(ROOT / "setup.py"), run_name="setup")
    compiler = (os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "g++").split()[0]
    if shutil.which(compiler) is None:
        raise Unfit(f"no C++ compiler ({compiler}): apt-get install g++, or set CXX")
    os.environ.setdefault("ADAPTIVERL_CUDA", "1")
    try:
        found = setup["find_nvcc"]()
    except setup["PlatformError"] as error:
        raise Unfit(f"no nvcc, which compiles the CUDA controller: {error}") from error
    if found is None:
        raise Unfit("ADAPTIVERL_CUDA=0 leaves out what this command is about: unset it")


def build_wheel() -> Path:
    """The one wheel file, from this tree.

    Raises:
        Unfit: It does not build.
    """
    for stale in ("lib*", "temp*", "bdist*"):  # what was linked in another way would stay
        for folder in (ROOT / "build").glob(stale):
            shutil.rmtree(folder)
    target = ROOT / "build" / "wheel"
    shutil.rmtree(target, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-build-isolation", "--wheel-dir", str(target), "."]
    run(command, "the wheel does not build", ADAPTIVERL_PURE="0")
    (wheel,) = target.glob("*.whl")
    return wheel


def check(stack: Stack, python: Path, wheel: Path) -> bool:
    """Put the wheel in, run the tests, print what they say; whether they pass.

    Raises:
        Unfit: It is not the torch that this stack is for.
    """
    pip(python, "--no-deps", "--force-reinstall", str(wheel))
    described = said_by(python, "from adaptiverl import describe; print(describe())")
    if stack.cuda and said_by(python, "import torch; print(torch.version.cuda)") == "None":
        raise Unfit(f"pip's torch for {python} is no CUDA build: this stack needs one")
    tests = [f"tests/test_{name}.py" for name in stack.tests]
    command = [str(python), "-I", "-m", "pytest", "-q", "--durations=5", *tests]
    environment = os.environ | {"ADAPTIVERL_EXPECT_WHEEL": "1"}
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, **streams)
    # At once: another stack's tests may be running.
    print(f"\n== {stack.name}: {wheel.name}\n{described}\n{done.stdout}", flush=True)
    return done.returncode == 0


def check_all(stacks: list[Stack]) -> dict[str, str]:
    """What became of each stack. One is installed at a time; those that are there are tested.

    Raises:
        Unfit: Something is missing here.
    """
    check_compilers()
    wheel = build_wheel()

    def outcome_of(stack: Stack, prepared: Future[Path]) -> str:
        python, start = prepared.result(), time.monotonic()
        passed = check(stack, python, wheel)
        return f"{'passed' if passed else 'FAILED'} in {time.monotonic() - start:.0f} s"

    with ThreadPoolExecutor(1) as installer, ThreadPoolExecutor(os.cpu_count()) as testers:
        running = {
            stack.name: testers.submit(outcome_of, stack, installer.submit(stack.prepare))
            for stack in stacks
        }
        return {name: outcome.result() for name, outcome in running.items()}


def main(arguments: list[str] | None = None) -> int:
    """Run the stacks; 0 if all tests pass, 1 if some fail, 2 if something is missing here."""
    options: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(description=__doc__, **options)
    names = [stack.name for stack in STACKS]
    parser.add_argument("stack", nargs="*", metavar="STACK", help=f"of {', '.join(names)}")
    wanted = parser.parse_args(arguments).stack or names
    if unknown := set(wanted) - set(names):
        parser.error(f"unknown stacks {sorted(unknown)}: there are {', '.join(names)}")
    try:
        outcomes = check_all([stack for stack in STACKS if stack.name in wanted])
    except Unfit as error:
        print(f"cuda-stack: {error}", file=sys.stderr)
        return 2
    print("\n" + "\n".join(f"{name:<8}{outcome}" for name, outcome in outcomes.items()))
    return int(any(outcome.startswith("FAILED") for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
