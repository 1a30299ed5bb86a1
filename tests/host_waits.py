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


AT_HOME = {"backends/reference.py", "step/overlaps.py"}
"""Files of ours that read σ, and only where the CPU is the device, or tables on the host."""


class HostWaits(TorchDispatchMode):
    """Counts reads by the file whose code asked for them, the innermost of the packages given."""

    def __init__(self, *packages: ModuleType) -> None:
        super().__init__()
        self.folders = {p.__name__: Path(str(p.__file__)).parent for p in packages}
        self.reads: Counter[tuple[str, str]] = Counter()

    def of(self, package: str) -> Counter[str]:
        """The reads of one package, by file; those of none of them are ``"other"``'s."""
        return Counter({file: n for (name, file), n in self.reads.items() if name == package})

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is READS:
            self.reads[self._asking()] += 1
        return func(*args, **(kwargs or {}))

    def _asking(self) -> tuple[str, str]:
        frame = sys._getframe(2)
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            for name, folder in self.folders.items():
                if path.is_relative_to(folder):
                    return name, str(path.relative_to(folder))
            frame = frame.f_back  # type: ignore[assignment]
        return "other", ""
