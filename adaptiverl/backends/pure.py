"""The controller's operators in Python, for where nothing is compiled: csrc/controller.cpp's twin.

They are registered under the compiled ones' names, on the CPU, so that nobody who calls them has to
know which they are. The numbers are the same, for the law is `adaptiverl.law`, the compiled law's
twin; a step takes some tens of microseconds more. The pass over the parameters is not here: that is
`kernels.reference`, which walks no address table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from adaptiverl.law import knobs, loop
from adaptiverl.law import pulse as pulse_law
from adaptiverl.law.numbers import unpacked
from adaptiverl.law.registry import BY_NUMBER
from adaptiverl.layout import FIELDS, TRACE_COLUMNS, ControlNumbers, State

Loss = tuple[float | None, float | None]
"""The means of the losses and of the rewards in an inbox; None where there are none"""

numbers_in: Callable[[State], tuple[float, ...]] = attrgetter(*FIELDS)
trace_row: Callable[[State], tuple[float, ...]] = attrgetter(*TRACE_COLUMNS)


def observe(inbox: Tensor, loss: Tensor, reward: Tensor | None) -> None:
    """One observation more; `observe_numbers` of tensors of one element."""
    observe_numbers(inbox, float(loss), None if reward is None else float(reward))


def observe_numbers(inbox: Tensor, loss: float, reward: float | None) -> None:
    """One observation more, which is averaged with those of this step that came before."""
    rewarded = (0.0, 0.0) if reward is None else (reward, 1.0)
    inbox += _float64((loss, 1.0, *rewarded))


def advance(
    state_tensor: Tensor,
    numbers: Tensor,
    inbox: Tensor,
    trace: Tensor,
    groups: Tensor,
    effective: Tensor,
    tables: Sequence[Tensor],
    found_inf: Tensor | None,
) -> None:
    """One optimizer step, and what it makes of every group (method.md#loop).

    Raises:
        RuntimeError: There is an address table, which only compiled code can walk.
    """
    if tables:
        raise RuntimeError("tables must be empty: this build has nothing that walks addresses")
    state, control = _state(state_tensor), _control(numbers)
    skipped = found_inf is not None and float(found_inf) != 0
    loss, reward = _take(inbox)
    state.active, state.rewind = 0.0 if skipped else 1.0, 0.0
    if not skipped and (loss is not None or bool(groups[:, 0].any())):
        acted = loop.advance(state, control, loss, reward)
        due = control.every != 0 and math.fmod(state.step, control.every) == 0
        if acted or (due and not BY_NUMBER[control.law].needs_loss):
            _write_trace(state, trace)
    _keep(state, state_tensor)
    if state.active:
        _read_groups(state, groups, effective)


def update(state_tensor: Tensor, numbers: Tensor, inbox: Tensor, trace: Tensor) -> None:
    """Epoch-wise control: what was observed, and one update (method.md#epoch-wise)."""
    state, control = _state(state_tensor), _control(numbers)
    loss, reward = _take(inbox)
    if loss is not None:
        loop.update(state, control, loss, reward)
        _write_trace(state, trace)
        _keep(state, state_tensor)


def reduce_alignment(state: Tensor, sums: Sequence[Tensor], elements: float = 0.0) -> None:
    """The sums of a step's passes wait in the state for the next step, unless nothing took it."""
    kept = _state(state)
    if kept.active == 0:
        return
    totals = [0.0, 0.0, 0.0]
    for row in (row for table in sums for row in table.view(-1, 3).tolist()):
        totals = [total + number for total, number in zip(totals, row, strict=True)]
    kept.aligned_gu, kept.aligned_gg, kept.aligned_uu = totals
    kept.aligned_elements, kept.aligned_pending = elements, 1.0
    _keep(kept, state)


def pulse(state_tensor: Tensor, numbers: Tensor, sums: Tensor) -> None:
    """A held-out loss, of all ranks that decide together (method.md#pulse)."""
    state = _state(state_tensor)
    held_out, held_outs, training, trainings = sums.tolist()
    told = training / trainings if trainings > 0 else math.nan
    pulse_law.pulse(state, _control(numbers), held_out / held_outs, told)
    _keep(state, state_tensor)


def read_groups(state: Tensor, groups: Tensor, effective: Tensor) -> None:
    """Every group's rate and momentum as a step would use them now."""
    _read_groups(_state(state), groups, effective)


def start(
    state: Tensor, numbers: Tensor, lr: float, momentum: float, seed_low: float, seed_high: float
) -> None:
    """The state before the first step."""
    seed = int(seed_low) | int(seed_high) << 32
    _keep(knobs.start(_control(numbers), lr, momentum, seed), state)


SCHEMAS: dict[str, tuple[str, Callable[..., None]]] = {
    "observe_": ("(Tensor(a!) inbox, Tensor loss, Tensor? reward) -> ()", observe),
    "observe_numbers_": (
        "(Tensor(a!) inbox, float loss, float? reward) -> ()",
        observe_numbers,
    ),
    "advance_": (
        "(Tensor(a!) state, Tensor numbers, Tensor(b!) inbox, Tensor(c!) trace, Tensor groups, "
        "Tensor(d!) effective, Tensor[] tables, Tensor? found_inf) -> ()",
        advance,
    ),
    "reduce_alignment_": (
        "(Tensor(a!) state, Tensor[] sums, float elements=0.) -> ()",
        reduce_alignment,
    ),
    "update_": (
        "(Tensor(a!) state, Tensor numbers, Tensor(b!) inbox, Tensor(c!) trace) -> ()",
        update,
    ),
    "pulse_": ("(Tensor(a!) state, Tensor numbers, Tensor sums) -> ()", pulse),
    "read_groups_": ("(Tensor state, Tensor groups, Tensor(a!) effective) -> ()", read_groups),
    "start_": (
        "(Tensor(a!) state, Tensor numbers, float lr, float momentum, float seed_low, "
        "float seed_high) -> ()",
        start,
    ),
}
"""The operators' schemas, which are the compiled ones', and what does them"""


def register() -> Any:
    """Define the operators under `torch.ops.adaptiverl`; they are there as long as the result."""
    library = torch.library.Library("adaptiverl", "DEF")
    for name, (schema, function) in SCHEMAS.items():
        library.define(name + schema)
        library.impl(name, function, "CPU")
    return library


def _take(inbox: Tensor) -> Loss:
    """Empty an inbox."""
    loss_sum, losses, reward_sum, rewards = inbox.tolist()
    inbox.zero_()
    loss = loss_sum / losses if losses > 0 else None
    return loss, reward_sum / rewards if rewards > 0 else None


def _write_trace(state: State, trace: Tensor) -> None:
    ring = trace.view(-1, len(TRACE_COLUMNS))
    # The ring's first row is its header: how many were written in all.
    written = int(ring[0, 0])
    ring[1 + written % (len(ring) - 1)] = _float64(trace_row(state))
    ring[0, 0] = written + 1


def _read_groups(state: State, groups: Tensor, effective: Tensor) -> None:
    rows = [
        (knobs.group_lr(lr, state), knobs.group_momentum(momentum, state))
        for lr, momentum, *_ in groups.tolist()
    ]
    effective.copy_(_float64(rows))


def _state(tensor: Tensor) -> State:
    return State(*tensor.tolist())


def _control(tensor: Tensor) -> ControlNumbers:
    return unpacked(tensor.tolist())


def _keep(state: State, tensor: Tensor) -> None:
    tensor.copy_(_float64(numbers_in(state)))


def _float64(numbers: Any) -> Tensor:
    """On the host, whatever the default device is."""
    return torch.tensor(numbers, dtype=torch.float64, device="cpu")
