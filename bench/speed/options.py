"""The options that ``python -m bench.step`` and ``pytest bench/speed`` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.speed.shapes import SHAPES, SMALL_NETS


def whole_rounds(text: str) -> int:
    """A number of rounds; argparse turns the ValueError into its own message."""
    rounds = int(text)
    if rounds < 2:
        raise ValueError(f"rounds must be 2 or more, got {rounds}")
    return rounds


def add_options(add: Callable[..., Any]) -> None:
    """Give them to argparse's or pytest's parser."""
    names = ", ".join(SHAPES)
    add(
        "--parameters",
        type=lambda text: [*SMALL_NETS] if text == "small-nets" else text.split(","),
        default=["gpt2-small"],
        help=f"whose shapes, with commas between: {names}; or 'small-nets', the last three",
    )
    add(
        "--rounds",
        type=whole_rounds,
        help="steps measured of each, 2 or more (15 of a large model, 501 of a small one)",
    )
    add("--in-a-row", type=int, default=1, help="steps of a contender in each round (1)")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=device, help="default: cuda where there is one, else cpu")
