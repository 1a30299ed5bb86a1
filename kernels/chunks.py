"""How a launch is cut into programs: one chunk of one tensor each.

The table depends on sizes only. Whether a chunk may take the wide path (addresses, a shard's place)
is read from the address table by the program itself, so gradients that move rebuild nothing here.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from adaptiverl.kernels.sums import ALIGNMENT
from torch import Tensor

CHUNK = 16384
"""Elements per program. A program's scalars are float64 work and its table reads wait for each
other: both are paid once per chunk, so chunks are large; 124M parameters still make 7,600."""


def chunk_table(numels: Sequence[int]) -> Tensor:
    """The chunks of a list of tensors, those of one tensor side by side.

    Args:
        numels: Elements of each tensor that lie here, in the order of the address table. An empty
            tensor gets one empty chunk, so that its sums are written like everyone's.

    Returns:
        int32 [chunks, 2] on the host: row of the address table, the chunk's number in its tensor.

    Raises:
        ValueError: If a size is negative or there are too many chunks for one launch.
    """
    sizes = torch.tensor(numels, dtype=torch.int64, device="cpu")
    if bool((sizes < 0).any()):
        raise ValueError(
            f"sizes must not be negative, got {int(sizes.min())}: pass each tensor's numel()"
        )
    counts = ((sizes + CHUNK - 1) // CHUNK).clamp(min=1)
    total = int(counts.sum())
    if total >= 2**31:
        raise ValueError(
            f"{total} chunks of {CHUNK} elements do not fit one launch of at most 2^31 - 1 "
            "programs: split the parameters over several optimizers"
        )
    rows = torch.repeat_interleave(torch.arange(len(numels), device="cpu"), counts)
    first = torch.cumsum(counts, 0) - counts
    return torch.stack([rows, torch.arange(total, device="cpu") - first[rows]], dim=1).to(
        torch.int32
    )


def partial_sums(
    chunks: int, tensors: int, device: torch.device, width: int = ALIGNMENT.width
) -> tuple[Tensor, Tensor]:
    """What the programs of a launch leave for each other; both kernels use it, in turn.

    Args:
        chunks: Rows of the chunk table.
        tensors: Rows of the address table.
        device: The tensors' device.
        width: Sums per chunk: as here for a pass with `sums`, 1 for the statistics alone.

    Returns:
        float32 [chunks, width], a chunk's sums; and int32 [tensors], how many chunks of a tensor
        are finished, which must be 0 at a launch's start and is so again at its end.
    """
    partials = torch.empty((chunks, width), dtype=torch.float32, device=device)
    finished = torch.zeros(tensors, dtype=torch.int32, device=device)
    return partials, finished


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Launches go to the current device, whatever device the tensors are on: make it theirs."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
