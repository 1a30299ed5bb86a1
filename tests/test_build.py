"""The build: one binary on the stable ABI, and errors that say what to install."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import re
import runpy
import shutil
import site
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import adaptiverl
from adaptiverl import backends
from adaptiverl.backends import operators, placement

ROOT = Path(__file__).parent.parent
EXTENSION = Path(importlib.import_module("adaptiverl._C").__file__ or "")
LIMITED_API = {
    "PyArg_ParseTuple",
    "PyBytes_AsString",
    "PyBytes_FromStringAndSize",
    "PyCapsule_GetPointer",
    "PyDict_GetItem",
    "PyErr_Clear",
    "PyErr_SetString",
    "PyExc_NotImplementedError",
    "PyList_GetItem",
    "PyList_Size",
    "PyList_Type",
    "PyModule_AddStringConstant",
    "PyModule_Create2",
    "PyObject_CallMethodObjArgs",
    "PyObject_GetAttr",
    "PyTuple_GetItem",
    "PyTuple_Pack",
    "PyTuple_Size",
    "PyTuple_Type",
    "PyType_GetFlags",
    "PyUnicode_InternFromString",
    "_Py_Dealloc",
    "_Py_FalseStruct",
    "_Py_NoneStruct",
}
"""What the module uses of Python: all in the stable ABI of 3.10 (its Misc/stable_abi.toml)"""


def setup_py(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a command of setup.py says."""
    return subprocess.run(
        [sys.executable, "setup.py", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def build(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The extension's build, in a folder of its own."""
    folders = ["--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
    return setup_py("build_ext", *folders, **environment)


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
    assert python - LIMITED_API == set()
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


ONLY_MODULE = """#!{python}
import os, sys
others = {{a for a in sys.argv if a.startswith("csrc/") and a != "csrc/module.cpp"}}
given = ["/dev/null" if a in others else a for a in sys.argv[1:]]
os.execvp({compiler[0]!r}, [*{compiler}, *["-x", "c++"] * bool(others), *given, "-O0"])
"""
"""A compiler for which every source but the one that is told of CUDA's choice is empty"""


@pytest.mark.source_tree
def test_without_nvcc_the_build_says_so(tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    words = os.environ.get("CXX", "c++").split()
    compiler.write_text(ONLY_MODULE.format(python=sys.executable, compiler=words))
    compiler.chmod(0o700)
    done = build(tmp_path, ADAPTIVERL_CUDA="0", CC=str(compiler), CXX=str(compiler))
    assert done.returncode == 0, done.stderr
    assert "no CUDA" in done.stdout
    (built,) = tmp_path.glob("lib/**/_C.abi3.so")
    assert b"cuda_architectures" in built.read_bytes()


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


NO_COMPILER = {"CC": "/nowhere/cc", "CXX": "/nowhere/c++"}


@pytest.mark.source_tree
@pytest.mark.parametrize("cuda", ["0", "1"])
def test_a_missing_compiler_says_what_to_install(tmp_path: Path, cuda: str) -> None:
    """With nvcc or without, which needs the compiler as well."""
    done = build(tmp_path, ADAPTIVERL_CUDA=cuda, ADAPTIVERL_PURE="0", **NO_COMPILER)
    assert done.returncode != 0
    assert "ADAPTIVERL_PURE=0, but there is no C++ compiler (/nowhere/c++): apt-get" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.source_tree
@pytest.mark.parametrize(
    ("environment", "reason"),
    [(NO_COMPILER, "there is no C++ compiler"), ({"ADAPTIVERL_PURE": "1"}, "ADAPTIVERL_PURE=1")],
    ids=["no compiler", "asked for"],
)
def test_where_nothing_is_compiled_the_wheel_is_for_any_machine(
    tmp_path: Path, environment: dict[str, str], reason: str
) -> None:
    commands = ["egg_info", "--egg-base", str(tmp_path), "build", "--build-base"]
    commands += [str(tmp_path / "build"), "bdist_wheel", "--bdist-dir", str(tmp_path / "tree")]
    done = setup_py(*commands, "--dist-dir", str(tmp_path), **environment)
    assert done.returncode == 0, done.stderr
    assert f"adaptiverl: nothing is compiled, and it will be slower: {reason}" in done.stdout
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "adaptiverl/kernels/reference.py" in names
    assert not [name for name in names if name.endswith(".so")]


@pytest.mark.source_tree
def test_old_setuptools_are_refused_in_a_line(tmp_path: Path) -> None:
    program = (
        "import runpy, sys, setuptools; setuptools.__version__ = '65.5.0'; "
        "sys.argv = ['setup.py', 'dist_info', '--output-dir', sys.argv[1]]; "
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "adaptiverl: setuptools 77 or newer is needed to build it, and this is 65.5.0: "
        "pip install --upgrade setuptools, or leave out --no-build-isolation\n"
    )


@pytest.fixture
def setup_functions() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "setup.py"), run_name="setup")


@pytest.mark.source_tree
@pytest.mark.parametrize(
    ("version", "reason"),
    [
        (None, "torch was not found (`pip install torch`"),
        ("__version__ = '2.9.1+cpu'", r"torch 2.10 or newer is needed, .* is 2.9.1\+cpu"),
        ("nothing", "is of an unknown version"),
        ("__version__ = '2.10.0'", None),
        ("__version__ = '3.0.0a0+git'", None),
    ],
)
def test_torch_is_found_where_it_cannot_be_imported(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    setup_functions: dict[str, Any],
    version: str | None,
    reason: str | None,
) -> None:
    """As in the environment that pip builds in, which hides that which it builds for."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(site, "getsitepackages", list)
    monkeypatch.setattr(site, "getusersitepackages", lambda: "/nowhere")
    if version is not None:
        (tmp_path / "torch").mkdir()
        (tmp_path / "torch" / "version.py").write_text(f"debug = False\n{version}\n")
    found = setup_functions["why_not_torch"]()
    assert (found is None) == (reason is None)
    if reason is not None:
        assert re.search(reason if "\\" in reason else re.escape(reason), found)


@pytest.mark.source_tree
@pytest.mark.parametrize(
    ("platform", "free_threaded", "reason"),
    [("darwin", 0, "on Linux only"), ("linux", 1, "a free-threaded Python"), ("linux", 0, None)],
)
def test_what_is_not_compiled_on_purpose(
    monkeypatch: pytest.MonkeyPatch,
    setup_functions: dict[str, Any],
    platform: str,
    free_threaded: int,
    reason: str | None,
) -> None:
    ask = sysconfig.get_config_var
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(
        sysconfig, "get_config_var", lambda n: free_threaded if n == "Py_GIL_DISABLED" else ask(n)
    )
    found = setup_functions["why_not_compiled"]()
    assert found is None if reason is None else reason in found


@pytest.mark.source_tree
def test_a_clone_finds_its_own_kernels() -> None:
    """Python that is started in it finds the source folder, whatever is installed."""
    program = (
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'ditable' not in repr(f)]; "
        "from adaptiverl.kernels import reference; print(reference.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == str(ROOT / "kernels" / "reference.py"), done.stderr


def test_operators_of_another_source_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "OPERATORS", (*operators.OPERATORS, "of_tomorrow_"))
    with pytest.raises(ImportError, match=r"lack of_tomorrow_: .* Build them again with"):
        operators.load_operators()
