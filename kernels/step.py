"""The pass: one step of every tensor of a device and dtypes, in one launch, for any algorithm."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import ModuleType

import torch
from adaptiverl.kernels import adamw, lion, sgd
from adaptiverl.kernels.chunks import CHUNK, on_device
from adaptiverl.kernels.codecs import CODECS
from adaptiverl.kernels.rounding import HALVES
from adaptiverl.kernels.step_kernel import step_kernel
from adaptiverl.kernels.walk import WARPS, block_size, neighbours
from torch import Tensor

ELEMENTS: dict[str, ModuleType] = {"adamw": adamw, "sgd": sgd, "lion": lion}
"""What each algorithm does with an element, by its name"""

SLOTS = 3
"""Columns of the address table for an algorithm's own state"""


def register_limit(
    architecture: int,
    slots: int,
    noise_and_sums: bool,
    rounds: bool,
    coded: bool = False,
    error_terms: bool = False,
) -> int:
    """Registers per thread. Left to itself the compiler takes more for a few instructions less.

    Three slots, noise and sums do not fit 64 on sm_100 without spilling; on sm_75 they do by Triton
    3.7's compiler and not by 3.6's. Rounding by chance takes some more, and error terms beside
    three slots (amsgrad) still more.

    Args:
        architecture: 90 for sm_90.
        slots: How many are kept.
        noise_and_sums: With both.
        rounds: Something is rounded by chance.
        coded: Slots are kept in blocks of codes.
        error_terms: Parameters have error terms.
    """
    if coded:
        if not noise_and_sums:
            return 88
        # As many programs run at once with 96 as with 88.
        return 104 if architecture >= 100 else 96 if error_terms else 88
    everything = slots == SLOTS and noise_and_sums
    if slots == SLOTS and error_terms and rounds:
        return 80 if not everything else 112 if architecture >= 100 else 88
    if rounds and (everything or architecture >= 100):
        return 88
    if everything and architecture < 80:
        return 72
    return 88 if everything and architecture >= 100 else 64


def constants(
    algorithm: str,
    param_dtype: torch.dtype,
    grad_dtype: torch.dtype,
    slot_dtypes: Sequence[torch.dtype],
    noise_on_parameter: bool,
    stochastic_rounding: bool = False,
    error_terms: bool = False,
) -> dict[str, object]:
    """What a kernel is compiled for, by the names of its arguments; arguments as in `step`."""
    dtypes = (param_dtype, grad_dtype, *slot_dtypes, *([torch.int8] if error_terms else []))
    round_param = stochastic_rounding and param_dtype in HALVES
    element = ELEMENTS[algorithm]
    slots = [CODECS[dtype] for dtype in slot_dtypes]
    slots += [None] * (SLOTS - len(slots))
    return {
        "PARAM_CODEC": CODECS[param_dtype],
        "GRAD_CODEC": CODECS[grad_dtype],
        "ERRORS": error_terms,
        **{f"SLOT{i}": codec for i, codec in enumerate(slots)},
        "SCALARS": element.scalars,
        "GRADIENT": element.gradient,
        "DIRECTION": element.direction,
        "STATE": element.state,
        "PARAMETER": element.parameter,
        "ROUND": round_param or any(dtype != torch.float32 for dtype in slot_dtypes),
        "ROUND_PARAM": round_param,
        "NEIGHBOURS": neighbours(dtypes),
        "NOISE_ON_PARAMETER": noise_on_parameter,
        "CHUNK": CHUNK,
        "BLOCK": block_size(dtypes),
    }


def step(
    rows: Tensor,
    chunks: Tensor,
    state: Tensor,
    groups: Tensor,
    effective: Tensor,
    squares: Tensor | None,
    gradient_scale: Tensor | None,
    sums: Tensor | None,
    partials: Tensor,
    finished: Tensor,
    *,
    algorithm: str,
    param_dtype: torch.dtype,
    grad_dtype: torch.dtype,
    slot_dtypes: Sequence[torch.dtype],
    noise_on_parameter: bool = False,
    stochastic_rounding: bool = False,
    error_terms: bool = False,
) -> None:
    """One step of every tensor in place, in one launch; the twin of `reference.step`.

    `step` and `mu_product` are already those of this step. Ends at once on the device where the
    step is skipped. All that changes between steps is read from memory.

    Args:
        rows: The address table, int64 [tensors, 14]; `maximize` is a column of it.
        chunks: `chunk_table` of its sizes, int32 [chunks, 2].
        state: The controller's state, float64.
        groups: float64 [groups, 5].
        effective: float64 [groups, 2]: lr and momentum of this step.
        squares: Σ g² (or Σ p²) of each whole logical tensor, float64 [tensors], read where the
            noise is not 0; ``None`` leaves noise out of the kernel.
        gradient_scale: 0-d float64 factor on every gradient; ``None`` is 1.
        sums: float64 [tensors, 3], overwritten with `sums.ALIGNMENT`; ``None`` leaves them out of
            the kernel.
        partials: float32 [chunks, 3], from `partial_sums`; not touched without `sums`.
        finished: int32 [tensors], likewise.
        algorithm: A key of `ELEMENTS`.
        param_dtype: The parameters' dtype.
        grad_dtype: The gradients' dtype.
        slot_dtypes: Of the algorithm's state that the rows have, the first so many of its slots;
            all rows of a launch have the same.
        noise_on_parameter: Add the noise to the parameter after its update.
        stochastic_rounding: Round parameters of 16 bits by chance, as slots of 16 bits always are
            (method.md#storage).
        error_terms: The rows have error terms beside their parameters (method.md#error-term).
    """
    if len(chunks) == 0:
        return
    noise_and_sums = squares is not None and sums is not None
    compiled = constants(
        algorithm,
        param_dtype,
        grad_dtype,
        slot_dtypes,
        noise_on_parameter,
        stochastic_rounding,
        error_terms,
    )
    limit = register_limit(
        _architecture(rows.device),
        len(slot_dtypes),
        noise_and_sums,
        bool(compiled["ROUND"]),
        torch.int8 in slot_dtypes,
        error_terms,
    )
    with on_device(rows.device):
        step_kernel[(len(chunks),)](
            rows,
            chunks,
            state,
            groups,
            effective,
            squares,
            gradient_scale,
            sums,
            partials,
            finished,
            **compiled,
            num_warps=WARPS,
            maxnreg=limit,
        )


@functools.cache
def _architecture(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
