"""How the elements of a parameter, a gradient or a slot are stored, and who can walk them.

The kernels' side of a codec is kernels/codecs.py and csrc/codecs.h (method.md#storage).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adaptiverl.kernels import blocks
from adaptiverl.kernels.block_tensor import Blocks, shown
from adaptiverl.kernels.rounding import HALVES
from adaptiverl.ranks.dtensors import as_placed, to_local


@dataclass(frozen=True)
class Codec:
    """One way to store a tensor's elements.

    Attributes:
        dtype: What they are stored in.
        walkers: Names of the backends that walk slots stored so.
    """

    dtype: torch.dtype
    walkers: frozenset[str]

    @property
    def state_dtype(self) -> torch.dtype:
        """What asks for it, of `STATE_DTYPES`."""
        return self.dtype

    def zeros_beside(self, param: Tensor) -> Tensor:
        """A slot of a parameter's shape and layout, before the first step."""
        return torch.zeros_like(param, dtype=self.dtype, memory_format=torch.preserve_format)

    def adopt(self, param: Tensor, value: Any) -> Tensor:
        """A loaded entry as it is stored; the tensor itself where it is already.

        Args:
            param: Whose slot it is; on its device.
            value: A tensor, or the number that a checkpoint made of a 0-d one.
        """
        return as_dtype(decoded(value), self.dtype, param.device)

    def loses(self, value: Tensor, kept: Tensor) -> bool:
        """Whether a loaded entry was converted to be kept so.

        Args:
            value: What was loaded.
            kept: What `adopt` made of it.
        """
        return value.dtype != self.dtype


@dataclass(frozen=True)
class BlockCodec(Codec):
    """Blocks of 8-bit numbers with a scale each (method.md#blocks); the entry is a `Blocks`.

    Attributes:
        kind: How the numbers are coded.
    """

    kind: blocks.Map

    @property
    def state_dtype(self) -> torch.dtype:
        """See `Codec`; of either sign."""
        return torch.int8

    def zeros_beside(self, param: Tensor) -> Tensor:
        """See `Codec`; in C order."""
        local = to_local(param)
        return as_placed(Blocks.zeros(local.shape, self.kind, local.device), param)

    def adopt(self, param: Tensor, value: Any) -> Tensor:
        """See `Codec`; other numbers are rounded to nearest."""
        local = to_local(value) if isinstance(value, Tensor) else None
        if isinstance(local, Blocks) and (local.kind, local.device) == (self.kind, param.device):
            return value  # type: ignore[no-any-return]
        whole = as_dtype(decoded(value), torch.float32, param.device)
        return as_placed(Blocks.of(to_local(whole), self.kind), whole)

    def loses(self, value: Tensor, kept: Tensor) -> bool:
        """See `Codec`; a checkpoint has float32, which is what was kept where it is still."""
        return not torch.equal(shown(to_local(kept)), to_local(value).to(kept))


@dataclass(frozen=True)
class ErrorCodec(Codec):
    """The error terms of 8 bits beside bfloat16 parameters (method.md#error-term)."""

    def adopt(self, param: Tensor, value: Any) -> Tensor:
        """See `Codec`; numbers of another dtype, as a loader leaves them, are rounded."""
        if isinstance(value, Tensor) and value.dtype == self.dtype:
            return value.to(param.device)
        numbers = as_dtype(value, torch.float32, param.device).nan_to_num()
        return numbers.round().clamp(-128, 127).to(self.dtype)


EVERYWHERE, IN_PLAIN_TORCH = frozenset({"cpu", "triton", "reference"}), frozenset({"reference"})

CODECS = {
    codec.dtype: codec
    for codec in (
        Codec(torch.float32, EVERYWHERE),
        Codec(torch.bfloat16, EVERYWHERE),
        Codec(torch.float64, IN_PLAIN_TORCH),
        Codec(torch.complex64, IN_PLAIN_TORCH),
        Codec(torch.complex128, IN_PLAIN_TORCH),
    )
}
"""Those of slots, by what they are stored in"""
SIGNED, UNSIGNED = (
    BlockCodec(kind.dtype, EVERYWHERE, kind) for kind in (blocks.SIGNED, blocks.UNSIGNED)
)
"""The first slot's, an average of gradients or of their sums, and the others', averages of squares,
where these are kept in blocks"""
ALL = CODECS | {codec.dtype: codec for codec in (SIGNED, UNSIGNED)}
ERROR, ERROR_TERMS = "master_error", ErrorCodec(torch.int8, EVERYWHERE)
"""What a parameter's error terms are called in its state, and how they are stored"""
SMALL = 4096
"""Elements below which a tensor's state stays float32 where others' is kept in blocks"""


STATE_DTYPES = (torch.float32, torch.bfloat16, torch.int8)
WITH_ERROR = torch.bfloat16
"""Parameters that may have error terms"""


@dataclass(frozen=True)
class Storage:
    """How one optimizer stores its numbers (method.md#storage).

    Attributes:
        state_dtype: Of the state that has a parameter's shape, one of `STATE_DTYPES`.
        stochastic_rounding: Parameters of 16 bits, or of 24, are rounded by chance.
        master_bits: Of the error terms beside bfloat16 parameters, 8; None: they have none.

    Raises:
        ValueError: A dtype that state is not kept in, or another number of bits.
        TypeError: Something that is no dtype, or neither True nor False.
    """

    state_dtype: torch.dtype = torch.float32
    stochastic_rounding: bool = True
    master_bits: int | None = None

    def __post_init__(self) -> None:
        known = ", ".join(map(str, STATE_DTYPES[:-1])) + f" or {STATE_DTYPES[-1]}"
        if not isinstance(self.state_dtype, torch.dtype):
            raise TypeError(
                f"state_dtype must be {known}, got {self.state_dtype!r} of type "
                f"{type(self.state_dtype).__name__}"
            )
        if self.state_dtype not in STATE_DTYPES:
            raise ValueError(f"state_dtype must be {known}, got {self.state_dtype}")
        if not isinstance(self.stochastic_rounding, bool):
            raise TypeError(
                f"stochastic_rounding must be True or False, got {self.stochastic_rounding!r}"
            )
        bits = self.master_bits
        if bits is not None and (type(bits) is not int or bits != 8):
            raise ValueError(
                f"master_bits must be 8, an error term of 8 bits beside each bfloat16 parameter, "
                f"or None, got {bits!r}"
            )

    def codec_of_slot(self, param: Tensor, slot: int) -> Codec:
        """A parameter's slot's: float64 and complex parameters keep state of their own dtype.

        Args:
            param: The parameter.
            slot: The slot's place among the update rule's.
        """
        own = torch.promote_types(param.dtype, torch.float32)
        if own != torch.float32:
            return CODECS[own]
        if self.state_dtype != torch.int8:
            return CODECS[self.state_dtype]
        if to_local(param).numel() < SMALL:
            return CODECS[torch.float32]
        return SIGNED if slot == 0 else UNSIGNED

    def keeps_error(self, param: Tensor) -> bool:
        """Whether this parameter has error terms."""
        return self.master_bits is not None and param.dtype == WITH_ERROR

    def check_parameters(self, optimizer: str, groups: Sequence[Mapping[str, Any]]) -> None:
        """Some of the parameters can be kept as they are asked to be.

        Args:
            optimizer: Whose they are, for the message.
            groups: All that it was made with.

        Raises:
            ValueError: ``master_bits``, and no parameter that has use for it.
        """
        params = [param for group in groups for param in group["params"]]
        if self.master_bits is None or not params or any(map(self.keeps_error, params)):
            return
        raise ValueError(
            f"master_bits={self.master_bits} keeps an error term beside parameters in bfloat16, "
            f"and {optimizer} was given none: parameter 0, of shape {tuple(params[0].shape)}, is "
            f"{params[0].dtype}. Leave master_bits out, float32 needs no error term; or make the "
            "optimizer after model.to(torch.bfloat16)"
        )

    def check_group(self, optimizer: str, group: Mapping[str, Any]) -> None:
        """A group asks for nothing that cannot be stored so.

        Args:
            optimizer: Whose group it is, for the message.
            group: With all its entries.

        Raises:
            ValueError: amsgrad beside state in 8 bits; or a way of storing of its own, which would
                be passed over.
        """
        for option, value in vars(self).items():
            if group.get(option, value) != value:
                raise ValueError(
                    f"{optimizer} stores all groups in one way, got a group with {option}="
                    f"{group[option]!r} beside {option}={value!r} of the optimizer: give {option} "
                    "to the optimizer, or make one optimizer for each way"
                )
        if self.state_dtype == torch.int8 and group.get("amsgrad"):
            raise ValueError(
                f"{optimizer} keeps no maximum of second moments in 8 bits, got a group with "
                "amsgrad=True and state_dtype=torch.int8: leave amsgrad out, or use "
                "state_dtype=torch.bfloat16"
            )

    def rounds_by_chance(self, param: Tensor) -> bool:
        """Whether a step rounds this parameter stochastically."""
        return self.stochastic_rounding and param.dtype in HALVES


def dtype_of(slot: Tensor) -> torch.dtype:
    """What a slot that lies here is stored in: int8 or uint8 for the codes of blocks."""
    return slot.kind.dtype if isinstance(slot, Blocks) else slot.dtype


def walks(backend: str, slots: Any) -> bool:
    """Whether a backend, by its name, walks all of these slots; None stands for one not kept."""
    return all(slot is None or backend in ALL[dtype_of(slot)].walkers for slot in slots)


def decoded(value: Any) -> Any:
    """A state entry's numbers, laid out over the ranks as it is; anything else itself."""
    local = to_local(value) if isinstance(value, Tensor) else value
    return as_placed(local.decode(), value) if isinstance(local, Blocks) else value


def as_dtype(value: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor or a number as a tensor; the tensor itself where it is one of this dtype there."""
    if isinstance(value, Tensor):
        return value.to(device=device, dtype=dtype)
    return torch.tensor(float(value), dtype=dtype, device=device)


def decoded_states(states: Mapping[Any, Any]) -> dict[Any, Any]:
    """Parameters' entries as checkpoints have them: blocks of 8-bit numbers as float32.

    Args:
        states: Parameters, or what stands for them, to their entries, which are left as they are.
    """
    return {
        key: {name: decoded(x) for name, x in entries.items()}
        if isinstance(entries, dict) and any(map(_is_kept_in_blocks, entries.values()))
        else entries
        for key, entries in states.items()
    }


def _is_kept_in_blocks(value: Any) -> bool:
    return isinstance(value, Tensor) and isinstance(to_local(value), Blocks)
