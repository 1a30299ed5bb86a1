"""The build: one binary on the stable ABI, and errors that say what to install."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

import adaptiverl
from adaptiverl import backends
from adaptiverl.backends import operators, placement

ROOT = Path(__file__).parent.parent
EXTENSION = Path(importlib.import_module("adaptiverl._C").__file__ or "")


def build(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The extension's build, in a folder of its own."""
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(tmp_path / "lib")]
    command += ["--build-temp", str(tmp_path / "temp")]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_installed_wheel_is_what_runs() -> None:
    if os.environ.get("ADAPTIVERL_EXPECT_WHEEL") != "1":
        pytest.skip("ADAPTIVERL_EXPECT_WHEEL is not 1: these are the tests of the source tree")
    site = Path(sysconfig.get_path("purelib"))  # of this environment, which may lie in the tree
    assert site in Path(adaptiverl.__file__).parents
    assert site in EXTENSION.parents


def test_one_binary_for_every_python() -> None:
    assert EXTENSION.name == "_C.abi3.so"
    assert EXTENSION.name.endswith(tuple(importlib.machinery.EXTENSION_SUFFIXES))


def test_the_binary_needs_no_symbol_outside_the_stable_abi() -> None:
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", str(EXTENSION)], capture_output=True, text=True, check=True
    )
    undefined = [line.split()[-1].split("@")[0] for line in listed.stdout.splitlines()]
    mangled = [name for name in undefined if re.match(r"_ZN?K?(2at|3c10|5torch)", name)]
    assert mangled == []
    weak = {line.split()[-1] for line in listed.stdout.splitlines() if " w " in line}
    python = {name for name in undefined if name.lstrip("_").startswith("Py")}
    assert python == {"PyModule_Create2", "PyModule_AddStringConstant", "_Py_Dealloc"}
    if placement.has_cuda_controller():
        assert "aoti_torch_get_current_cuda_stream" in weak


@pytest.mark.skipif(not placement.has_cuda_controller(), reason="built without CUDA")
def test_libtorch_is_needed_so_that_the_cuda_symbols_bind() -> None:
    listed = subprocess.run(
        ["readelf", "-d", str(EXTENSION)], capture_output=True, text=True, check=True
    )
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", listed.stdout)
    assert {"libtorch.so", "libtorch_cpu.so", "libc10.so"} <= set(needed)
    assert "libtorch_cuda.so" not in needed  # which a CPU build of torch does not have
    assert not [name for name in needed if "cudart" in name or "python" in name]


def test_the_binary_says_which_cards_it_has_code_for() -> None:
    assert (placement.cuda_architectures() != ()) == placement.has_cuda_controller()
    if not placement.has_cuda_controller():
        pytest.skip("built without CUDA: there is no machine code to list")
    tool = _cuobjdump()
    if tool is None:
        pytest.skip("cuobjdump is neither on PATH, in /usr/local/cuda/bin nor in triton")
    listed = subprocess.run(
        [tool, "--list-elf", "--list-ptx", str(EXTENSION)],
        capture_output=True,
        text=True,
        check=True,
    )
    code = {(int(a), int(b)) for a, b in re.findall(r"sm_(\d+)(\d)\.cubin", listed.stdout)}
    ptx = {(int(a), int(b)) for a, b in re.findall(r"sm_(\d+)(\d)\.ptx", listed.stdout)}
    assert code == set(placement.cuda_architectures())
    assert ptx == {max(code)}


def _cuobjdump() -> str | None:
    found = shutil.which("cuobjdump", path=f"{os.environ['PATH']}:/usr/local/cuda/bin")
    if found is None and importlib.util.find_spec("triton") is not None:
        from triton import knobs

        found = knobs.nvidia.cuobjdump.path
    return found


def test_the_operators_are_registered() -> None:
    for name in ("observe_", "advance_", "update_", "sum_squares_", "adamw_step_"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"adaptiverl::{name}", "CPU"), name
    assert "CPU pass compiled" in backends.describe()


@pytest.mark.source_tree
def test_without_nvcc_the_build_says_so(tmp_path: Path) -> None:
    # Nothing of it is run: without the optimiser it is there three times as soon.
    compiler = tmp_path / "c++"
    compiler.write_text(f'#!/bin/sh\nexec {os.environ.get("CXX", "c++")} "$@" -O0\n')
    compiler.chmod(0o700)
    done = build(tmp_path, ADAPTIVERL_CUDA="0", CC=str(compiler), CXX=str(compiler))
    assert done.returncode == 0, done.stderr
    assert "no CUDA" in done.stdout
    assert list(tmp_path.glob("lib/**/_C.abi3.so"))


@pytest.mark.source_tree
def test_a_wrong_choice_of_cuda_is_refused(tmp_path: Path) -> None:
    done = build(tmp_path, ADAPTIVERL_CUDA="yes")
    assert done.returncode != 0
    assert "ADAPTIVERL_CUDA must be 0 or 1, got 'yes'" in done.stderr


@pytest.mark.source_tree
def test_cuda_demanded_without_nvcc_says_what_to_install(tmp_path: Path) -> None:
    if Path("/usr/local/cuda/bin/nvcc").exists():
        pytest.skip("nvcc is at /usr/local/cuda, where the build always looks")
    done = build(tmp_path, ADAPTIVERL_CUDA="1", CUDA_HOME="", CUDA_PATH="", PATH="/nowhere")
    assert done.returncode != 0
    assert "install the CUDA toolkit, or set CUDA_HOME" in done.stderr


@pytest.mark.source_tree
def test_a_missing_compiler_says_what_to_install(tmp_path: Path) -> None:
    done = build(tmp_path, ADAPTIVERL_CUDA="0", CC="/nowhere/cc", CXX="/nowhere/c++")
    assert done.returncode != 0
    assert "apt-get install g++" in done.stderr


def test_operators_of_another_source_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "OPERATORS", (*operators.OPERATORS, "of_tomorrow_"))
    with pytest.raises(ImportError, match=r"lack of_tomorrow_: .* Build them again with"):
        operators.load_operators()
