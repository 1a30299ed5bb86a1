"""What a row was made by: a digest of the task's and the method's definition and code.

Rows of another fingerprint are kept, but neither counted as done nor reported. Comments,
docstrings and layout do not change a fingerprint.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import re
import tokenize
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from bench.lr_robustness import cells
from bench.lr_robustness.methods import Method
from bench.lr_robustness.tasks import Task

ROOT = Path(__file__).resolve().parents[2]
NOT_IN_A_STEP = ("codegen", "plots", "version")
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENCODING, tokenize.ENDMARKER}


def fingerprint(task: Task, method: Method) -> str:
    """Twelve hexadecimal digits that change when the numbers of a run may change."""
    files = [Path(cells.__file__), *_files(type(task)), *_files(type(method))]
    files += [Path(str(module.__file__)) for module in task.uses]
    if method.is_ours:
        files += _project()
    parts = [repr(task), repr(method), task.data_version(), *map(_code, files)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _files(kind: type) -> list[Path]:
    """Where a class and those it inherits from are written, as far as that is in bench/."""
    paths = [Path(inspect.getfile(c)) for c in kind.__mro__ if c.__module__.startswith("bench.")]
    return list(dict.fromkeys(paths))


def _project() -> Iterable[Path]:
    """Everything that may decide a step of AdaptiveAdamW."""
    python = [
        path
        for folder in ("adaptiverl", "adaptiverl/law", "kernels")
        for path in ROOT.glob(f"{folder}/*.py")
    ]
    deciding = [path for path in python if path.stem not in NOT_IN_A_STEP]
    return sorted([*deciding, *ROOT.glob("csrc/**/*.*")])


@cache
def _code(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    return python_code(text) if path.suffix == ".py" else c_code(text)


def python_code(text: str) -> str:
    """Python source without comments, docstrings and spacing; blocks stay marked."""
    kept: list[str] = []
    starts_statement = True
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.INDENT:
            kept.append("{")
        elif token.type == tokenize.DEDENT:
            kept.append("}")
        elif token.type not in LAYOUT and not (token.type == tokenize.STRING and starts_statement):
            kept.append(token.string)
            starts_statement = False
        if token.type == tokenize.NEWLINE and not starts_statement:
            kept.append(";")
            starts_statement = True
    # Python 3.12 splits an f-string into more tokens: without spaces both come out alike.
    return re.sub(r"\s", "", " ".join(kept))


def c_code(text: str) -> str:
    """C++ source without comments and spacing."""
    return re.sub(r"\s", "", re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL))
