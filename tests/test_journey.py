"""A loss on its way to a parameter: docs/architecture.md lists whom it passes on the CPU."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

from adaptiverl import AdaptiveAdamW, AdaptiveSGD

PAGE = Path(__file__).parent.parent / "docs/architecture.md"
# Wrappers that set a mode of torch around a function, and a leaf that only chooses an operator.
DOORS = {"outside_autograd.<locals>.run", "outside_inference.<locals>.run"}


def names_on_the_stack(frame: FrameType | None) -> list[str]:
    """Functions of ours, the outermost first."""
    names: list[str] = []
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("adaptiverl."):
            names.append(frame.f_code.co_qualname)  # type: ignore[attr-defined]
        frame = frame.f_back
    return [name for name in reversed(names) if name not in DOORS]


def journey(kind: Any) -> list[str]:
    """Whom the calls of the three operators pass, in order, each once."""
    param = nn.Parameter(torch.ones(4))
    param.grad = torch.ones(4)
    optimizer = kind([param], lr=0.1)
    passed: dict[str, None] = {}
    loss = torch.tensor(1.0)

    def watch(frame: FrameType, event: str, what: Any) -> None:
        module = str(getattr(what, "__module__", ""))
        # Beside the way are the sums that the noise needs, and a look at the tensors.
        if event == "c_call" and "adaptiverl" in module and module != "adaptiverl._C":
            names = names_on_the_stack(frame)
            if names[-1] != "CpuBackend.sum_squares":
                passed.update(dict.fromkeys(names))

    for step in range(2):
        before = sys.getprofile()
        sys.setprofile(watch if step else None)
        try:
            optimizer.observe(loss)
            optimizer.step()
        finally:
            sys.setprofile(before)
    return list(passed)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="co_qualname came with Python 3.11")
@pytest.mark.parametrize("kind", [AdaptiveAdamW, AdaptiveSGD])
def test_a_loss_passes_whom_the_page_lists(kind: Any) -> None:
    listed = re.findall(r"^\d\. `([\w.]+)`", PAGE.read_text(), re.M)
    assert len(listed) <= 8
    assert journey(kind) == listed
