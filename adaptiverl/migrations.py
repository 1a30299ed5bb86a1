"""Memories that a checkpoint brings: older layouts made today's, and every number checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from adaptiverl.layout import (
    FIELDS,
    IN_PROGRESS,
    LAYOUT_VERSION,
    MEMORY_SIZE,
    SLOT,
    Column,
    State,
    columns,
)

WIDEST = 20 * math.log(10)
"""log-units that α may be from its start: no bounds that anybody gives leave more room"""
SEED_WORDS = [SLOT["seed_low"], SLOT["seed_high"]]
"""Where every layout has the seed"""

LOGARITHMS_OF_LR = [SLOT[name] for name in FIELDS if name == "log_lr" or name.startswith("log_lr_")]
ROUNDED = (
    "'adaptive_state' was loaded as float32 and is float64 again; something between saving and "
    "loading rounded it (a framework that casts all float64 to float32). The averages lost digits "
    "that do not matter; the seed of the noise and the step count are others than they were where "
    "they are above 2**24: then the noise, where there is any, is not the one that the run would "
    "have drawn. Save and load 'adaptive_state' as it is to resume exactly"
)

Migration = Callable[[Tensor], Tensor]


# A layout that was is told by numbers here: names are today's. Its version is its first number.


def add_alignment(memory: Tensor) -> Tensor:
    """The second layout of the first's memory: no sums yet, no rate found, nothing annealed.

    Raises:
        ValueError: A memory of another size.
    """
    downhill, held, anneal = -math.inf, 0.0, 1.0
    return insert(memory, size=32, place=32, numbers=[0.0] * 10 + [downhill, held, anneal])


def add_doubt(memory: Tensor) -> Tensor:
    """The third layout of the second's memory: no rate was ever doubted.

    Raises:
        ValueError: A memory of another size.
    """
    return insert(memory, size=45, place=43, numbers=[-math.inf])


def add_range_test(memory: Tensor) -> Tensor:
    """The fourth layout of the third's memory: there was no ramp.

    Raises:
        ValueError: A memory of another size.
    """
    memory = insert(memory, size=46, place=44, numbers=[-math.inf, -math.inf, 0.0, 0.0, 0.0, 0.0])
    return torch.cat([memory[:51], memory.new_zeros(1), memory[51:]])


def add_confirmation(memory: Tensor) -> Tensor:
    """The fifth layout of the fourth's memory: no loss was told to a ramp, and no climb followed.

    Raises:
        ValueError: A memory of another size.
    """
    memory = insert(memory, size=53, place=45, numbers=[-math.inf])
    losses, climbing = memory.new_zeros(8), memory.new_zeros(1)
    return torch.cat([memory[:49], losses, memory[49:50], climbing, memory[50:]])


def add_bandit(memory: Tensor) -> Tensor:
    """The sixth layout of the fifth's memory: no arm was ever chosen.

    Raises:
        ValueError: A memory of another size.
    """
    return insert(memory, size=63, place=63, numbers=[0.0] * 28)


def add_sensors(memory: Tensor) -> Tensor:
    """The seventh layout of the sixth's memory: no gradient sensed, f_φ never asked, no pulse told.

    Raises:
        ValueError: A memory of another size.
    """
    return insert(memory, size=91, place=91, numbers=[0.0] * 26 + [-math.inf])


def add_watch(memory: Tensor) -> Tensor:
    """The eighth layout of the seventh's memory: a rate that is held is not watched.

    What a ramp in progress had marked was no first zero: it has marked nothing yet.

    Raises:
        ValueError: A memory of another size.
    """
    memory = insert(memory, size=118, place=57, numbers=[2.0] + [0.0] * 5)
    if memory[63] == 1:
        memory[44] = -math.inf
    return memory


def insert(memory: Tensor, size: int, place: int, numbers: list[float]) -> Tensor:
    """The next layout's memory: of a memory of this size, with numbers more at a place.

    Raises:
        ValueError: A memory of another size.
    """
    if memory.shape != (size,):
        version = int(memory[0])
        raise refusal(f"{memory.dtype} of shape {tuple(memory.shape)} in layout {version}")
    migrated = torch.cat([memory[:place], memory.new_tensor(numbers), memory[place:]])
    migrated[0] += 1
    return migrated


MIGRATIONS: dict[int, Migration] = {
    1: add_alignment,
    2: add_doubt,
    3: add_range_test,
    4: add_confirmation,
    5: add_bandit,
    6: add_sensors,
    7: add_watch,
}
"""A layout's version to what makes the next version's memory of it. A change of `layout.State`
raises `LAYOUT_VERSION` and adds a line here."""


def current_layout(
    memory: Any,
    record: type = State,
    migrations: Mapping[int, Migration] = MIGRATIONS,
) -> Tensor:
    """A memory as this version lays it out, an older one migrated; `memory` itself is left alone.

    A float32 one is made float64.

    Args:
        memory: What a checkpoint holds under ``adaptive_state``.
        record: Today's layout, of which a memory has all but the last `IN_PROGRESS` numbers.
        migrations: What leads to it.

    Raises:
        ValueError: No controller's memory, one of an unknown layout, or a damaged one; says what
            was found, what was expected, and what to do.
    """
    if not isinstance(memory, Tensor):
        raise refusal(repr(memory))
    right = memory.dtype in (torch.float64, torch.float32)
    if not right or memory.dim() != 1 or memory.numel() == 0:
        raise refusal(f"{memory.dtype} of shape {tuple(memory.shape)}")
    if memory.dtype == torch.float32:
        memory = memory.to(torch.float64)
        # The next float32 above 2^32 − 1 is one more than a word holds.
        memory = torch.where(seeds_of(memory) & (memory == 2.0**32), 2.0**32 - 1, memory)
    found = memory[0].item()
    while found in migrations:
        memory = migrations[int(found)](memory)
        found += 1
    expected = columns(record)[:-IN_PROGRESS]
    if found != expected[0].default:
        raise refusal(f"version {found}")
    if memory.shape != (len(expected),):
        raise refusal(f"{memory.dtype} of shape {tuple(memory.shape)}")
    for column, value in zip(expected, memory.tolist(), strict=True):
        _check(column, value)
    _check_knobs(*memory[[SLOT["log_lr"], SLOT["log_lr_start"]]].tolist())
    return memory


def seeds_of(memory: Tensor) -> Tensor:
    """Which of a memory's numbers are the seed's two words, in every layout."""
    places = torch.arange(len(memory), device=memory.device)
    return (places == SEED_WORDS[0]) | (places == SEED_WORDS[1])


def from_start(start: Tensor, memory: Tensor, rates_stay: bool) -> Tensor:
    """A memory whose α is told from another start; α over its start stays.

    That quotient is what multiplies the groups' rates (method.md#modes), so the rate in effect
    stays, too, whatever mode or rate the run was made with.

    Args:
        start: The state at that start.
        memory: Of today's layout.
        rates_stay: An α that is a rate stays as it is; one that started at 1, as in ``"modulate"``,
            becomes one.
    """
    slot = SLOT["log_lr_start"]
    shift = start[slot].to(memory.device) - memory[slot]
    if rates_stay:
        shift = torch.where(memory[slot] == 0, shift, 0.0)
    adopted = memory.clone()
    adopted[LOGARITHMS_OF_LR] += shift
    adopted[SLOT["lr"]] *= shift.exp()
    return adopted


def with_seed_of(own: Tensor, rounded: Tensor) -> Tensor:
    """A memory that was float32, with another's seed where that rounds to this one's."""
    own = own.to(rounded.device)
    same = (own.to(torch.float32).to(torch.float64) == rounded) & seeds_of(rounded)
    return torch.where(same, own, rounded)


def _check(column: Column, value: float) -> None:
    kind = column.kind
    if kind.as_it_came or (kind.off and value == -math.inf):
        return
    if not math.isfinite(value):
        raise refusal(f"{column.name} = {value}")
    if not kind.low <= value <= kind.high:
        raise refusal(f"{column.name} = {value}, which is not in [{kind.low:.6g}, {kind.high:.6g}]")
    if kind.whole and value != int(value):
        raise refusal(f"{column.name} = {value}, which is no whole number")


def _check_knobs(log_lr: float, log_lr_start: float) -> None:
    """Every group's rate is multiplied by how far α has come from its start."""
    if abs(log_lr - log_lr_start) > WIDEST:
        raise refusal(
            f"log_lr = {log_lr}, which is further than {WIDEST:.6g} from log_lr_start = "
            f"{log_lr_start}"
        )


def refusal(found: str) -> ValueError:
    """Why a memory is not taken."""
    return ValueError(
        f"'adaptive_state' must be a float64 tensor of {MEMORY_SIZE} numbers whose "
        f"first is {LAYOUT_VERSION}, got {found}: the checkpoint is from another version of "
        "adaptiverl, or damaged; nothing was changed"
    )
