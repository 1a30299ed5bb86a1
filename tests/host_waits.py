"""Who reads a tensor's value on the host, which on an accelerator waits for it."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

READS = torch.ops.aten._local_scalar_dense.default
"""What `.item()`, `float()`, `bool()` and `if` come down to."""


class HostWaits(TorchDispatchMode):
    """Counts reads by the package whose code asked for them, the innermost of those given."""

    def __init__(self, *packages: ModuleType) -> None:
        super().__init__()
        self.folders = {p.__name__: Path(str(p.__file__)).parent for p in packages}
        self.by_package: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is READS:
            self.by_package[self._asking()] += 1
        return func(*args, **(kwargs or {}))

    def _asking(self) -> str:
        frame = sys._getframe(2)
        while frame is not None:
            for name, folder in self.folders.items():
                if Path(frame.f_code.co_filename).is_relative_to(folder):
                    return name
            frame = frame.f_back  # type: ignore[assignment]
        return "other"
