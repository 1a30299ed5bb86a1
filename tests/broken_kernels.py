"""Kernels with one statement replaced: what a test of the real ones has to notice."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import adaptiverl

KERNELS = Path(__file__).parent.parent / "kernels"


def break_kernel(
    patch: pytest.MonkeyPatch, folder: Path, file: str, old: str, new: str
) -> dict[str, Any]:
    """Import the kernels once more, from a copy with a statement replaced, until `patch` undoes it.

    Only the kernels: the operators cannot be registered twice.

    Returns:
        Their modules by name.
    """
    copy = folder / "adaptiverl" / "kernels"
    shutil.copytree(KERNELS, copy, ignore=shutil.ignore_patterns("__pycache__"))
    text = (copy / file).read_text()
    assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {file}"
    (copy / file).write_text(text.replace(old, new))
    patch.setattr(adaptiverl, "__path__", [str(copy.parent), *adaptiverl.__path__])
    patch.setattr(adaptiverl, "kernels", adaptiverl.kernels)
    for name in [name for name in sys.modules if name.startswith("adaptiverl.kernels")]:
        patch.delitem(sys.modules, name)
    names = ("step", "statistics", "codegen")
    modules = {name: importlib.import_module(f"adaptiverl.kernels.{name}") for name in names}
    assert all(Path(str(m.__file__)).is_relative_to(folder) for m in modules.values())
    return modules
