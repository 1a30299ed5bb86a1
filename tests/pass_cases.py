"""One step of any algorithm three ways, for the tests: compiled, in plain torch, by the oracle.

An algorithm is one record here: groups and rates at which no forgotten term hides, its slots in the
middle of a training, and its oracle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import oracle
import torch
from adaptiverl.kernels.block_tensor import Blocks, shown
from numpy.typing import NDArray
from tolerances import assert_close
from torch import Tensor

from adaptiverl import AdaptiveAdamW, AdaptiveLion, AdaptiveSGD, algorithms
from adaptiverl.backends import CPU
from adaptiverl.kernels import blocks, reference
from adaptiverl.layout import State
from adaptiverl.step.entries import COLUMNS, ParameterEntry

BLOCK, PIECE = 1024, 262144
"""Elements that the compiled pass takes at once where there is noise, and that a thread takes"""
LONG = PIECE + 4467
"""Elements of a tensor of two pieces, the second not a whole one"""
SIZES = [0, 1, 2, 3, 4, 5, 15, 16, 17, 63, 65, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 2]

SEED, STEP, SIGMA = (0xDEADBEEF << 32) + 0x12345678, 41, 0.1
ANNEAL = 0.375
"""What the cooldown leaves, in every state: independent weight decay goes by it"""
PATHS = ("compiled", "reference")

Floats = NDArray[np.float64]


def double(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """An algorithm as the tests of the pass need it.

    Attributes:
        name: The algorithm's.
        optimizer: The class that runs it.
        groups: float64 [groups, 5]; lr and momentum are not those that the step uses.
        effective: float64 [groups, 2]: lr and momentum of the step.
        kept: How many of its slots a tensor may keep.
        start: Slots after some steps, at random, as many as `kept` says at most: (shape, dtype).
        step: One step by the oracle: (twin, gradient, group's row, lr, momentum, what else it
            takes) to the parameter and the slots.
        sums: The oracle's sums of the same step: (twin, gradient, group's row, what else).
        options: What its optimizer is made with, to compare a step from the start.
    """

    name: str
    optimizer: Any
    groups: Tensor
    effective: Tensor
    kept: tuple[int, ...]
    start: Callable[[Sequence[int], torch.dtype], list[Tensor]]
    step: Callable[..., tuple[Floats, list[Any]]]
    sums: Callable[..., tuple[float, float, float]]
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    @property
    def algorithm(self) -> algorithms.Algorithm:
        return algorithms.ALGORITHMS[self.name]

    @property
    def operator(self) -> Any:
        return getattr(torch.ops.adaptiverl, f"{self.name}_step_")


# AdamW


def _adamw_start(shape: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    second = 0.01 * torch.rand(*shape, dtype=dtype) + 1e-4
    # The maximum is larger than the second moment on one half of the elements.
    top = second * (0.5 + torch.rand(*shape, dtype=dtype))
    return [0.1 * torch.randn(*shape, dtype=dtype), second, top]


def _adamw_step(
    twin: Twin, grad: Floats, group: Sequence[float], lr: float, momentum: float, **options: Any
) -> tuple[Floats, list[Any]]:
    _, _, beta2, eps, weight_decay = group
    state = oracle.adamw_step(
        twin.param,
        grad,
        *twin.slots,
        step=twin.step,
        mu_product=twin.mu_product,
        lr=lr,
        momentum=momentum,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        **options,
    )
    twin.mu_product = state.mu_product
    return state.param, [state.exp_avg, state.exp_avg_sq, state.max_exp_avg_sq]


def _adamw_sums(twin: Twin, grad: Floats, group: Sequence[float], **options: Any) -> Any:
    m, v = twin.slots[:2]
    return oracle.alignment_sums(grad, m, v, group[3], **options)


ADAMW = Case(
    name="adamw",
    optimizer=AdaptiveAdamW,
    groups=double([[1e-2, 0.9, 0.99, 1e-6, 0.1], [3e-3, 0.8, 0.95, 1e-4, -0.3]]),
    effective=double([[5e-3, 0.85], [4e-3, 0.7]]),
    kept=(2, 3),
    start=_adamw_start,
    step=_adamw_step,
    sums=_adamw_sums,
    options={"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1},
)

# SGD

NESTEROV, DECOUPLED = algorithms.NESTEROV, algorithms.DECOUPLED


def _sgd_start(shape: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    return [0.1 * torch.randn(*shape, dtype=dtype)]


def _sgd_step(
    twin: Twin, grad: Floats, group: Sequence[float], lr: float, momentum: float, **options: Any
) -> tuple[Floats, list[Any]]:
    _, _, dampening, flags, weight_decay = group
    kept = len(twin.slots) > 0
    state = oracle.sgd_step(
        twin.param,
        grad,
        twin.slots[0] if kept and twin.step > 0 else None,
        lr=lr,
        momentum=momentum if kept else 0.0,
        dampening=dampening,
        weight_decay=weight_decay,
        nesterov=kept and bool(int(flags) & NESTEROV),
        decoupled=bool(int(flags) & DECOUPLED),
        **options,
    )
    return state.param, [state.momentum_buffer]


def _sgd_sums(twin: Twin, grad: Floats, group: Sequence[float], **options: Any) -> Any:
    coupled = 0.0 if int(group[3]) & DECOUPLED else group[4]
    buffer = twin.slots[0] if twin.slots else None
    return oracle.sgd_alignment_sums(twin.param, grad, buffer, coupled, **options)


SGD = Case(
    name="sgd",
    optimizer=AdaptiveSGD,
    groups=double(
        [
            [1e-2, 0.9, 0.2, 0, 0.1],
            [3e-3, 0.8, 0.0, NESTEROV, 0.3],
            [3e-3, 0.8, 0.5, DECOUPLED, -0.4],
            [3e-3, 0.8, 0.0, NESTEROV + DECOUPLED, 0.2],
            [3e-3, 0.8, 0.3, 0, 0.0],
        ]
    ),
    effective=double([[5e-2, 0.85], [4e-2, 0.7], [6e-2, 0.9], [3e-2, 0.95], [2e-2, 0.6]]),
    kept=(1, 0),
    start=_sgd_start,
    step=_sgd_step,
    sums=_sgd_sums,
    options={"lr": 1e-2, "momentum": 0.9, "dampening": 0.2, "weight_decay": 0.1},
)

# Lion


def _lion_start(shape: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    return [0.1 * torch.randn(*shape, dtype=dtype)]


def _lion_step(
    twin: Twin, grad: Floats, group: Sequence[float], lr: float, momentum: float, **options: Any
) -> tuple[Floats, list[Any]]:
    state = oracle.lion_step(
        twin.param,
        grad,
        twin.slots[0],
        lr=lr,
        momentum=momentum,
        beta2=group[2],
        weight_decay=group[4],
        **options,
    )
    # Of the size of the numbers whose sum it is, which noise makes right to 1e-5.
    size = np.sqrt(np.mean(state.signed**2)) if state.signed.size > 1 else 0.0
    twin.unsure |= np.abs(state.signed) < 1e-5 * size
    return state.param, [state.exp_avg]


def _lion_sums(twin: Twin, grad: Floats, group: Sequence[float], **options: Any) -> Any:
    return oracle.sgd_alignment_sums(twin.param, grad, twin.slots[0], 0.0, **options)


LION = Case(
    name="lion",
    optimizer=AdaptiveLion,
    groups=double([[1e-3, 0.9, 0.98, 0.0, 0.1], [3e-4, 0.8, 0.9, 0.0, -0.3]]),
    effective=double([[5e-3, 0.85], [4e-3, 0.7]]),
    kept=(1,),
    start=_lion_start,
    step=_lion_step,
    sums=_lion_sums,
    options={"lr": 1e-2, "betas": (0.9, 0.98), "weight_decay": 0.1},
)

CASES = {case.name: case for case in (ADAMW, SGD, LION)}


# Entries


def state_of(
    noise: float = 0.0, *, seed: int = SEED, step: int = STEP, active: float = 1
) -> Tensor:
    """The state of a controller that decided just this."""
    low, high = float(seed & 0xFFFFFFFF), float(seed >> 32)
    state = State(step=step, seed_low=low, seed_high=high, active=active, noise=noise)
    state.anneal = ANNEAL
    return torch.tensor(astuple(state), dtype=torch.float64)


def knobs_of(state: Tensor) -> Any:
    """The same as the reference reads it."""
    found = State(*state.tolist())
    names = ("step", "seed_low", "seed_high", "active", "noise", "anneal")
    return SimpleNamespace(
        **{name: torch.tensor(getattr(found, name), dtype=torch.float64) for name in names}
    )


def entry_of(
    case: Case,
    shape: Sequence[int],
    *,
    kept: int | None = None,
    steps: int = 3,
    dtype: torch.dtype = torch.float32,
    grad_dtype: torch.dtype | None = None,
    **options: Any,
) -> ParameterEntry:
    """A parameter after so many steps, at random; before the first its slots are zeros."""
    kept = case.kept[0] if kept is None else kept
    slots = case.start(shape, torch.promote_types(dtype, torch.float32))[:kept]
    if steps == 0:
        slots = [torch.zeros_like(slot) for slot in slots]
    missing = len(case.algorithm.slots) - kept
    product = as_kept(0.6 if steps else 1.0, steps)
    return ParameterEntry(
        param=torch.randn(*shape, dtype=dtype),
        grad=0.3 * torch.randn(*shape, dtype=grad_dtype or dtype),
        slots=(*slots, *(None,) * missing),
        step=torch.tensor(float(steps)),
        mu_product=product if case.algorithm.corrects_bias else None,
        **{"group": 0, "index": 0, "offset": 0, "maximize": False}
        | {"logical_numel": int(np.prod(shape))}
        | options,
    )


def as_kept(product: float, steps: int) -> Tensor:
    """A `layout.Product` that nobody has edited."""
    return torch.tensor([product, product, steps], dtype=torch.float64)


Counted = tuple[tuple[float, float, float], float, tuple[float, float]]
COUNTS: dict[str, Counted] = {
    "a new one": ((1.0, 1.0, 0), 0, (0.25, 1)),
    "one that goes on": ((0.3, 0.3, 5), 5, (0.075, 6)),
    "reset": ((0.3, 0.3, 5), 0, (0.25, 1)),
    "reset, with the product of somebody who does not know": ((0.7, 0.3, 5), 0, (0.25, 1)),
    "set back": ((0.3, 0.3, 5), 3, (0.03125, 4)),
    "set forward": ((0.3, 0.3, 5), 20, (2.0**-22, 21)),
    "set back and its product too": ((0.7, 0.3, 5), 3, (0.175, 4)),
    "only its product set": ((0.7, 0.3, 5), 5, (0.175, 6)),
}
"""(product, left_product, left_step), step to (product, step); the momentum was 1/2 and is 1/4"""
COUNT_GROUPS, COUNT_EFFECTIVE = double([[0, 0.5, 0, 0, 0]]), double([[0, 0.25]])


def counted_tables() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Address rows of `COUNTS` and one without a product, their products, steps, and what is right.

    Returns:
        int64 [9, 14]; float64 [9, 3]; float32 [9]; float64 [9, 4]: products and steps afterwards.
    """
    products = double([kept for kept, _, _ in COUNTS.values()] + [[9, 9, 9]])
    steps = torch.tensor([float(step) for _, step, _ in COUNTS.values()] + [4.0])
    rows = torch.zeros(len(steps), len(COLUMNS), dtype=torch.int64)
    rows[:, COLUMNS.index("step")] = torch.tensor([s.data_ptr() for s in steps.unbind()])
    addresses = torch.tensor([p.data_ptr() for p in products.unbind()])
    rows[:-1, COLUMNS.index("mu_product")] = addresses[:-1]
    after = [[product, product, step, step] for _, _, (product, step) in COUNTS.values()]
    return rows, products, steps, double([*after, [9, 9, 9, 5]])


def mixed_entries(case: Case, sizes: Sequence[int], **options: Any) -> list[ParameterEntry]:
    """One entry a size: every group, sign and number of slots, first steps and later ones."""
    return [
        entry_of(
            case,
            (n,),
            index=i,
            group=i % len(case.groups),
            maximize=i % 3 == 0,
            kept=case.kept[(i % 4 == 1) % len(case.kept)],
            steps=0 if i % 7 == 2 else 3,
            **options,
        )
        for i, n in enumerate(sizes)
    ]


def with_tensors(entry: ParameterEntry, change: Callable[[Tensor], Tensor]) -> ParameterEntry:
    """The same with all that has the parameter's shape changed."""
    slots = tuple(None if slot is None else change(slot) for slot in entry.slots)
    error = None if entry.error is None else change(entry.error)
    param, grad = change(entry.param), change(entry.grad)
    return replace(entry, param=param, grad=grad, slots=slots, error=error)


def copy_of(entry: ParameterEntry) -> ParameterEntry:
    product = None if entry.mu_product is None else entry.mu_product.clone()
    copy = with_tensors(entry, torch.clone)
    return replace(copy, step=entry.step.clone(), mu_product=product)


def part_of(entry: ParameterEntry, begin: int, end: int) -> ParameterEntry:
    """A stretch of it as a row of its own; of blocks, a copy."""

    def cut(tensor: Tensor) -> Tensor:
        part = tensor[begin:end]
        return Blocks.of(part, tensor.kind) if isinstance(tensor, Blocks) else part

    return replace(with_tensors(entry, cut), offset=begin)


def rows_of(entries: Sequence[ParameterEntry]) -> Tensor:
    table = torch.tensor([e.row() for e in entries], dtype=torch.int64)
    return table.reshape(len(entries), len(COLUMNS))


def written(entry: ParameterEntry) -> list[Tensor]:
    """What a step writes."""
    kept = (*entry.slots, entry.error)
    return [entry.param, *(tensor for tensor in kept if tensor is not None)]


def assert_bits(a: ParameterEntry, b: ParameterEntry) -> None:
    """Raise unless what a step writes is the same to the bit."""
    for x, y in zip(written(a), written(b), strict=True):
        assert x.dtype == y.dtype == torch.float32
        torch.testing.assert_close(x.view(torch.int32), y.view(torch.int32), rtol=0, atol=0)


# What is stored in 16 bits

FORMATS = {torch.bfloat16: (7, -126), torch.float16: (10, -14)}
"""Digits after the point, and the smallest normal number's exponent"""
FACTORS = (1, 7189, 17681, 17681)
"""What an element's random bits are multiplied by for the parameter and for each slot"""
KINDS = (blocks.SIGNED, blocks.UNSIGNED, blocks.UNSIGNED)
"""How each slot is coded where they are kept in blocks"""


def stored_in(
    entry: ParameterEntry,
    param: torch.dtype,
    grad: torch.dtype,
    slots: torch.dtype,
    by_chance: bool = True,
    errors: bool = False,
) -> ParameterEntry:
    """The same entry, its tensors kept in these dtypes, the parameter with error terms or not."""
    terms = torch.randint(-128, 128, entry.param.shape).to(torch.int8) if errors else None
    return replace(
        copy_of(entry),
        param=entry.param.to(param),
        grad=entry.grad.to(grad),
        slots=tuple(
            slot if slot is None else kept_in(slot, slots, kind)
            for slot, kind in zip(entry.slots, KINDS, strict=False)
        ),
        stochastic_rounding=by_chance and param in FORMATS,
        error=terms,
    )


def kept_in(slot: Tensor, dtype: torch.dtype, kind: blocks.Map) -> Tensor:
    """A slot as it is kept."""
    return Blocks.of(slot, kind) if dtype == torch.int8 else slot.to(dtype)


def widened(entry: ParameterEntry) -> ParameterEntry:
    """The same numbers in float32."""
    wide = with_tensors(copy_of(entry), lambda t: shown(t).float())
    if entry.error is not None:
        numbers = oracle.joined(as_reals(entry.param), as_reals(entry.error))
        wide = replace(wide, param=torch.from_numpy(numbers).float(), error=None)
    return replace(wide, stochastic_rounding=False)


def rounded(
    exact: Tensor, dtype: torch.dtype, entry: ParameterEntry, factor: int, step: int = STEP
) -> Tensor:
    """A float32 result as the oracle rounds it by chance."""
    elements = entry.offset + np.arange(exact.numel())
    bits = oracle.rounding_bits(SEED, entry.index, step, elements)
    values = as_reals(exact).reshape(-1)
    found = oracle.round_by_chance(values, bits, factor, *FORMATS[dtype])
    return torch.from_numpy(found).reshape(exact.shape).to(dtype)


def assert_stored(entry: ParameterEntry, exact: ParameterEntry) -> None:
    """Raise unless an entry is what the oracle makes of the float32 results of the same step."""
    if entry.error is not None:
        assert_parted(entry, exact.param)
        entry, exact = (replace(x, param=torch.empty(0), error=None) for x in (entry, exact))
    for i, (x, y) in enumerate(
        zip((entry.param, *entry.slots), (exact.param, *exact.slots), strict=True)
    ):
        if x is None or y is None:
            assert x is y
        elif isinstance(x, Blocks):
            assert_encoded(x, y, entry, i)
        elif x.dtype in FORMATS and (i > 0 or entry.stochastic_rounding):
            torch.testing.assert_close(x, rounded(y, x.dtype, entry, FACTORS[i]), rtol=0, atol=0)
        else:
            torch.testing.assert_close(x, y.to(x.dtype), rtol=0, atol=0)


def assert_parted(entry: ParameterEntry, exact: Tensor, step: int = STEP) -> None:
    """Raise unless a parameter and its error terms are what the oracle makes of float32 numbers."""
    elements = entry.offset + np.arange(exact.numel())
    drawn = oracle.rounding_bits(SEED, entry.index, step, elements)
    bits = drawn if entry.stochastic_rounding else None
    param, error = oracle.parted(as_reals(exact).reshape(-1), bits)
    assert entry.error is not None
    assert (entry.param.dtype, entry.error.dtype) == (torch.bfloat16, torch.int8)
    assert np.array_equal(as_reals(entry.param).reshape(-1), param)
    assert np.array_equal(as_reals(entry.error).reshape(-1), error)


def assert_encoded(
    found: Blocks, exact: Tensor, entry: ParameterEntry, place: int, step: int = STEP
) -> None:
    """Raise unless a slot, the entry's `place`, holds what the oracle encodes float32 numbers to.

    A number that is where its code changes, within float32's rounding, may have either.
    """
    elements = entry.offset + np.arange(exact.numel())
    bits = oracle.rounding_bits(SEED, entry.index, step, elements)
    reached, scales = oracle.block_codes(
        as_reals(exact).reshape(-1), bits, FACTORS[place], oracle.BLOCK_MAPS[place > 1]
    )
    codes, kept = blocks.parts(found.buffer, found.numel(), found.kind)
    np.testing.assert_array_equal(as_reals(kept), scales)
    stored = codes.view(torch.uint8).numpy().astype(np.int64)
    negative = stored > found.kind.limit
    magnitude = stored & found.kind.limit
    edge = np.rint(reached)
    sure = np.abs(reached - edge) > 1e-4
    either = np.clip(magnitude, edge - 1, edge)
    np.testing.assert_array_equal(magnitude, np.where(sure, np.floor(reached), either))
    minus = np.signbit(exact.numpy().reshape(-1))
    np.testing.assert_array_equal(negative[magnitude > 0], minus[magnitude > 0])


# The step, three ways


def storage_of(entries: Sequence[ParameterEntry]) -> tuple[list[int], bool]:
    """The operator's last arguments for entries that are all stored alike."""
    *codecs, by_chance = (CPU.variant(entries[0]) or (False,)) if entries else (False,)
    return codecs, by_chance


def squares_of(
    entries: Sequence[ParameterEntry], state: Tensor, always: bool, on_parameter: bool = False
) -> Tensor:
    squares = torch.zeros(len(entries), dtype=torch.float64)
    codecs, _ = storage_of(entries)
    codec = codecs[0 if on_parameter else 1] if codecs else 0
    rows = rows_of(entries)
    torch.ops.adaptiverl.sum_squares_(rows, state, squares, always, on_parameter, codec)
    return squares


def compiled_pass(
    case: Case,
    entries: Sequence[ParameterEntry],
    state: Tensor,
    *,
    squares: Tensor | None = None,
    gradient_scale: Tensor | None = None,
    sums: Tensor | None = None,
    on_parameter: bool = False,
) -> None:
    """The operator on its own: nothing is counted."""
    if squares is None:
        squares = squares_of(entries, state, False, on_parameter)
    case.operator(
        rows_of(entries),
        state,
        case.groups,
        case.effective,
        squares,
        gradient_scale,
        sums,
        on_parameter,
        *storage_of(entries),
    )


def count(case: Case, entries: Sequence[ParameterEntry]) -> None:
    """One more step of each, as the controller counts for a pass over addresses."""
    for entry in entries:
        entry.step += 1
        if entry.mu_product is not None:
            product = entry.mu_product[0] * case.effective[entry.group, 1]
            entry.mu_product.copy_(as_kept(float(product), int(entry.step)))


def step(
    path: str,
    case: Case,
    entries: Sequence[ParameterEntry],
    state: Tensor,
    *,
    gradient_scale: float | None = None,
    on_parameter: bool = False,
    sums: Tensor | None = None,
    squares: Tensor | None = None,
) -> None:
    """One step in place, counters included; `squares`, where the noise has others than theirs."""
    scale = None if gradient_scale is None else torch.tensor(gradient_scale, dtype=torch.float64)
    if path == "compiled":
        count(case, entries)
        options: dict[str, Any] = {"gradient_scale": scale, "sums": sums, "squares": squares}
        compiled_pass(case, entries, state, on_parameter=on_parameter, **options)
        return
    knobs = knobs_of(state)
    if knobs.noise == 0:
        squares = None
    elif squares is None:
        squares = torch.zeros(len(entries), dtype=torch.float64)
        reference.sum_squares(entries, squares, on_parameter)
    skippable = bool(knobs.active == 0)
    arguments = (case.groups, case.effective, squares, scale, skippable, on_parameter, sums)
    reference.step(case.name, entries, knobs, *arguments)


def as_reals(tensor: Tensor) -> Floats:
    tensor = tensor.detach().resolve_conj()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return np.array(tensor.double().numpy())


class Twin:
    """The oracle's copy of one entry.

    Attributes:
        unsure: Elements whose parameter may go either way: an algorithm took the sign of a number
            that is 0 within rounding.
    """

    def __init__(self, case: Case, entry: ParameterEntry) -> None:
        self.case = case
        self.param = as_reals(entry.param)
        self.slots: list[Any] = [as_reals(slot) for slot in entry.slots if slot is not None]
        self.step = int(entry.step)
        self.mu_product = 1.0 if entry.mu_product is None else float(entry.mu_product[0])
        self.unsure = np.zeros(self.param.shape, dtype=bool)
        self.moved = 0.0

    def take(
        self,
        grad: Tensor,
        entry: ParameterEntry,
        *,
        noise: float = 0.0,
        seed: int = SEED,
        step: int = STEP,
        group: Sequence[float] | None = None,
        effective: Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        """One step, by the case's own groups unless others are given."""
        reals = as_reals(grad)
        elements = entry.offset + np.arange(reals.size).reshape(reals.shape)
        group = self.case.groups[entry.group].tolist() if group is None else group
        lr, momentum = self.case.effective[entry.group].tolist() if effective is None else effective
        if group[4] < 0:  # independent: whatever lr is, this is what the decay takes off
            share = group[0] * ANNEAL * -group[4]
            group = [*group[:4], share / lr if lr else 0.0]
        self.param, slots = self.case.step(
            self,
            reals,
            group,
            lr,
            momentum,
            maximize=entry.maximize,
            noise=noise,
            xi=oracle.noise(seed, entry.index, step, elements) if noise else None,
            **options,
        )
        self.slots = slots[: len(self.slots)]
        self.step += 1
        self.moved += 2 * lr

    def compare(self, entry: ParameterEntry, name: str, param_name: str | None = None) -> None:
        """Raise unless the entry is what this is."""
        param = as_reals(entry.param)
        if self.unsure.any():
            assert self.unsure.sum() <= 1 + 1e-3 * param.size
            assert np.abs(param - self.param)[self.unsure].max() < 1.01 * self.moved
            param = np.where(self.unsure, self.param, param)
        assert_close(param, self.param, param_name or name)
        kept = [slot for slot in entry.slots if slot is not None]
        for slot, expected in zip(kept, self.slots, strict=True):
            assert_close(as_reals(slot), expected, name)
        assert entry.step.item() == self.step
        if entry.mu_product is not None:
            assert_close(entry.mu_product, as_kept(self.mu_product, self.step), "law")


def against_the_oracle(
    path: str,
    case: Case,
    entries: list[ParameterEntry],
    name: str = "step_float32",
    *,
    steps: int = 5,
    noise: float = SIGMA,
    gradient_scale: float | None = None,
    param_name: str | None = None,
    target: str = "gradient",
) -> None:
    """So many steps of both on new gradients each; the oracle never sees what the pass wrote."""
    expected = [Twin(case, entry) for entry in entries]
    start = [entry.param.clone() for entry in entries]
    scale = 1.0 if gradient_scale is None else gradient_scale
    for t in range(STEP, STEP + steps):
        for entry, twin in zip(entries, expected, strict=True):
            entry.grad.copy_(0.3 * torch.randn(entry.grad.shape) + 0.1)
            twin.take(
                entry.grad, entry, noise=noise, step=t, gradient_scale=scale, noise_target=target
            )
        state, on_parameter = state_of(noise, step=t), target == "parameter"
        step(path, case, entries, state, gradient_scale=gradient_scale, on_parameter=on_parameter)
    for entry, twin, before in zip(entries, expected, start, strict=True):
        twin.compare(entry, name, param_name)
        # One number of half precision may well round to where it was.
        assert entry.param.numel() <= 1 or not torch.equal(entry.param, before)


def expected_sums(
    case: Case, entries: Sequence[ParameterEntry], gradient_scale: float | None = None
) -> NDArray[np.float64]:
    """The oracle's, [tensors, 3], of the step that the entries are about to take."""
    scale = 1.0 if gradient_scale is None else gradient_scale
    rows = [
        case.sums(
            Twin(case, e),
            as_reals(e.grad),
            case.groups[e.group].tolist(),
            gradient_scale=scale,
            maximize=e.maximize,
        )
        for e in entries
    ]
    return np.array(rows)


def assert_sums_close(actual: Any, expected: Any, name: str = "statistics") -> None:
    """Raise unless three sums agree; that of g·u cancels, so its errors go by the other two."""
    gu, gg, uu = (float(x) for x in expected)
    assert_close(actual[0], gu, name, scale=(gg * uu) ** 0.5)
    assert_close(actual[1], gg, name)
    assert_close(actual[2], uu, name)
