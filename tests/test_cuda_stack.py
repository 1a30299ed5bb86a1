"""`make cuda-stack` where something is missing: it says what, in a line, before it installs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import cuda_stack
import pytest
import wheels
from cuda_stack import Stack


class PlatformError(Exception):
    """As setuptools' own."""


def no_nvcc() -> str:
    raise PlatformError("install the CUDA toolkit, or set CUDA_HOME")


@pytest.fixture
def _nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Path:
        raise AssertionError("it should not have come to this")

    monkeypatch.setattr(cuda_stack, "build_wheel", fail)
    monkeypatch.setenv("ADAPTIVERL_CUDA", "1")


def find(monkeypatch: pytest.MonkeyPatch, nvcc: Callable[[], str | None]) -> None:
    found = {"find_nvcc": nvcc, "PlatformError": PlatformError}
    monkeypatch.setattr(cuda_stack.runpy, "run_path", lambda path, run_name: found)


@pytest.mark.usefixtures("_nothing_is_built")
@pytest.mark.parametrize(
    ("nvcc", "compiler", "said"),
    [
        (no_nvcc, "true", "no nvcc, which compiles the CUDA controller: install the CUDA toolkit"),
        (lambda: None, "true", "ADAPTIVERL_CUDA=0 leaves out what this command is about"),
        (lambda: "nvcc", "/nowhere/c++", "no C++ compiler (/nowhere/c++): apt-get install g++"),
    ],
    ids=["nvcc", "not wanted", "g++"],
)
def test_what_is_missing_is_said(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    nvcc: Callable[[], str | None],
    compiler: str,
    said: str,
) -> None:
    find(monkeypatch, nvcc)
    monkeypatch.setenv("CXX", compiler)
    assert cuda_stack.main(["cuda"]) == 2
    assert f"cuda-stack: {said}" in capsys.readouterr().err


def test_every_stack_has_an_outcome_and_one_that_fails_ends_with_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel, python = Path("adaptiverl.whl"), Path("python")
    stacks = [Stack(name, lambda: python, (name,)) for name in ("old", "new", "odd")]
    monkeypatch.setattr(cuda_stack, "STACKS", stacks)
    monkeypatch.setattr(cuda_stack, "check_compilers", lambda: None)
    monkeypatch.setattr(cuda_stack, "build_wheel", lambda: wheel)
    monkeypatch.setattr(cuda_stack, "pip", lambda *_: None)
    monkeypatch.setattr(cuda_stack, "said_by", lambda *_: "described")

    def tests_of(command: list[str], **_: Any) -> CompletedProcess[str]:
        fails = command[-1] == "tests/test_new.py"
        return CompletedProcess(command, int(fails), stdout=f"said by {command[-1]}")

    monkeypatch.setattr(cuda_stack.subprocess, "run", tests_of)
    assert cuda_stack.main([]) == 1
    told = capsys.readouterr().out
    assert all(f"described\nsaid by tests/test_{s.name}.py" in told for s in stacks)
    assert re.search(r"old +passed in .*\nnew +FAILED in .*\nodd +passed in", told)
    assert cuda_stack.main(["odd", "old"]) == 0


def test_a_command_that_fails_shows_its_last_lines() -> None:
    with pytest.raises(cuda_stack.Unfit, match=r"(?s)third line.*it broke \(exit 3;"):
        cuda_stack.run(["sh", "-c", "echo first line; echo third line >&2; exit 3"], "it broke")


def test_an_unknown_stack_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cuda_stack.main(["rocm"])
    assert "unknown stacks ['rocm']: there are cpu, cuda, newest" in capsys.readouterr().err


def test_every_test_it_names_is_there() -> None:
    for stack in cuda_stack.STACKS:
        for name in stack.tests:
            assert (cuda_stack.ROOT / "tests" / f"test_{name}.py").exists(), name


# --- make wheels --------------------------------------------------------------------------------

NM = """\
                 w __gmon_start__
                 U aoti_torch_get_numel
                 U dlopen@GLIBC_2.34
                 U exp@GLIBC_2.29
                 U fopen@GLIBC_2.2.5
                 U nftw@GLIBC_2.3.3
                 U _ZSt9terminatev@GLIBCXX_3.4
                 U gettid@GLIBC_2.28
"""


def test_what_needs_a_newer_c_library_is_named() -> None:
    assert wheels.too_new(NM) == ["dlopen (glibc 2.34)", "exp (glibc 2.29)"]
    assert wheels.too_new("") == []


def test_the_workflow_makes_the_wheel_that_make_wheels_makes() -> None:
    config = (wheels.ROOT / "pyproject.toml").read_text().replace("\\\n", "")
    (repair,) = re.findall(r'^repair-wheel-command = """(.*)"""$', config, re.MULTILINE)
    excluded = " ".join(f"--exclude {name}" for name in wheels.EXCLUDED)
    assert repair == f"auditwheel repair --plat {wheels.TAG} {excluded} -w {{dest_dir}} {{wheel}}"
    assert wheels.TAG == "manylinux_{}_{}_x86_64".format(*wheels.NEWEST_GLIBC)
    uploaded = (wheels.ROOT / ".github/workflows/wheels.yml").read_text()
    assert f"-cp310-abi3-{wheels.TAG}.whl" in uploaded
    assert set(re.findall(r"tests/test_(\w+)\.py", uploaded)) >= set(wheels.STACK.tests)


def test_the_sources_have_all_that_is_compiled() -> None:
    """And the version, and the tools, are those that are tested here."""
    manifest = (wheels.ROOT / "MANIFEST.in").read_text()
    assert "recursive-include csrc *\n" in manifest
    config = (wheels.ROOT / "pyproject.toml").read_text()
    pinned = (wheels.ROOT / "requirements-demo.txt").read_text().splitlines()
    for package in ("setuptools", "torch"):
        (line,) = [line for line in pinned if line.startswith(f"{package}==")]
        assert f'{line}",\n' in config
