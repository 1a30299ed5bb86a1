"""The compiled operators: loaded once, with a message that says what to do where they are not."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from adaptiverl.algorithms import ALGORITHMS

OPERATORS = (
    "observe_",
    "observe_numbers_",
    "advance_",
    "count_steps_",
    "reduce_alignment_",
    "update_",
    "read_groups_",
    "start_",
    "rewind_",
    "sum_squares_",
    "normals_",
    "philox_words_",
    *(f"{name}_step_" for name in ALGORITHMS),
)
"""All that work on tensors"""


def load_operators() -> None:
    """Load the compiled operators.

    Raises:
        ImportError: They are not built, or from an older source; the message says what to do.
    """
    try:
        importlib.import_module("adaptiverl._C")
    except ImportError as error:
        raise ImportError(
            "adaptiverl's compiled operators (adaptiverl._C) are missing or do not load: "
            f"{error}. Build them with `pip install --no-build-isolation -e .` in the source tree, "
            "or install a wheel; torch 2.10 or newer and a C++ compiler are needed"
        ) from error
    missing = [name for name in OPERATORS if not hasattr(torch.ops.adaptiverl, name)]
    if missing:
        raise ImportError(
            f"adaptiverl's compiled operators lack {', '.join(missing)}: they were built from "
            "another source than this. Build them again with "
            "`pip install --no-build-isolation -e .` in the source tree"
        )


def _changes_nothing_fake(*_: Any, **__: Any) -> None:
    """What every operator does to fake tensors: it returns nothing, and they have no values."""


load_operators()
for _operator in OPERATORS:
    torch.library.register_fake(f"adaptiverl::{_operator}", _changes_nothing_fake)
