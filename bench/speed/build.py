"""Builds the package into a folder of its own: nothing is installed, whatever packages there are.

setup.py runs beside a copy of csrc/ and without pyproject.toml, so any setuptools will do.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "gpu"


class BuildError(Exception):
    """The build failed; the message holds its last lines."""


def build(folder: Path = FOLDER) -> Path:
    library = stage(folder)
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(library)]
    done = subprocess.run(
        [*command, "--build-temp", str(folder / "temp")],
        cwd=folder / "tree",
        env={**os.environ, "ADAPTIVERL_CUDA": "1", "ADAPTIVERL_PURE": "0"},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0 or not list((library / "adaptiverl").glob("_C*.so")):
        last = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
        raise BuildError(f"the operators did not compile (exit {done.returncode}):\n{last}")
    return library


def stage(folder: Path) -> Path:
    library, tree = folder / "lib", folder / "tree"
    package = library / "adaptiverl"
    for source, target in (
        (ROOT / "adaptiverl", package),
        (ROOT / "kernels", package / "kernels"),
        (ROOT / "csrc", tree / "csrc"),
    ):
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(source, target, ignore=ignored, dirs_exist_ok=True)
    shutil.copy2(ROOT / "setup.py", tree / "setup.py")
    return library


def environment(library: Path) -> dict[str, str]:
    """Where a process finds the built package, the checks and these measurements, in that order."""
    places = [library, ROOT / "tests", ROOT]
    # Loading is part of no measurement, and compiled kernels stay out of the home folder.
    cache = {"TRITON_CACHE_DIR": str(library.parent / "triton")}
    return {**os.environ, **cache, "PYTHONPATH": os.pathsep.join(map(str, places))}
