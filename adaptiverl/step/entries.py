"""One parameter of a step and all that belongs to it: its row of the address table.

Addresses identify tensors, never `id()`: `.data` and `.to_local()` make new wrappers every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from adaptiverl.algorithms import Algorithm
from adaptiverl.codecs import ERROR, Storage
from adaptiverl.distributed import NOISE_PLACE
from adaptiverl.kernels.block_tensor import Blocks, stored
from adaptiverl.layout import TensorRow, names
from adaptiverl.ranks.dtensors import gradient_of, is_dtensor, to_local
from adaptiverl.ranks.flat import refuse_flat_shards
from adaptiverl.ranks.group import Ranks
from adaptiverl.ranks.shards import Shards
from adaptiverl.step.counters import Counters, Member, Place
from adaptiverl.step.state import check_gradient, check_state

COLUMNS = names(TensorRow)
"""A row of the address table"""
PARAM, GRAD, NUMEL = (COLUMNS.index(name) for name in ("param", "grad", "numel"))
MOMENTS = slice(COLUMNS.index("state0"), COLUMNS.index("state2") + 1)
SLOTS = 3
"""Columns for an algorithm's own state"""
COUNTERS = slice(COLUMNS.index("step"), COLUMNS.index("mu_product") + 1)
ERROR_TERMS = COLUMNS.index("error")


@dataclass(slots=True, kw_only=True)
class ParameterEntry:
    """One parameter of this step, and all that belongs to it."""

    param: Tensor
    grad: Tensor
    slots: tuple[Tensor | None, ...]
    """The algorithm's state of the parameter's shape, in its order; None where there is none"""
    step: Tensor
    """float32, 0-d: steps that were taken"""
    mu_product: Tensor | None
    """float64 [3]: a `layout.Product`; None where it is not kept"""
    group: int
    """Row of the group table"""
    index: int
    """The parameter's place in the optimizer: the noise's key (method.md#random-numbers)"""
    offset: int
    """The first element's place in the whole logical tensor"""
    logical_numel: int
    """Elements of the whole logical tensor"""
    maximize: bool
    stochastic_rounding: bool = False
    """The parameter is stored in 16 bits, or 24, and rounded by chance (method.md#storage)"""
    error: Tensor | None = None
    """int8, the parameter's error terms (method.md#error-term); None where it has none"""

    def shaped(self) -> list[Tensor]:
        """Everything that a sweep walks beside each other."""
        kept = (tensor for tensor in (*self.slots, self.error) if tensor is not None)
        return [
            self.param,
            self.grad,
            *(tensor.codes() if isinstance(tensor, Blocks) else tensor for tensor in kept),
        ]

    def row(self) -> tuple[int, ...]:
        """This entry's line of the address table, in the order of `COLUMNS`."""
        return (
            _address(self.param),
            _address(self.grad),
            *map(_address, map(stored, self.slots)),
            *(0,) * (SLOTS - len(self.slots)),
            self.step.data_ptr(),
            _address(self.mu_product),
            self.param.numel(),
            self.group,
            self.index,
            self.offset,
            self.logical_numel,
            self.maximize,
            _address(self.error),
        )


def _address(tensor: Tensor | None) -> int:
    if tensor is None:
        return 0
    address = tensor.data_ptr()
    if address == 0 and tensor.numel() > 0:
        raise RuntimeError(
            f"a tensor of shape {tuple(tensor.shape)} that the step needs has no memory: its "
            "storage was resized to 0, which a wrapper that shards parameters does between "
            "passes; nothing was changed"
        )
    return address


class Numbered(NamedTuple):
    """A parameter, its place in the optimizer, and its group's."""

    number: int
    param: Tensor
    group: int


CompleteState = Callable[[Storage, Tensor, dict[str, Any], dict[str, Any]], None]
"""Makes what is missing of a parameter's slots: of (storage, parameter, its group, its state)"""


class Entries:
    """Makes a step's entries.

    Args:
        algorithm: The update rule.
        storage: How it stores what it steps.
        optimizer: Whose entries they are, for messages.
        complete_state: Makes what is missing of a parameter's slots.
        counters: Count the parameters' steps.
        shards: Told of every sharded parameter.
        ranks: Those that decide together.
        needs_whole: Whether a step wants sums over whole tensors, to clip or for noise.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        storage: Storage,
        optimizer: str,
        complete_state: CompleteState,
        counters: Counters,
        shards: Shards,
        ranks: Ranks,
        needs_whole: bool = False,
    ) -> None:
        self._algorithm, self._storage, self._optimizer = algorithm, storage, optimizer
        self._complete_state, self._counters = complete_state, counters
        self._shards, self._ranks = shards, ranks
        self._needs_whole = needs_whole

    def of(
        self,
        groups: Sequence[dict[str, Any]],
        state: Mapping[Tensor, Any],
        only: Numbered | None = None,
    ) -> list[ParameterEntry]:
        """One entry per parameter with a gradient; all are checked before any state is made.

        Args:
            groups: The optimizer's.
            state: The optimizer's; what is missing of it is made.
            only: The one parameter that is asked about; None: all of the groups'.

        Raises:
            RuntimeError: A gradient or state is none that a step can take (`step.state`).
            ValueError: FSDP1's flat shards, and sums over whole tensors are needed.
        """
        numbered = list(numbered_in(groups)) if only is None else [only]
        if self._needs_whole:
            refuse_flat_shards((param for _, param, _ in numbered), self._optimizer)
        for index, param, g in numbered:
            if param.grad is not None:
                check_gradient(param, index, self._optimizer)
                names = names_of(self._algorithm, self._storage, groups[g], param)
                check_state(param, index, state.get(param, {}), names)
        members = [
            Member(param, groups[g], state[param])
            for _, param, g in numbered
            if param.grad is not None
        ]
        for member in members:
            self._complete_state(self._storage, *member)
        counted = iter(zip(members, self._counters.settle(members), strict=True))
        entries = []
        self._shards.start_step(None if only is None else only.number)
        for index, param, g in numbered:
            if param.grad is not None:
                number = getattr(param, NOISE_PLACE, index)
                entries.append(self._entry(*next(counted), g, number))
            elif is_dtensor(param):
                self._shards.add(index, param, self._ranks)
        return entries

    def _entry(self, member: Member, counted: Place, g: int, index: int) -> ParameterEntry:
        param, group, state = member
        grad, offset, numel = param.grad, 0, param.numel()
        needed = self._algorithm.slots_of(group)
        slots = [state[name] if name in needed else None for name in self._algorithm.slots]
        error = state[ERROR] if self._storage.keeps_error(param) else None
        if is_dtensor(param):
            place = self._shards.step(index, param, self._ranks)
            offset, numel = place.offset, place.numel
            slots = [None if x is None else to_local(x) for x in slots]
            error = None if error is None else to_local(error)
            grad, param = gradient_of(param), to_local(param)
        reals = 2 if param.is_complex() else 1
        return ParameterEntry(
            param=param,
            grad=grad,  # type: ignore[arg-type]
            slots=tuple(slots),
            step=counted.count,
            mu_product=counted.kept,
            group=g,
            index=index,
            offset=offset * reals,
            logical_numel=numel * reals,
            maximize=bool(group["maximize"]),
            stochastic_rounding=self._storage.rounds_by_chance(param),
            error=error,
        )


def names_of(
    algorithm: Algorithm, storage: Storage, group: Mapping[str, Any], param: Tensor
) -> tuple[str, ...]:
    """The entries of a parameter's state that a step walks beside it."""
    slots = algorithm.slots_of(group)
    return (*slots, ERROR) if storage.keeps_error(param) else slots


def numbered_in(groups: Sequence[dict[str, Any]]) -> Iterator[Numbered]:
    """All parameters of an optimizer's groups, in order."""
    index = 0
    for g, group in enumerate(groups):
        for param in group["params"]:
            yield Numbered(index, param, g)
            index += 1
