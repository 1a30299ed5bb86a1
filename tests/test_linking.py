"""What the extension's symbols bind to, as the loader itself tells, under the torch that is here.

An extension loads with its weak symbols null, and a call to one of those jumps to address 0. So it
shows nothing that `import adaptiverl` works; this does, and needs no GPU.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adaptiverl import backends
from adaptiverl.backends import placement

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="LD_DEBUG is glibc's: other loaders do not tell what binds"
)

EXTENSION = str(importlib.import_module("adaptiverl._C").__file__)
SHIMS = {
    "aoti_torch_get_current_cuda_stream",
    "torch_c10_cuda_check_msg",
    "torch_c10_cuda_free_error_msg",
}
"""What csrc/controller.cu asks of a torch that was built with CUDA, and of no other"""
HOOKS = {"__gmon_start__", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable"}
"""Of the compiler's own start files: null unless a program is profiled, or has transactions"""


def undefined_symbols(*options: str) -> set[str]:
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", "--format=posix", *options, EXTENSION],
        capture_output=True,
        text=True,
        check=True,
    )
    return {re.split(r"@| [Uwv]\b", line)[0] for line in listed.stdout.splitlines()}


@pytest.fixture(scope="module")
def bound_to(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The library that each of the extension's symbols is bound to in a fresh process."""
    folder = tmp_path_factory.mktemp("loader")
    loader = {"LD_DEBUG": "bindings", "LD_BIND_NOW": "1", "LD_DEBUG_OUTPUT": str(folder / "said")}
    subprocess.run(
        [
            sys.executable,
            "-c",
            f"import torch, adaptiverl._C as c; assert c.__file__ == {EXTENSION!r}",
        ],
        cwd=folder,
        env={**os.environ, **loader},
        check=True,
        capture_output=True,
        text=True,
    )
    line = re.compile(rf"binding file {re.escape(EXTENSION)} \[0\] to (.+) \[0\]: .* `(.+)'")
    said = "".join(path.read_text() for path in folder.glob("said.*"))
    return {symbol: library for library, symbol in line.findall(said)}


def test_every_undefined_symbol_binds(bound_to: dict[str, str]) -> None:
    absent = set() if torch.version.cuda else SHIMS
    assert bound_to
    assert undefined_symbols() - HOOKS - absent - set(bound_to) == set()


@pytest.mark.skipif(not placement.has_cuda_controller(), reason="built without CUDA")
def test_the_cuda_symbols_bind_to_libtorch_cuda(bound_to: dict[str, str]) -> None:
    assert undefined_symbols() >= SHIMS
    if torch.version.cuda is None:
        assert not SHIMS & set(bound_to)
        pytest.skip("this torch has no CUDA: the symbols are null, and nobody calls them")
    found = {symbol: Path(bound_to.get(symbol, "nothing")).name for symbol in SHIMS}
    assert found == dict.fromkeys(SHIMS, "libtorch_cuda.so")


def test_what_is_torchs_comes_from_this_torch(bound_to: dict[str, str]) -> None:
    theirs = {s for s in undefined_symbols() if s.startswith(("aoti_torch_", "torch_"))}
    assert theirs
    folder = Path(torch.__file__).parent / "lib"
    assert {Path(bound_to[s]).parent for s in theirs & set(bound_to)} == {folder}


def test_no_symbol_is_one_of_torchs_cxx_names() -> None:
    names = undefined_symbols("--demangle")
    assert any("std::" in name for name in names)  # names are demangled
    assert not [name for name in names if re.search(r"\b(at|c10|caffe2)::", name)]
    assert not [name for name in names if re.search(r"\btorch::", name)]


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch has no CUDA to describe")
def test_it_is_described_truthfully() -> None:
    said = backends.describe()
    assert f"on torch {torch.__version__}: " in said
    compiled = ", ".join("{}.{}".format(*c) for c in placement.cuda_architectures())
    if placement.has_cuda_controller() and not torch.cuda.is_available():
        assert f"CUDA controller compiled for compute capability {compiled} and later;" in said
        assert said.endswith("CUDA pass Triton")
