"""What a row was made by: a digest of the task's and the method's definition and code.

Rows of another fingerprint are kept, but neither counted as done nor reported. Comments,
docstrings and layout do not change a fingerprint.
"""

import ast
import hashlib
import inspect
import re
from collections.abc import Iterable
from dataclasses import fields
from functools import cache, partial
from pathlib import Path
from typing import Any

from bench.methods import Method
from bench.run import cells
from bench.tasks import Task

ROOT = Path(__file__).resolve().parents[2]
NOT_IN_A_STEP = ("codegen", "plots", "version", "replay", "log")


def fingerprint(task: Task, method: Method) -> str:
    """Twelve hexadecimal digits that change when the numbers of a run may change."""
    files = [Path(cells.__file__), *_files(type(task)), *_files(type(method))]
    files += [Path(str(module.__file__)) for module in task.uses]
    if method.is_ours:
        files += _project()
    parts = [said(task), said(method), task.data_version(), *map(_code, files)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def said(value: Any) -> str:
    """A record's ``repr`` in which functions go by their names, not by where they lie."""
    if isinstance(value, partial):
        return f"{said(value.func)}{said([*value.args, *sorted(value.keywords.items())])}"
    if isinstance(value, (list, tuple)):
        return f"({', '.join(map(said, value))})"
    if isinstance(value, (Task, Method)):
        shown = [f"{f.name}={said(getattr(value, f.name))}" for f in fields(value) if f.repr]
        return f"{type(value).__qualname__}({', '.join(shown)})"
    return str(value.__qualname__) if callable(value) else repr(value)


def _files(kind: type) -> list[Path]:
    """Where a class and those it inherits from are written, as far as that is in bench/."""
    paths = [Path(inspect.getfile(c)) for c in kind.__mro__ if c.__module__.startswith("bench.")]
    return list(dict.fromkeys(paths))


def _project() -> Iterable[Path]:
    python = [*ROOT.glob("adaptiverl/**/*.py"), *ROOT.glob("kernels/*.py")]
    deciding = [path for path in python if path.stem not in NOT_IN_A_STEP]
    return sorted([*deciding, *filter(Path.is_file, ROOT.glob("csrc/**/*"))])


@cache
def _code(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    return python_code(text) if path.suffix == ".py" else c_code(text)


def python_code(text: str) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [part for part in body if not _is_text(part)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_text(node: ast.AST) -> bool:
    is_constant = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return is_constant and isinstance(node.value.value, str)  # type: ignore[attr-defined]


def c_code(text: str) -> str:
    return re.sub(r"\s", "", re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL))
