"""Builds `adaptiverl._C`: one binary for every torch from 2.10 and every Python from 3.10.

The operators use torch's stable ABI and the module Python's limited API. `csrc/controller.cu` is
compiled wherever nvcc is found, whether or not there is a GPU; ADAPTIVERL_CUDA=0 or 1 decides it by
hand. Where nothing can be compiled, adaptiverl is installed without its compiled part, and is
slower; ADAPTIVERL_PURE=0 or 1 decides that by hand.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CompileError, PlatformError

ROOT = Path(__file__).parent
CSRC = ROOT / "csrc"
# Older ones stop at pyproject.toml's `license`, with a page of traceback.
SETUPTOOLS = 77
# torch 2.10, the oldest whose stable ABI has what csrc/ needs.
TORCH = (2, 10)
TORCH_TARGET = "0x020a000000000000"
PYTHON_TARGET = "0x030A0000"
# Of the CUDA controller: code for each of these that nvcc knows.
CUDA_ARCHITECTURES = ("75", "80", "90", "100")

# No contraction into fused multiply-adds and no reassociation: every instruction set, vector body
# and tail computes the same bits, and the law is the same law in C++, CUDA and Python.
CXX_FLAGS = [
    "-std=c++17",
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
]
NVCC_FLAGS = ["-std=c++17", "-O3", "--fmad=false", "-Xcompiler", "-fPIC", "-DUSE_CUDA"]
# libtorch.so has no code of its own, but in a CUDA build of torch it needs libtorch_cuda.so, where
# the three weak symbols of csrc/controller.cu are. `import torch` loads libtorch_cuda for itself
# alone (RTLD_LOCAL): if the extension did not need it through libtorch.so, the symbols would stay
# null, and the first CUDA step would jump there. CPU builds of torch have a libtorch.so, too.
# Linkers drop a library that no symbol asks for, hence --no-as-needed; it holds for what comes
# after it, and these flags come last on the line.
CUDA_LINK_FLAGS = [
    "-lcudart_static",
    "-ldl",
    "-lrt",
    "-lpthread",
    "-Wl,--no-as-needed",
    "-ltorch",
]


def say(message: str) -> None:
    """Print what was chosen; `pip -v` shows it."""
    print(f"adaptiverl: {message}", flush=True)


def torch_root() -> Path | None:
    """Where the headers and libraries of the environment's torch are; None where there is none.

    pip builds in an environment of its own, in which torch cannot be imported; but it runs the
    Python that it installs for, which knows where that keeps its packages. Nothing of torch's is
    run here, so it need not be importable, nor downloaded once more.
    """
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent
    places = [sysconfig.get_path("platlib"), *site.getsitepackages(), site.getusersitepackages()]
    return next((r for place in places if (r := Path(place, "torch")).is_dir()), None)


def why_not_torch() -> str | None:
    """Why there is no torch to compile against; None where there is."""
    root = torch_root()
    if root is None:
        return "torch was not found (`pip install torch`, then install adaptiverl once more)"
    found = re.search(r"__version__ = '((\d+)\.(\d+)[^']*)'", (root / "version.py").read_text())
    if found is None or (int(found[2]), int(found[3])) < TORCH:
        version = "of an unknown version" if found is None else found[1]
        return f"torch 2.10 or newer is needed, and the one in {root} is {version}"
    return None


def why_not_compiled() -> str | None:
    """What is missing to compile anything at all; None where there is everything."""
    if sys.platform != "linux":
        return f"it is compiled on Linux only, and this is {sys.platform}"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "a free-threaded Python loads no module of Python's limited API"
    command = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "g++"
    if shutil.which(shlex.split(command)[0]) is None:
        return (
            f"there is no C++ compiler ({command}): apt-get install g++ (Debian, Ubuntu) or dnf "
            "install gcc-c++ (Fedora), or set CXX"
        )
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "there is no Python.h: apt-get install python3-dev (Debian, Ubuntu)"
    return why_not_torch()


def why_pure() -> str | None:
    """Why adaptiverl is installed without its compiled part; None where it is compiled."""
    choice = os.environ.get("ADAPTIVERL_PURE", "")
    if choice not in ("", "0", "1"):
        raise PlatformError(f"ADAPTIVERL_PURE must be 0 or 1, got {choice!r}")
    if choice == "1":
        return "ADAPTIVERL_PURE=1 asks for that"
    reason = why_not_compiled()
    if choice == "0" and reason is not None:
        raise PlatformError(f"ADAPTIVERL_PURE=0, but {reason}")
    return reason


def find_nvcc() -> str | None:
    """The CUDA compiler to use, or None; ADAPTIVERL_CUDA=0|1 overrules what is found."""
    choice = os.environ.get("ADAPTIVERL_CUDA", "")
    if choice not in ("", "0", "1"):
        raise PlatformError(f"ADAPTIVERL_CUDA must be 0 or 1, got {choice!r}")
    if choice == "0":
        return None
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    candidates = [f"{home}/bin/nvcc" for home in homes if home]
    found = next((c for c in candidates if os.access(c, os.X_OK)), None) or shutil.which("nvcc")
    if found is None and choice == "1":
        raise PlatformError(
            "ADAPTIVERL_CUDA=1, but nvcc was found neither in CUDA_HOME, CUDA_PATH, "
            "/usr/local/cuda nor on PATH: install the CUDA toolkit, or set CUDA_HOME"
        )
    return found


def architectures(nvcc: str) -> list[str]:
    """Those named above that this nvcc knows, the oldest first."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True)
    known = [a for a in CUDA_ARCHITECTURES if f"compute_{a}" in listed.stdout.split()]
    if not known:
        raise CompileError(
            f"{nvcc} knows none of the architectures {CUDA_ARCHITECTURES}: it is too old"
        )
    return known


def gencode(known: list[str]) -> list[str]:
    """nvcc's flags: code for each architecture, and PTX of the newest for later ones."""
    flags = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in known]
    return [*flags, f"-gencode=arch=compute_{known[-1]},code=compute_{known[-1]}"]


class BuildOperators(build_ext):
    """Compiles csrc/*.cpp with the host compiler and, where there is nvcc, csrc/*.cu with that."""

    def build_extension(self, ext: Extension) -> None:
        """Add what only torch and nvcc can tell, then build; say plainly what is missing."""
        torch = torch_root()
        if torch is None:
            raise PlatformError(f"{why_not_torch()}")
        includes = [torch / "include", torch / "include/torch/csrc/api/include"]
        # As system headers: their warnings are not ours.
        ext.extra_compile_args += [f"-isystem{path}" for path in includes]
        ext.library_dirs.append(str(torch / "lib"))
        ext.libraries += ["torch_cpu", "c10"]
        nvcc = find_nvcc()
        known = [] if nvcc is None else architectures(nvcc)
        # csrc/module.cpp hands it on: which cards the controller runs on is known before it does.
        ext.define_macros.append(("CUDA_ARCHITECTURES", f'"{" ".join(known)}"'))
        if nvcc is None:
            say(
                "no CUDA (nvcc not found, or ADAPTIVERL_CUDA=0): the controller is for the CPU only"
            )
        else:
            say(f"CUDA: compiling csrc/*.cu with {nvcc} for {', '.join(f'sm_{a}' for a in known)}")
            ext.extra_objects += self.compile_cuda(nvcc, known, includes)
            ext.library_dirs += cuda_libraries(nvcc)
            ext.extra_link_args += CUDA_LINK_FLAGS
        try:
            super().build_extension(ext)
        except CompileError as error:
            raise CompileError(
                f"{error}\nadaptiverl's operators did not compile; a C++17 compiler is needed. "
                "ADAPTIVERL_PURE=1 installs adaptiverl without them, which is slower"
            ) from error

    def compile_cuda(self, nvcc: str, known: list[str], includes: list[Path]) -> list[str]:
        """csrc/*.cu to object files, for the architectures that nvcc knows."""
        build = Path(self.build_temp)
        build.mkdir(parents=True, exist_ok=True)
        objects = []
        for source in sorted(CSRC.glob("*.cu")):
            target = build / f"{source.stem}_cuda.o"
            command = [
                nvcc,
                *NVCC_FLAGS,
                f"-DTORCH_TARGET_VERSION={TORCH_TARGET}",
                *gencode(known),
            ]
            command += [f"-isystem={path}" for path in includes]
            try:
                subprocess.run([*command, "-c", str(source), "-o", str(target)], check=True)
            except subprocess.CalledProcessError as error:
                raise CompileError(
                    f"nvcc could not compile {source.name} (exit {error.returncode}); "
                    "ADAPTIVERL_CUDA=0 builds without CUDA"
                ) from error
            objects.append(str(target))
        return objects


def cuda_libraries(nvcc: str) -> list[str]:
    """Where this toolkit keeps its static runtime."""
    home = Path(nvcc).resolve().parent.parent
    places = [
        home / "lib64",
        home / "lib",
        home / "targets/x86_64-linux/lib",
        home / "targets/sbsa-linux/lib",
    ]
    return [str(place) for place in places if (place / "libcudart_static.a").exists()]


def check_setuptools() -> None:
    """Ask for setuptools that can read pyproject.toml, where that is there to be read."""
    here = setuptools.__version__
    if (ROOT / "pyproject.toml").exists() and int(here.split(".")[0]) < SETUPTOOLS:
        raise PlatformError(
            f"setuptools {SETUPTOOLS} or newer is needed to build it, and this is {here}: "
            "pip install --upgrade setuptools, or leave out --no-build-isolation"
        )


def extension() -> Extension:
    """The compiled part."""
    return Extension(
        "adaptiverl._C",
        sources=[str(path.relative_to(ROOT)) for path in sorted(CSRC.glob("*.cpp"))],
        # This file, too: what was linked in another way is linked again.
        depends=["setup.py", *(str(path.relative_to(ROOT)) for path in sorted(CSRC.rglob("*.*")))],
        define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET), ("Py_LIMITED_API", PYTHON_TARGET)],
        extra_compile_args=list(CXX_FLAGS),
        py_limited_api=True,
        language="c++",
    )


def main() -> None:
    """Describe what is compiled, if anything is; pyproject.toml has the rest."""
    try:
        check_setuptools()
        reason = why_pure()
        if reason is not None:
            say(f"nothing is compiled, and it will be slower: {reason}")
            setup()
            return
        setup(
            ext_modules=[extension()],
            cmdclass={"build_ext": BuildOperators},
            options={"bdist_wheel": {"py_limited_api": "cp310"}},
        )
    except BaseError as error:
        raise SystemExit(f"adaptiverl: {error}") from error


if __name__ == "__main__":
    main()
