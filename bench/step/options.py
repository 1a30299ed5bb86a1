"""The options that ``python -m bench.step`` and ``pytest bench/step`` share."""

from __future__ import annotations

from typing import Any

import torch

from bench.step.shapes import MODELS

DEFAULT_ROUNDS = 15


def whole_rounds(text: str) -> int:
    """A number of rounds; argparse turns the ValueError into its own message."""
    rounds = int(text)
    if rounds < 2:
        raise ValueError(f"rounds must be 2 or more, got {rounds}")
    return rounds


def default_device() -> str:
    """CUDA where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


OPTIONS: dict[str, dict[str, Any]] = {
    "--parameters": {
        "choices": sorted(MODELS),
        "default": "gpt2-small",
        "help": "whose shapes; 'small' takes a second and says nothing about speed",
    },
    "--rounds": {
        "type": whole_rounds,
        "default": DEFAULT_ROUNDS,
        "help": f"steps measured of each, 2 or more (default {DEFAULT_ROUNDS})",
    },
    "--device": {"default": None, "help": "default: cuda where there is one, else cpu"},
}
