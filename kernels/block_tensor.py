"""A float32 tensor that is kept in 8 bits: a state entry under ``state_dtype=torch.int8``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from adaptiverl.kernels import blocks
from adaptiverl.kernels.rounding import HALVES
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
_ALIASES = {aten.detach.default, aten.alias.default}


class Blocks(Tensor):
    """Shows float32 numbers, and keeps codes and scales (method.md#blocks).

    Every operation reads the numbers. One that writes in place has them encoded again, to nearest,
    so that ``zero_()``, ``mul_(0.5)``, ``copy_`` and ``entry[rows] = 0`` do as on any tensor; any
    other gives a plain float32 tensor, and so do views, which share no memory with it. A copy, one
    to another device too, has the codes. A pickle has the numbers.

    Args:
        buffer: uint8 [`blocks.buffer_size`]: codes in C order, and behind them the scales.
        shape: Of what it shows.
        kind: How the numbers are coded.

    Attributes:
        buffer: Likewise.
        kind: Likewise.
    """

    buffer: Tensor
    kind: blocks.Map

    @staticmethod
    def __new__(cls, buffer: Tensor, shape: Sequence[int], kind: blocks.Map) -> Blocks:
        """See the class."""
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, torch.Size(shape), dtype=torch.float32, device=buffer.device
        )
        made.buffer, made.kind = buffer, kind
        return made  # type: ignore[no-any-return]

    @classmethod
    def zeros(cls, shape: Sequence[int], kind: blocks.Map, device: torch.device) -> Blocks:
        """Zeros."""
        size = blocks.buffer_size(torch.Size(shape).numel())
        return cls(torch.zeros(size, dtype=torch.uint8, device=device), shape, kind)

    @classmethod
    def of(cls, values: Tensor, kind: blocks.Map) -> Blocks:
        """Numbers, rounded to nearest."""
        made = cls.zeros(values.shape, kind, values.device)
        made.encode(values)
        return made

    def codes(self) -> Tensor:
        """The codes, shaped as what is shown; in the same memory."""
        return self._parts()[0].view(self.shape)

    def decode(self) -> Tensor:
        """The numbers, float32."""
        return blocks.decode(*self._parts(), self.kind).view(self.shape)

    @torch.no_grad()
    def encode(self, values: Tensor, bits: Tensor | None = None, factor: int = 1) -> None:
        """Take over numbers of this shape.

        Args:
            values: They; a dtype other than float32 is cast.
            bits: 16 random bits for each, of this shape; None rounds to nearest.
            factor: As in `blocks.encode`.
        """
        flat = values.detach().to(device=self.device, dtype=torch.float32).reshape(-1)
        if flat.numel() == 0:
            return
        random = None if bits is None else bits.reshape(-1)
        for own, new in zip(
            self._parts(), blocks.encode(flat, self.kind, random, factor), strict=True
        ):
            own.copy_(new)

    def _parts(self) -> tuple[Tensor, Tensor]:
        return blocks.parts(self.buffer, self.numel(), self.kind)

    def __setitem__(self, place: Any, value: Any) -> None:
        """A view that it would write to is a copy, here."""
        values = self.decode()
        values[place] = value
        self.encode(values)

    def numpy(self, *, force: bool = False) -> Any:
        """The numbers."""
        return self.decode().numpy(force=force)

    def tolist(self) -> Any:
        """The numbers."""
        return self.decode().tolist()

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Blocks({self.decode()!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.decode().__reduce_ex__(protocol)

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[Any, Any] | None = None,
    ) -> Any:
        """See the class."""
        kwargs = kwargs or {}
        kept = _kept_as_blocks(func, args, kwargs)
        if kept is not None:
            return kept
        shown: list[tuple[Blocks, Tensor]] = []

        def show(value: Any) -> Any:
            if not isinstance(value, Blocks):
                return value
            shown.append((value, value.decode()))
            return shown[-1][1]

        result = func(*tree_map(show, args), **tree_map(show, kwargs))
        written = {id(x) for x in _written(func._schema, args, kwargs)}
        changed = {id(values): entry for entry, values in shown if id(entry) in written}
        for entry, values in shown:
            if id(values) in changed:
                entry.encode(values)
        return tree_map(lambda value: changed.get(id(value), value), result)


def _kept_as_blocks(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Blocks | None:
    """What copies and whole views of an entry are; None for any other operation."""
    first = args[0] if args else None
    if not isinstance(first, Blocks):
        return None
    if func in _ALIASES or (func is aten.view.default and tuple(args[1]) == tuple(first.shape)):
        return Blocks(first.buffer, first.shape, first.kind)
    if func is aten.clone.default:
        return Blocks(first.buffer.clone(), first.shape, first.kind)
    if func is aten._to_copy.default and kwargs.get("dtype") in (None, torch.float32):
        options = {name: kwargs[name] for name in ("device", "non_blocking") if name in kwargs}
        return Blocks(first.buffer.to(**options, copy=True), first.shape, first.kind)
    return None


def _written(schema: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that an operation writes to."""
    given = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | kwargs
    names = [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return tree_flatten([given[name] for name in names if name in given])[0]


def stored(tensor: Any) -> Any:
    """The memory that an entry's numbers are in; a tensor that is kept as it is shown, itself."""
    return tensor.buffer if isinstance(tensor, Blocks) else tensor


def shown(tensor: Any) -> Any:
    """An entry's numbers as a plain tensor; a tensor that is kept as it is shown, itself."""
    return tensor.decode() if isinstance(tensor, Blocks) else tensor


def any_rounded(slots: Iterable[Tensor | None]) -> bool:
    """Whether some of these slots are rounded by chance: those kept in 8 or 16 bits always are.

    Args:
        slots: None stands for one not kept.
    """
    return any(isinstance(x, Blocks) or (x is not None and x.dtype in HALVES) for x in slots)
