"""The operators, loaded once: the compiled ones, or those of them that there are in Python."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

from adaptiverl.algorithms import ALGORITHMS
from adaptiverl.backends import pure

logger = logging.getLogger("adaptiverl")

OPERATORS = (
    "observe_",
    "observe_numbers_",
    "advance_",
    "count_steps_",
    "reduce_alignment_",
    "update_",
    "pulse_",
    "read_groups_",
    "start_",
    "rewind_",
    "sum_squares_",
    "normals_",
    "philox_words_",
    *(f"{name}_step_" for name in ALGORITHMS),
)
"""All compiled ones that work on tensors; `pure.SCHEMAS` are those that there are in Python, too"""
FUNCTIONS = ("look", "cuda_architectures")
"""What the compiled module itself has"""

SOURCE = Path(__file__).resolve().parents[2]
"""The source tree, where this is one"""
COMPILER = "a C++ compiler (Debian, Ubuntu: apt-get install g++ python3-dev)"


def load_operators() -> str | None:
    """Load the compiled operators.

    Returns:
        None, or why they are not there: then nothing is loaded.

    Raises:
        ImportError: They are from an older source; the message says what to do.
        ValueError: ADAPTIVERL_PURE is neither 0 nor 1.
    """
    choice = os.environ.get("ADAPTIVERL_PURE", "")
    if choice not in ("", "0", "1"):
        raise ValueError(f"ADAPTIVERL_PURE must be 0 or 1, got {choice!r}")
    if choice == "1":
        return "ADAPTIVERL_PURE=1"
    if importlib.util.find_spec("adaptiverl._C") is None:
        return "nothing was compiled when it was installed"
    try:
        module = importlib.import_module("adaptiverl._C")
    except (ImportError, OSError) as error:
        return f"it does not load with torch {torch.__version__}: {error}"
    missing = [name for name in OPERATORS if not hasattr(torch.ops.adaptiverl, name)]
    missing += [name for name in FUNCTIONS if not hasattr(module, name)]
    if missing:
        raise ImportError(
            f"adaptiverl's compiled operators lack {', '.join(missing)}: they were built from "
            "another source than this. Build them again with "
            "`pip install --no-build-isolation -e .` in the source tree"
        )
    return None


def remedy() -> str:
    """What to do where the compiled operators are missing, in a sentence."""
    if sys.platform != "linux":
        return f"It is compiled on Linux only, and this is {sys.platform}."
    if (SOURCE / "csrc").is_dir():
        return (
            f"This is the source folder {SOURCE}: with torch and {COMPILER}, `pip install -e .` "
            "there compiles it; an installed adaptiverl is found from any other folder."
        )
    return (
        f"With {COMPILER} there, install it again for the torch that is here: "
        "`pip install --force-reinstall --no-deps --no-cache-dir` and what it was installed from."
    )


@cache
def say_what_is_slower() -> None:
    """A line in the log, once, where the compiled operators are missing.

    It is no warning where somebody asked for that.
    """
    if WHY_PURE is not None:
        asked = os.environ.get("ADAPTIVERL_PURE") == "1"
        logger.log(
            logging.INFO if asked else logging.WARNING,
            "adaptiverl runs without its compiled part (%s), so it is slower: the controller is "
            "Python on the CPU, where a GPU waits for every loss, and the step of tensors on the "
            "CPU is plain torch.%s",
            WHY_PURE,
            "" if asked else f" {remedy()}",
        )


def _changes_nothing_fake(*_: Any, **__: Any) -> None:
    """What every operator does to fake tensors: it returns nothing, and they have no values."""


WHY_PURE = load_operators()
"""Why the compiled operators are not there; None where they are"""
COMPILED: Any = None if WHY_PURE is not None else importlib.import_module("adaptiverl._C")
"""The compiled module; None where there is none. Nobody else may load it: its operators are then
registered, and once is all they can be."""
_library = None if WHY_PURE is None else pure.register()
for _operator in OPERATORS if WHY_PURE is None else pure.SCHEMAS:
    torch.library.register_fake(f"adaptiverl::{_operator}", _changes_nothing_fake)
