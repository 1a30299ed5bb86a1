"""The parameter step: reference and compiled sweep against the oracle; noise; plain AdamW."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from adaptiverl.kernels import reference
from numpy.typing import NDArray
from tolerances import assert_close
from torch import Tensor

from adaptiverl import AdaptiveAdamW, Control
from adaptiverl.layout import State
from adaptiverl.step.entries import COLUMNS, Entry

CSRC = Path(__file__).resolve().parents[1] / "csrc"
BLOCK, PIECE = 1024, 262144
"""Elements that the compiled sweep takes at once, and that one thread takes."""
LONG = PIECE + 4467
"""Elements of a tensor of two pieces, the second not a whole one."""

SEED, STEP = (0xDEADBEEF << 32) + 0x12345678, 41
# lr, β₁, β₂, eps, weight decay. No number is one at which a forgotten term would not show.
GROUPS = torch.tensor([[1e-2, 0.9, 0.99, 1e-6, 0.1], [3e-3, 0.8, 0.95, 1e-4, 0.3]]).double()
# lr and momentum as this step uses them: not the groups' own.
EFFECTIVE = torch.tensor([[5e-3, 0.85], [4e-3, 0.7]], dtype=torch.float64)
PATHS = ("compiled", "reference")
SIGMA = 0.1


def test_edges_are_where_the_source_has_them() -> None:
    """The sizes below straddle these; a changed source must take the tests along."""
    step, pieces = (CSRC / "sweep.h").read_text(), (CSRC / "pieces.h").read_text()
    assert re.search(r"kBlock = (\d+);", step)[1] == str(BLOCK)  # type: ignore[index]
    shift = re.search(r"kPiece = int64_t\{1\} << (\d+);", pieces)
    assert shift is not None
    assert 1 << int(shift[1]) == PIECE


# --- One step, three ways ----------------------------------------------------------------------


def block_of(
    noise: float = 0.0, *, seed: int = SEED, step: int = STEP, active: float = 1
) -> Tensor:
    """A controller's block that decided just this."""
    low, high = float(seed & 0xFFFFFFFF), float(seed >> 32)
    state = State(step=step, seed_low=low, seed_high=high, active=active, noise=noise)
    return torch.tensor(astuple(state), dtype=torch.float64)


def entry_of(
    shape: Sequence[int],
    *,
    index: int = 0,
    group: int = 0,
    maximize: bool = False,
    amsgrad: bool = False,
    dtype: torch.dtype = torch.float32,
    grad_dtype: torch.dtype | None = None,
) -> Entry:
    """A parameter in the middle of its training, at random."""
    moments = torch.promote_types(dtype, torch.float32)
    second = 0.01 * torch.rand(*shape, dtype=moments) + 1e-4
    numel = int(np.prod(shape))
    return Entry(
        param=torch.randn(*shape, dtype=dtype),
        grad=0.3 * torch.randn(*shape, dtype=grad_dtype or dtype),
        exp_avg=0.1 * torch.randn(*shape, dtype=moments),
        exp_avg_sq=second,
        # Larger than the second moment on one half of the elements.
        max_exp_avg_sq=second * (0.5 + torch.rand(*shape, dtype=moments)) if amsgrad else None,
        step=torch.tensor(3.0),
        mu_product=torch.tensor(0.6, dtype=torch.float64),
        group=group,
        index=index,
        offset=0,
        logical_numel=numel,
        maximize=maximize,
    )


def copy_of(entry: Entry) -> Entry:
    tensors = ("param", "grad", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step", "mu_product")
    values = {name: getattr(entry, name) for name in tensors}
    copies: dict[str, Any] = {n: None if x is None else x.clone() for n, x in values.items()}
    return replace(entry, **copies)


def rows_of(entries: Sequence[Entry]) -> Tensor:
    table = torch.tensor([e.row() for e in entries], dtype=torch.int64)
    return table.reshape(len(entries), len(COLUMNS))


def compiled_sweep(
    entries: Sequence[Entry],
    block: Tensor,
    *,
    squares: Tensor | None = None,
    gradient_scale: Tensor | None = None,
    sums: Tensor | None = None,
) -> None:
    rows = rows_of(entries)
    if squares is None:
        squares = torch.zeros(len(entries), dtype=torch.float64)
        torch.ops.adaptiverl.sum_squares_(rows, block, squares, False)
    torch.ops.adaptiverl.adamw_step_(rows, block, GROUPS, EFFECTIVE, squares, gradient_scale, sums)


def sweep(
    path: str, entries: Sequence[Entry], block: Tensor, gradient_scale: float | None = None
) -> None:
    """One step in place, counters included."""
    scale = None if gradient_scale is None else torch.tensor(gradient_scale, dtype=torch.float64)
    if path == "compiled":
        # The controller counts for a sweep over addresses.
        for entry in entries:
            entry.step += 1
            entry.mu_product *= EFFECTIVE[entry.group, 1]
        compiled_sweep(entries, block, gradient_scale=scale)
        return
    state = State(*block.tolist())
    names = ("step", "seed_low", "seed_high", "active", "noise")
    knobs = SimpleNamespace(
        **{name: torch.tensor(getattr(state, name), dtype=torch.float64) for name in names}
    )
    squares = None
    if state.noise != 0:
        squares = torch.zeros(len(entries), dtype=torch.float64)
        reference.sum_squares(entries, squares)
    reference.adamw_step(entries, knobs, GROUPS, EFFECTIVE, squares, scale, False)


def as_reals(tensor: Tensor) -> NDArray[np.float64]:
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return np.array(tensor.double().numpy())


class Expected:
    """The oracle's copy of one entry."""

    def __init__(self, entry: Entry) -> None:
        top = entry.max_exp_avg_sq
        self.state = oracle.AdamWState(
            as_reals(entry.param),
            as_reals(entry.exp_avg),
            as_reals(entry.exp_avg_sq),
            None if top is None else as_reals(top),
            int(entry.step),
            float(entry.mu_product),
        )

    def step(
        self,
        grad: Tensor,
        entry: Entry,
        *,
        noise: float,
        lr: float,
        momentum: float,
        group: Sequence[float],
        seed: int = SEED,
        step: int = STEP,
        gradient_scale: float = 1.0,
    ) -> None:
        s, reals = self.state, as_reals(grad)
        elements = entry.offset + np.arange(reals.size).reshape(reals.shape)
        self.state = oracle.adamw_step(
            s.param,
            reals,
            s.exp_avg,
            s.exp_avg_sq,
            s.max_exp_avg_sq,
            step=s.step,
            mu_product=s.mu_product,
            lr=lr,
            momentum=momentum,
            beta2=group[2],
            eps=group[3],
            weight_decay=group[4],
            maximize=entry.maximize,
            noise=noise,
            xi=oracle.noise(seed, entry.index, step, elements) if noise else None,
            gradient_scale=gradient_scale,
        )

    def compare(self, entry: Entry, name: str, param_name: str | None = None) -> None:
        s = self.state
        assert_close(as_reals(entry.param), s.param, param_name or name)
        assert_close(as_reals(entry.exp_avg), s.exp_avg, name)
        assert_close(as_reals(entry.exp_avg_sq), s.exp_avg_sq, name)
        if entry.max_exp_avg_sq is not None:
            assert_close(as_reals(entry.max_exp_avg_sq), s.max_exp_avg_sq, name)
        assert entry.step.item() == s.step
        assert_close(entry.mu_product, s.mu_product, "law")


def against_the_oracle(
    path: str,
    entries: list[Entry],
    name: str,
    *,
    steps: int = 5,
    noise: float = SIGMA,
    gradient_scale: float | None = None,
    param_name: str | None = None,
) -> None:
    """So many steps of both on new gradients each; the oracle never sees what the sweep wrote."""
    expected = [Expected(entry) for entry in entries]
    start = [entry.param.clone() for entry in entries]
    for t in range(STEP, STEP + steps):
        for entry, twin in zip(entries, expected, strict=True):
            entry.grad.copy_(0.3 * torch.randn(entry.grad.shape) + 0.1)
            twin.step(
                entry.grad,
                entry,
                noise=noise,
                lr=EFFECTIVE[entry.group, 0].item(),
                momentum=EFFECTIVE[entry.group, 1].item(),
                group=GROUPS[entry.group].tolist(),
                step=t,
                gradient_scale=1.0 if gradient_scale is None else gradient_scale,
            )
        sweep(path, entries, block_of(noise, step=t), gradient_scale)
    for entry, twin, before in zip(entries, expected, start, strict=True):
        twin.compare(entry, name, param_name)
        assert entry.param.numel() == 0 or not torch.equal(entry.param, before)


SIZES = [0, 1, 2, 3, 4, 5, 15, 16, 17, 63, 65, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 2]
LARGE = [PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 3]


def mixed_entries(sizes: Sequence[int], **options: Any) -> list[Entry]:
    """One entry a size, in turn of either group, ascending or not, with amsgrad or not."""
    return [
        entry_of(
            (n,),
            index=i,
            group=i % 2,
            maximize=i % 3 == 0,
            amsgrad=i % 4 < 2,
            **options,
        )
        for i, n in enumerate(sizes)
    ]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("noise", [0.0, SIGMA])
@pytest.mark.parametrize("gradient_scale", [None, 0.125, 0.3])
def test_oracle_at_all_sizes(path: str, noise: float, gradient_scale: float | None) -> None:
    entries = mixed_entries(SIZES)
    against_the_oracle(path, entries, "step_float32", noise=noise, gradient_scale=gradient_scale)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("noise", [0.0, SIGMA])
def test_oracle_at_the_edges_of_pieces(path: str, noise: float) -> None:
    against_the_oracle(path, mixed_entries(LARGE), "step_float32", steps=2, noise=noise)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("noise", [0.0, SIGMA])
def test_oracle_for_every_option(path: str, maximize: bool, amsgrad: bool, noise: float) -> None:
    entries = [
        entry_of((7, 53), index=3 + g, group=g, maximize=maximize, amsgrad=amsgrad) for g in (0, 1)
    ]
    against_the_oracle(path, entries, "step_float32", steps=16, noise=noise)


@pytest.mark.parametrize("gradient_scale", [None, 0.3])
def test_oracle_in_float64(gradient_scale: float | None) -> None:
    entries = mixed_entries(SIZES, dtype=torch.float64)
    against_the_oracle(
        "reference", entries, "step_float64", steps=20, noise=0.0, gradient_scale=gradient_scale
    )


def test_oracle_in_float64_with_noise() -> None:
    against_the_oracle("reference", mixed_entries(SIZES, dtype=torch.float64), "step_float32")


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.float16, "step_float16"), (torch.bfloat16, "step_bfloat16")],
    ids=str,
)
@pytest.mark.parametrize("noise", [0.0, SIGMA])
def test_oracle_in_half_precision(
    dtype: torch.dtype, name: str, noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float32 inside, rounded once: to the parameter; the moments stay float32."""
    monkeypatch.setattr(sys.modules[__name__], "EFFECTIVE", EFFECTIVE * torch.tensor([40.0, 1.0]))
    entries = mixed_entries(SIZES, dtype=dtype)
    against_the_oracle("reference", entries, "step_float32", steps=1, noise=noise, param_name=name)
    assert {e.exp_avg.dtype for e in entries} == {torch.float32}


@pytest.mark.parametrize("grad_dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_oracle_with_gradients_of_another_type(grad_dtype: torch.dtype) -> None:
    entries = mixed_entries(SIZES, grad_dtype=grad_dtype)
    against_the_oracle("reference", entries, "step_float32", steps=3)


def test_the_comparison_sees_a_mutant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another element's noise, and a noise a thousandth too strong."""
    original = reference.normals
    for mutant in (
        lambda key, index, step, offset, n, t: original(key, index, step, offset + 1, n, t),
        lambda key, index, step, offset, n, t: original(key, index, step, offset, n, t) * 1.001,
    ):
        monkeypatch.setattr(reference, "normals", mutant)
        with pytest.raises(AssertionError, match="step_float32"):
            against_the_oracle("reference", mixed_entries(SIZES[5:]), "step_float32", steps=2)


@pytest.mark.parametrize("noise", [0.0, SIGMA])
def test_twins_agree(noise: float) -> None:
    compiled = mixed_entries([*SIZES, 5000])
    plain = [copy_of(entry) for entry in compiled]
    for t in range(5):
        sweep("compiled", compiled, block_of(noise, step=t), 0.7)
        sweep("reference", plain, block_of(noise, step=t), 0.7)
    for a, b in zip(compiled, plain, strict=True):
        for name in ("param", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step", "mu_product"):
            if getattr(b, name) is not None:
                assert_close(getattr(a, name), getattr(b, name), "step_float32")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("amsgrad", [False, True])
def test_what_is_not_finite_travels_as_in_torch(path: str, amsgrad: bool) -> None:
    entry = entry_of((40,), amsgrad=amsgrad)
    entry.grad[3], entry.grad[20], entry.grad[39] = torch.nan, torch.inf, -torch.inf
    if entry.max_exp_avg_sq is not None:
        entry.max_exp_avg_sq[7] = torch.nan
    sweep(path, [entry], block_of())
    bad = {3, 20, 39} | ({7} if amsgrad else set())
    assert set(torch.nonzero(~entry.param.isfinite()).flatten().tolist()) == bad
    assert entry.exp_avg_sq[20] == torch.inf
    if entry.max_exp_avg_sq is not None:
        assert entry.max_exp_avg_sq[3].isnan()
        assert entry.max_exp_avg_sq[7].isnan()


@pytest.mark.parametrize("path", PATHS)
def test_zero_gradients_are_finite(path: str) -> None:
    """No gradient, no noise: RMS is 0; and only decay and the old moments move the parameter."""
    entries = mixed_entries(SIZES)
    for entry in entries:
        entry.grad.zero_()
    expected = [copy_of(entry) for entry in entries]
    sweep(path, entries, block_of(SIGMA))
    sweep(path, expected, block_of(0.0))
    for a, b in zip(entries, expected, strict=True):
        assert_bits(a, b)
        assert a.param.isfinite().all()


def tensors_of(entry: Entry) -> list[Tensor]:
    found = [entry.param, entry.exp_avg, entry.exp_avg_sq, entry.max_exp_avg_sq]
    return [x for x in found if x is not None]


def assert_bits(a: Entry, b: Entry) -> None:
    """Raise unless what a step writes is the same to the bit."""
    for x, y in zip(tensors_of(a), tensors_of(b), strict=True):
        torch.testing.assert_close(x.view(torch.int32), y.view(torch.int32), rtol=0, atol=0)


# --- A skipped step ---------------------------------------------------------------------------


def test_inactive_sweep_changes_nothing() -> None:
    entries = mixed_entries(SIZES)
    before = [copy_of(entry) for entry in entries]
    squares = torch.full((len(entries),), 7.0, dtype=torch.float64)
    sums = torch.full((len(entries), 3), 7.0, dtype=torch.float64)
    block = block_of(SIGMA, active=0)
    torch.ops.adaptiverl.sum_squares_(rows_of(entries), block, squares, True)
    compiled_sweep(entries, block, squares=squares, sums=sums)
    for a, b in zip(entries, before, strict=True):
        assert_bits(a, b)
    assert squares.eq(7).all()
    assert sums.eq(7).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_scaler_skips_and_unscales(dtype: torch.dtype) -> None:
    """What a GradScaler leaves to a fused step: `grad_scale` and `found_inf` on the optimizer."""
    control = replace(Control.frozen(), noise_bounds=(SIGMA, SIGMA))
    start = torch.randn(300, dtype=dtype)
    scaled, plain = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    scaling: Any = AdaptiveAdamW([scaled], lr=0.1, control=control, amsgrad=True)
    ordinary = AdaptiveAdamW([plain], lr=0.1, control=control, amsgrad=True)
    scaling.grad_scale, scaling.found_inf = torch.tensor(1024.0), torch.tensor(0.0)
    for t in range(6):
        grad = torch.randn(300, dtype=dtype)
        scaled.grad, plain.grad = grad * 1024, grad
        if t in (0, 3):
            before = everything(scaling, scaled)
            scaled.grad = grad.clone()
            scaled.grad[5] = torch.inf
            scaling.found_inf.fill_(1.0)
            scaling.step()
            scaling.found_inf.fill_(0.0)
            if t:
                assert everything(scaling, scaled) == before
            torch.testing.assert_close(scaled, plain, rtol=0, atol=0)
            scaled.grad = grad * 1024
        scaling.step()
        ordinary.step()
        # A factor of 2^10 is exact: not a bit may differ.
        torch.testing.assert_close(scaled, plain, rtol=0, atol=0)
    assert not torch.equal(plain, start)


def everything(optimizer: Any, param: Tensor) -> list[Any]:
    """The parameter, its state and the controller's memory."""
    state = {name: x.tolist() for name, x in optimizer.state[param].items()}
    return [param.tolist(), state, str(optimizer.param_groups[0]["adaptive_state"].tolist())]


# --- Layouts, through the optimizer --------------------------------------------------------------

NOISY = replace(Control.frozen(), noise_bounds=(SIGMA, SIGMA))
"""σ and all else at rest."""

LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "scalar": lambda: torch.randn(()),
    "empty": lambda: torch.randn(0, 3),
    "matrix": lambda: torch.randn(9, 7),
    "transposed": lambda: torch.randn(9, 7).t(),
    "strided": lambda: torch.randn(8, 30)[::2, 1::3],
    "odd address": lambda: torch.randn(50)[1:],
    "channels last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "size-one dimensions": lambda: torch.randn(1, 6, 1).transpose(0, 2),
    "permuted": lambda: torch.randn(4, 5, 6).permute(2, 0, 1),
    "complex": lambda: torch.randn(4, 5, dtype=torch.complex64),
    "complex transposed": lambda: torch.randn(4, 5, dtype=torch.complex64).t(),
    "float64": lambda: torch.randn(5, 3, dtype=torch.float64),
}
GRADIENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "as the parameter": torch.randn_like,
    "contiguous": lambda p: torch.randn(p.shape, dtype=p.dtype),
    "other strides": lambda p: torch.randn(p.shape[::-1], dtype=p.dtype).permute(
        tuple(reversed(range(p.dim())))
    ),
    "expanded": lambda p: torch.randn((), dtype=p.dtype).expand(p.shape),
}


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("options", [{}, {"amsgrad": True, "maximize": True}], ids=str)
def test_layouts(gradient: str, options: dict[str, bool]) -> None:
    """Wherever an element lies, its noise is that of its place in the tensor, in C order."""
    params = [torch.nn.Parameter(make()) for make in LAYOUTS.values()]
    group = [1e-2, 0.9, 0.99, 1e-6, 0.1]
    optimizer = AdaptiveAdamW(
        params,
        lr=group[0],
        betas=(group[1], group[2]),
        eps=group[3],
        weight_decay=group[4],
        control=NOISY,
        seed=SEED,
        **options,  # type: ignore[arg-type]
    )
    expected: list[Expected] = []
    for t in range(1, 6):
        for i, param in enumerate(params):
            param.grad = GRADIENTS[gradient](param)
            entry = oracle_entry(param, i, **options)
            if t == 1:
                expected.append(Expected(entry))
            expected[i].step(
                param.grad, entry, noise=SIGMA, lr=group[0], momentum=group[1], group=group, step=t
            )
        optimizer.step()
    for i, (name, param) in enumerate(zip(LAYOUTS, params, strict=True)):
        state = optimizer.state[param]
        try:
            expected[i].compare(replace(oracle_entry(param, i, **options), **state), "step_float32")
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


def oracle_entry(param: Tensor, index: int, amsgrad: bool = False, maximize: bool = False) -> Entry:
    zeros = torch.zeros_like(param)
    return Entry(
        param=param,
        grad=zeros,
        exp_avg=zeros,
        exp_avg_sq=zeros,
        max_exp_avg_sq=zeros if amsgrad else None,
        step=torch.tensor(0.0),
        mu_product=torch.tensor(1.0, dtype=torch.float64),
        group=0,
        index=index,
        offset=0,
        logical_numel=param.numel(),
        maximize=maximize,
    )


@pytest.mark.parametrize("layout", ["matrix", "transposed", "float64"])
def test_lazily_negated_gradients(layout: str) -> None:
    """What autograd makes of an imaginary part: the memory holds the gradient's negative."""
    start, negative = LAYOUTS[layout](), torch.randn_like(LAYOUTS[layout]())
    results = []
    for grad in (torch._neg_view(negative), -negative):
        param = torch.nn.Parameter(start.clone())
        param.grad = grad
        AdaptiveAdamW([param], lr=1e-2, control=NOISY).step()
        results.append(param.detach())
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_a_layout_of_its_own_is_left_as_it_is() -> None:
    param = torch.nn.Parameter(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last))
    strides, address = param.stride(), param.data_ptr()
    optimizer = AdaptiveAdamW([param], lr=1e-2, control=NOISY)
    param.grad = torch.randn_like(param)
    optimizer.step()
    assert (param.stride(), param.data_ptr()) == (strides, address)
    assert optimizer.state[param]["exp_avg"].stride() == strides


@pytest.mark.parametrize("layout", ["matrix", "transposed"])
def test_autograd_learns_of_the_step(layout: str) -> None:
    param = torch.nn.Parameter(LAYOUTS[layout]())
    version = param._version
    param.grad = torch.randn_like(param)
    AdaptiveAdamW([param], lr=1e-2).step()
    assert param._version > version


# --- Noise: the bits --------------------------------------------------------------------------

# Random123's known answers: counter, key, output.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def compiled_words(seed: int, index: int, step: int, quad: int, quads: int) -> NDArray[np.uint32]:
    out = torch.zeros(quads, 4, dtype=torch.int32)
    signed = quad - 2**64 if quad >= 2**63 else quad
    torch.ops.adaptiverl.philox_words_(seed & 0xFFFFFFFF, seed >> 32, index, step, signed, out)
    return out.numpy().view(np.uint32)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter: Any, key: Any, words: Any) -> None:
    assert tuple(int(w) for w in oracle.philox4x32(*counter, *key)) == words
    tensors = [torch.tensor(x) for x in counter], [torch.tensor(x) for x in key]
    assert tuple(int(w) for w in reference.philox4x32(*tensors)) == words
    quad, seed = counter[0] + (counter[1] << 32), key[0] + (key[1] << 32)
    compiled = compiled_words(seed, counter[2], counter[3], quad, 1)
    assert tuple(int(w) for w in compiled[0]) == words


@pytest.mark.parametrize("seed", [0, 5, SEED, 2**64 - 1])
@pytest.mark.parametrize(("index", "step"), [(0, 1), (77, 123456), (2**32 - 1, 2**32 + 9)])
@pytest.mark.parametrize("quad", [0, 3, 2**32 - 40, 2**40 + 5])
def test_words_are_the_oracles(seed: int, index: int, step: int, quad: int) -> None:
    """Bit for bit, over the carry into the counter's second word and at any length."""
    for quads in (1, 15, 100, 700):
        elements = 4 * (quad + np.arange(quads, dtype=np.int64))
        expected = np.stack(oracle.noise_words(seed, index, step, elements), axis=1)
        compiled = compiled_words(seed, index, step, quad, quads)
        np.testing.assert_array_equal(compiled, expected)


def compiled_normals(seed: int, index: int, step: int, offset: int, n: int) -> Tensor:
    out = torch.full((n,), torch.nan)
    torch.ops.adaptiverl.normals_(seed & 0xFFFFFFFF, seed >> 32, index, step, offset, out)
    return out


def reference_normals(seed: int, index: int, step: int, offset: int, n: int) -> Tensor:
    key = (torch.tensor(seed & 0xFFFFFFFF), torch.tensor(seed >> 32))
    return reference.normals(key, index, torch.tensor(step), offset, n, torch.float32)


NORMALS = {"compiled": compiled_normals, "reference": reference_normals}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4, 1021, 2**34 - 7])
def test_normals_are_the_oracles(path: str, offset: int) -> None:
    for n in (0, 1, 2, 3, 4, 5, 6, 7, BLOCK - 1, BLOCK, BLOCK + 1, 50_000):
        actual = NORMALS[path](SEED, 9, STEP, offset, n)
        expected = oracle.noise(SEED, 9, STEP, offset + np.arange(n, dtype=np.int64))
        assert_close(actual, expected, "normals", scale=1.0)


def test_extreme_words() -> None:
    """The largest u is 1 (radius 0), the smallest 2^-24 (radius 5.77): both finite."""
    top, zero = torch.tensor(2**32 - 1), torch.tensor(0)
    for angle in (zero, top, torch.tensor(2**31)):
        even, odd = reference.box_muller(top, angle, torch.float32)
        assert (even.abs().item(), odd.abs().item()) == (0.0, 0.0)
    even, odd = reference.box_muller(zero, zero, torch.float32)
    assert_close(even, np.sqrt(48 * np.log(2)), "normals")
    assert odd.item() == 0.0
    # Half a turn, and the least that the angle's sign can be.
    assert reference.box_muller(zero, torch.tensor(2**31), torch.float32)[0] < -5.7
    assert reference.box_muller(zero, top, torch.float32)[1] < 0


@pytest.mark.parametrize("path", PATHS)
def test_normals_are_normal_and_independent(path: str) -> None:
    n = 400_000
    sigma = n**-0.5
    first = NORMALS[path](1, 0, 1, 0, n).double().numpy()
    assert abs(first.mean()) < 5 * sigma
    assert abs((first**2).mean() - 1) < 5 * sigma * 2**0.5
    assert abs((first**3).mean()) < 5 * sigma * 15**0.5
    assert abs((first**4).mean() - 3) < 5 * sigma * 96**0.5
    assert 4.0 < np.abs(first).max() < 5.78
    # Lanes of a block, neighbours, and the same place under another key have nothing in common.
    for lag in (1, 2, 3, 4, 1024):
        assert abs((first[:-lag] * first[lag:]).mean()) < 5 * sigma
    for other in ((2, 0, 1, 0), (1 + 2**32, 0, 1, 0), (1, 1, 1, 0), (1, 0, 2, 0)):
        second = NORMALS[path](*other, n).double().numpy()
        assert not (first == second).all()
        assert abs((first * second).mean()) < 5 * sigma
        assert abs((first**2 * second**2).mean() - 1) < 5 * sigma * 8**0.5


# --- Noise: in the step -----------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_noise_depends_on_its_key_and_on_nothing_else(path: str) -> None:
    entry = entry_of((3000,), index=4)

    def first_moment(sigma: float = SIGMA, index: int = 4, **block: int) -> Tensor:
        copy = replace(copy_of(entry), index=index)
        sweep(path, [copy], block_of(sigma, **block))
        return copy.exp_avg

    noisy, quiet = first_moment(), first_moment(0.0)
    torch.testing.assert_close(first_moment(), noisy, rtol=0, atol=0)
    # (1 − μ)·σ·RMS(g)·ξ, and no more: its size is known.
    rms = entry.grad.square().mean().sqrt()
    xi = (noisy - quiet) / ((1 - 0.85) * SIGMA * rms)
    assert 0.9 < xi.std() < 1.1
    others = [first_moment(index=5), first_moment(seed=SEED + 1), first_moment(step=STEP + 1)]
    others += [first_moment(seed=SEED + 2**32), first_moment(2 * SIGMA), quiet]
    for i, a in enumerate([noisy, *others]):
        for b in others[i:]:
            assert (a != b).float().mean() > 0.9
    # The counter holds the step's lower 32 bits; the seed's upper half is not lost.
    torch.testing.assert_close(first_moment(step=STEP + 2**32), noisy, rtol=0, atol=0)


def run_bits(entries: Sequence[Entry], noise: float = SIGMA) -> tuple[list[Entry], Tensor, Tensor]:
    copies = [copy_of(entry) for entry in entries]
    squares = torch.zeros(len(copies), dtype=torch.float64)
    sums = torch.zeros(len(copies), 3, dtype=torch.float64)
    block = block_of(noise)
    torch.ops.adaptiverl.sum_squares_(rows_of(copies), block, squares, True)
    compiled_sweep(copies, block, squares=squares, sums=sums)
    return copies, squares, sums


@pytest.mark.parametrize("noise", [0.0, SIGMA])
def test_same_bits_for_any_number_of_threads(noise: float) -> None:
    entries = mixed_entries([5 * PIECE + 17, 3, 2 * PIECE, 1000, 0, 7])
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(run_bits(entries, noise))
    for copies, squares, sums in results[1:]:
        for a, b in zip(copies, results[0][0], strict=True):
            assert_bits(a, b)
        torch.testing.assert_close(squares, results[0][1], rtol=0, atol=0)
        torch.testing.assert_close(sums, results[0][2], rtol=0, atol=0)


@pytest.mark.parametrize("shift", [1, 2, 3, 5])
def test_same_bits_in_a_bucket_at_odd_addresses(shift: int) -> None:
    """Views into one long tensor, as DistributedDataParallel's buckets are."""
    entries = mixed_entries([5, 1000, 1, 3 * BLOCK + 1, 64])
    expected, _, _ = run_bits(entries)
    names = ("param", "grad", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    views = [copy_of(entry) for entry in entries]
    buckets = {name: torch.full((10_000,), torch.nan) for name in names}
    for name, bucket in buckets.items():
        begin = shift
        for view in views:
            value = getattr(view, name)
            if value is not None:
                place = bucket[begin : begin + value.numel()]
                place.copy_(value)
                setattr(view, name, place)
                begin += value.numel() + shift
    assert any(view.param.data_ptr() % 16 for view in views)
    squares = torch.zeros(len(views), dtype=torch.float64)
    torch.ops.adaptiverl.sum_squares_(rows_of(views), block_of(SIGMA), squares, True)
    compiled_sweep(views, block_of(SIGMA), squares=squares)
    for a, b in zip(views, expected, strict=True):
        assert_bits(a, b)
    # Nothing beside the views was written: the NaNs around them are still there.
    for name, bucket in buckets.items():
        held = [x for x in (getattr(view, name) for view in views) if x is not None]
        assert int((~bucket.isnan()).sum()) == sum(x.numel() for x in held)


CUTS = [1, 2, 3, 5, 7, BLOCK - 1, BLOCK, BLOCK + 1, 4093, PIECE - 1, PIECE, PIECE + 2, LONG - 3]


def pieces_of(entry: Entry, cuts: Sequence[int]) -> Iterator[Entry]:
    """The entry as rows of its own for each stretch between two cuts."""
    edges = [0, *cuts, entry.param.numel()]
    for begin, end in pairwise(edges):
        names = ("param", "grad", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")
        values = {name: getattr(entry, name) for name in names}
        views: dict[str, Any] = {
            name: None if x is None else x[begin:end] for name, x in values.items()
        }
        yield replace(entry, offset=begin, **views)


@pytest.mark.parametrize(
    "cuts",
    [*[[cut] for cut in CUTS], CUTS, list(range(0, LONG - 2, 3989))],
    ids=lambda cuts: f"{len(cuts)} from {cuts[0]}",
)
def test_same_bits_however_a_tensor_is_cut(cuts: list[int]) -> None:
    entry = entry_of((LONG,), index=6, amsgrad=True)
    [whole], squares, sums = run_bits([entry])
    cut = copy_of(entry)
    pieces = list(pieces_of(cut, cuts))
    partial = torch.zeros(len(pieces), 3, dtype=torch.float64)
    compiled_sweep(
        pieces, block_of(SIGMA), squares=squares.expand(len(pieces)).contiguous(), sums=partial
    )
    assert_bits(cut, whole)
    assert_close(partial.sum(0)[1:], sums[0, 1:], "statistics")
    # The comparison can fail: pieces that do not know their place draw other noise.
    lost = copy_of(entry)
    strays = [replace(piece, offset=0) for piece in pieces_of(lost, cuts)]
    compiled_sweep(strays, block_of(SIGMA), squares=squares.expand(len(strays)).contiguous())
    assert not torch.equal(lost.exp_avg, whole.exp_avg)


@pytest.mark.parametrize("offset", [2**32 - 5, 2**34 - 3, 2**35 + 1])
@pytest.mark.parametrize("path", PATHS)
def test_shards_far_into_a_tensor(path: str, offset: int) -> None:
    """Beyond 2^32 elements the place still counts in full."""
    entry = replace(entry_of((50,)), offset=offset, logical_numel=50)
    against_the_oracle(path, [entry], "step_float32", steps=2)


BITS = """
import hashlib, torch, adaptiverl
torch.manual_seed(0)
digest = hashlib.sha256()
out = torch.empty(5003)
torch.ops.adaptiverl.normals_(1, 2, 3, 4, 5, out)
digest.update(out.numpy().tobytes())
p, g, m, v = torch.randn(4, 5003).unbind()
v.abs_()
one, step, product = (torch.tensor(x, dtype=d) for x, d in
    ((1.0, torch.float64), (4.0, torch.float32), (0.5, torch.float64)))
for top in (None, v.clone()):
    row = [p, g, m, v, top, step, product]
    rows = torch.tensor([[0 if t is None else t.data_ptr() for t in row] +
                         [5003, 0, 7, 3, 5003, 0]])
    block = torch.zeros(BLOCK, dtype=torch.float64)
    block[ACTIVE], block[NOISE] = 1.0, 0.1
    groups = torch.tensor([[1e-3, 0.9, 0.99, 1e-8, 0.1]], dtype=torch.float64)
    squares = torch.zeros(1, dtype=torch.float64)
    sums = torch.zeros(1, 3, dtype=torch.float64)
    torch.ops.adaptiverl.sum_squares_(rows, block, squares, True)
    torch.ops.adaptiverl.adamw_step_(
        rows, block, groups, groups[:, :2].contiguous(), squares, None, sums)
    for t in (p, m, v, squares, sums) + (() if top is None else (top,)):
        digest.update(t.numpy().tobytes())
print(digest.hexdigest())
"""


def test_same_bits_for_every_instruction_set(tmp_path: Path) -> None:
    names = list(State.__dataclass_fields__)
    code = BITS.replace("BLOCK", str(len(names))).replace("ACTIVE", str(names.index("active")))
    code = code.replace("NOISE", str(names.index("noise")))
    digests = {}
    for isa in ("baseline", "avx2", "avx512"):
        environment = os.environ | {"ADAPTIVERL_CPU": isa, "OMP_NUM_THREADS": "1"}
        run = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            cwd=tmp_path,  # not the source tree, which would be imported instead of a wheel
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode != 0:
            # What this machine lacks cannot be compared on it; the baseline runs everywhere.
            assert isa in ("avx2", "avx512"), run.stderr
            assert "which this CPU does not have" in run.stderr
            continue
        digests[isa] = run.stdout
    if len(digests) < 2:
        pytest.skip("this CPU has the baseline's instruction set only: nothing to compare it with")
    assert len(set(digests.values())) == 1, digests


# --- Statistics -------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, SIGMA])
@pytest.mark.parametrize("gradient_scale", [None, 0.3])
def test_sums_are_the_oracles(noise: float, gradient_scale: float | None) -> None:
    entries = mixed_entries([*SIZES, PIECE + 1])
    scale = 1.0 if gradient_scale is None else gradient_scale
    expected = np.array(
        [
            oracle.alignment_sums(
                as_reals(e.grad),
                as_reals(e.exp_avg),
                as_reals(e.exp_avg_sq),
                GROUPS[e.group, 3].item(),
                gradient_scale=scale,
                maximize=e.maximize,
            )
            for e in entries
        ]
    )
    sums = torch.full((len(entries), 3), torch.nan, dtype=torch.float64)
    factor = None if gradient_scale is None else torch.tensor(scale, dtype=torch.float64)
    compiled_sweep(entries, block_of(noise), gradient_scale=factor, sums=sums)
    for i in range(len(entries)):
        size = float(np.sqrt(expected[i, 1] * expected[i, 2]))
        assert_close(sums[i, 0], expected[i, 0], "statistics", scale=size)
        assert_close(sums[i, 1:], expected[i, 1:], "statistics")
    assert (expected[:, 0] > 0).any()
    assert (expected[:, 0] < 0).any()


@pytest.mark.parametrize("noise", [0.0, SIGMA])
def test_asking_for_sums_changes_no_bit(noise: float) -> None:
    entries = mixed_entries([*SIZES, PIECE + 1])
    with_sums, _, _ = run_bits(entries, noise)
    without = [copy_of(entry) for entry in entries]
    compiled_sweep(without, block_of(noise))
    for a, b in zip(with_sums, without, strict=True):
        assert_bits(a, b)


def test_sums_of_squares() -> None:
    entries = mixed_entries([*SIZES, *LARGE])
    expected = [float(np.sum(as_reals(e.grad) ** 2)) for e in entries]
    for block, always, done in (
        (block_of(SIGMA), False, True),
        (block_of(0.0), True, True),
        (block_of(0.0), False, False),
    ):
        squares = torch.full((len(entries),), -1.0, dtype=torch.float64)
        torch.ops.adaptiverl.sum_squares_(rows_of(entries), block, squares, always)
        if done:
            assert_close(squares, expected, "statistics")
        else:
            assert squares.eq(-1).all()
    plain = torch.full((len(entries),), -1.0, dtype=torch.float64)
    reference.sum_squares(entries, plain)
    assert_close(plain, expected, "statistics")


def test_squares_of_a_complex_gradient() -> None:
    entry = replace(entry_of((3,)), grad=torch.tensor([3 + 4j, 1j, 0]))
    out = torch.zeros(1, dtype=torch.float64)
    reference.sum_squares([entry], out)
    assert out.item() == 26.0  # 9 + 16 + 1


# --- The operators ----------------------------------------------------------------------------


def test_opcheck() -> None:
    entries = mixed_entries([5, 6])
    squares = torch.zeros(2, dtype=torch.float64)
    ops, check = torch.ops.adaptiverl, torch.library.opcheck
    check(ops.sum_squares_.default, (rows_of(entries), block_of(SIGMA), squares, True))
    # Without rows: what addresses point at is written anew by each of the checks' runs.
    sums = torch.zeros(0, 3, dtype=torch.float64)
    for scale in (None, torch.tensor(0.5, dtype=torch.float64)):
        arguments = (rows_of([]), block_of(SIGMA), GROUPS, EFFECTIVE, squares[:0], scale, sums)
        check(ops.adamw_step_.default, arguments)
    check(ops.normals_.default, (1, 2, 3, 4, 5, torch.zeros(9)))
    check(ops.philox_words_.default, (1, 2, 3, 4, 5, torch.zeros(9, 4, dtype=torch.int32)))


@pytest.mark.parametrize(
    ("place", "wrong", "message"),
    [
        (0, torch.zeros(2, 12, dtype=torch.int64), r"rows must be of shape \[tensors, 13\]"),
        (0, torch.zeros(2, 13), "rows must be int64"),
        (1, torch.zeros(5, dtype=torch.float64), "block must hold"),
        (2, torch.zeros(2, 5), "groups must be float64"),
        (2, torch.ones(1, 5, dtype=torch.float64), "row 1 names group 1, but there are 1"),
        (3, torch.zeros(1, 2, dtype=torch.float64), "effective must hold at least 2 records"),
        (4, torch.zeros(1, dtype=torch.float64), "squares must hold at least 2 records"),
        (5, torch.tensor(1.0), "gradient_scale must be float64"),
        (6, torch.zeros(1, 3, dtype=torch.float64), "sums must hold at least 6 records"),
    ],
)
def test_operator_checks_what_it_is_given(place: int, wrong: Tensor, message: str) -> None:
    entries = mixed_entries([5, 6])
    before = [copy_of(entry) for entry in entries]
    squares = torch.ones(2, dtype=torch.float64)
    arguments = [rows_of(entries), block_of(SIGMA), GROUPS, EFFECTIVE, squares, None, None]
    arguments[place] = wrong
    with pytest.raises(RuntimeError, match=message):
        torch.ops.adaptiverl.adamw_step_(*arguments)
    for a, b in zip(entries, before, strict=True):
        assert_bits(a, b)


# --- Plain AdamW ------------------------------------------------------------------------------

SHAPES = [(50, 7), (33,), (), (1000,), (4, 3, 2)]


def twins(groups: list[dict[str, Any]], **options: Any) -> tuple[Any, Any]:
    """Our optimizer, frozen, and torch's single-tensor one, on equal parameters."""

    def build(make: Callable[..., Any], **more: Any) -> Any:
        torch.manual_seed(1)
        built = []
        for group in groups:
            shapes = group.get("shapes", SHAPES)
            params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
            built.append({k: v for k, v in group.items() if k != "shapes"} | {"params": params})
        return make(built, **options, **more)

    frozen = {"control": Control.frozen()}
    max_grad_norm = options.pop("max_grad_norm", None)
    ours = build(AdaptiveAdamW, **frozen, max_grad_norm=max_grad_norm)
    return ours, build(torch.optim.AdamW, foreach=False, fused=False)


def params_of(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def set_gradients(optimizer: Any, t: int, late: bool) -> None:
    """A noisy quadratic's gradients; some come late, some not always."""
    generator = torch.Generator().manual_seed(t)
    for i, param in enumerate(params_of(optimizer)):
        noise = torch.randn(param.shape, generator=generator)
        # Of very different sizes, so that eps counts for some of them.
        param.grad = (0.1 * param.detach() + noise) * 10.0 ** -(i % 5)
        if late and ((i == 1 and t < 60) or (i == 2 and t % 3 == 0) or (i == 3 and t > 150)):
            param.grad = None


CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "plain": ([{}], {"weight_decay": 0.0}),
    "weight decay": ([{}], {"weight_decay": 0.3}),
    "maximize": ([{}], {"maximize": True}),
    "amsgrad": ([{}], {"amsgrad": True}),
    "all at once": ([{}], {"amsgrad": True, "maximize": True, "weight_decay": 0.3, "eps": 1e-4}),
    "groups": (
        [
            {"betas": (0.9, 0.999), "lr": 1e-3},
            {"betas": (0.8, 0.95), "lr": 3e-3, "eps": 1e-5, "weight_decay": 0.0},
            {"betas": (0.95, 0.99), "lr": 2e-4, "amsgrad": True, "maximize": True},
            {"betas": (0.0, 0.9), "lr": 1e-3, "shapes": [(5,)]},
        ],
        {"weight_decay": 0.1},
    ),
    "no first moment": ([{}], {"betas": (0.0, 0.99)}),
    "rate of zero": ([{"lr": 0.0}, {"lr": 1e-3}], {}),
}


@pytest.mark.parametrize("late", [False, True], ids=["all gradients", "late and missing gradients"])
@pytest.mark.parametrize("case", CASES)
def test_frozen_is_adamw(case: str, late: bool) -> None:
    groups, options = CASES[case]
    ours, theirs = twins(groups, **options)
    compare_runs(ours, theirs, late=late)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_frozen_is_adamw_with_a_rate_in_a_tensor(dtype: torch.dtype) -> None:
    # Without a scalar parameter: torch promotes that to float64 beside a float64 rate, and rounds
    # less than it does with the same rate as a number.
    ours, theirs = twins([{"shapes": [shape for shape in SHAPES if shape]}])
    for optimizer in (ours, theirs):
        optimizer.param_groups[0]["lr"] = torch.tensor(1e-3, dtype=dtype)

    def halve(optimizer: Any, t: int) -> None:
        if t == 100:
            optimizer.param_groups[0]["lr"].mul_(0.5)

    compare_runs(ours, theirs, change=halve)


def test_a_rate_in_a_tensor_from_the_start() -> None:
    ours, theirs = twins([{}], lr=torch.tensor(2e-3))
    compare_runs(ours, theirs)
    assert isinstance(ours.param_groups[0]["lr"], Tensor)


def test_frozen_is_adamw_under_a_schedule() -> None:
    ours, theirs = twins([{}, {"lr": 3e-3, "betas": (0.8, 0.99)}])

    def anneal(optimizer: Any, t: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] *= 0.99 if t > 20 else 1.02

    compare_runs(ours, theirs, change=anneal)


def compare_runs(
    ours: Any,
    theirs: Any,
    *,
    late: bool = False,
    steps: int = 200,
    before: Callable[[Any], None] = lambda _: None,
    change: Callable[[Any, int], None] = lambda *_: None,
) -> None:
    """Raise unless so many steps take both to the same parameters and moments."""
    start = [param.detach().clone() for param in params_of(ours)]
    for t in range(steps):
        for optimizer in (ours, theirs):
            set_gradients(optimizer, t, late)
            change(optimizer, t)
        before(theirs)
        ours.step(loss=3.0 - 0.01 * t)
        theirs.step()
    moved = 0
    for a, b, first in zip(params_of(ours), params_of(theirs), start, strict=True):
        assert_close(a, b, "torch_adamw_float32")
        state, expected = ours.state[a], theirs.state[b]
        assert set(expected) | {"mu_product"} == set(state)
        for name, value in expected.items():
            # A first moment passes through zero: its errors are in proportion to the gradients.
            size = expected["exp_avg_sq"].mean().sqrt().item() if name == "exp_avg" else None
            assert_close(state[name], value, "torch_adamw_float32", scale=size)
        moved += not torch.equal(a, first)
    assert moved >= len(start) // 2


def test_the_comparison_sees_a_controller() -> None:
    """One that is not frozen is not AdamW."""
    ours, theirs = twins([{}])
    thawed = AdaptiveAdamW(params_of(ours), control=Control(every=1))
    with pytest.raises(AssertionError, match="torch_adamw_float32"):
        compare_runs(thawed, theirs, steps=20)


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.3, "amsgrad": True, "maximize": True}])
def test_clipping_is_torchs(options: dict[str, Any]) -> None:
    max_norm = 27.0
    ours, theirs = twins([{}, {"lr": 3e-3}], **options, max_grad_norm=max_norm)
    norms = []

    def clip(optimizer: Any) -> None:
        norm = torch.nn.utils.clip_grad_norm_(params_of(optimizer), max_norm, foreach=False)
        norms.append(norm.item())

    compare_runs(ours, theirs, late=True, before=clip)
    # Some steps were clipped and some were not.
    assert min(norms) < 0.98 * max_norm
    assert max(norms) > 1.02 * max_norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clipping_leaves_the_gradients_and_comes_before_the_noise(dtype: torch.dtype) -> None:
    """RMS(g) is that of the clipped gradient; the norm that of the raw one, over all parameters."""
    params = [torch.nn.Parameter(torch.randn(n, dtype=dtype)) for n in (400, 30)]
    grads = [torch.randn(n, dtype=dtype) for n in (400, 30)]
    optimizer = AdaptiveAdamW(params, lr=1e-2, control=NOISY, seed=SEED, max_grad_norm=2.0)
    scale = oracle.clip_coefficient([g.numpy() for g in grads], 2.0)
    assert 0 < scale < 0.2
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        param.grad = grad.clone()
        entry = oracle_entry(param, i)
        twin = Expected(entry)
        group = [1e-2, 0.9, 0.999, 1e-8, 1e-2]
        twin.step(
            grad,
            entry,
            noise=SIGMA,
            lr=1e-2,
            momentum=0.9,
            group=group,
            step=1,
            gradient_scale=scale,
        )
        params[i].twin = twin  # type: ignore[attr-defined]
    optimizer.step()
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        done = replace(oracle_entry(param, i), **optimizer.state[param])
        param.twin.compare(done, "step_float32")  # type: ignore[attr-defined]
        torch.testing.assert_close(param.grad, grad, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("max_norm", "grad_scale", "expected"),
    [
        (None, None, None),
        (None, 4.0, 0.25),
        (10.0, None, 1.0),  # the norm is 5: nothing to clip
        (2.5, None, 2.5 / (5 + 1e-6)),
        # Scaled by 4 the true norm is 1.25: within 2, and beyond 1.
        (2.0, 4.0, 0.25),
        (1.0, 4.0, 0.25 / (1.25 + 1e-6)),
    ],
)
def test_gradient_scale(
    max_norm: float | None, grad_scale: float | None, expected: float | None
) -> None:
    squares = [torch.tensor([9.0, 0.0]).double(), torch.tensor([16.0]).double()]
    scale = None if grad_scale is None else torch.tensor([grad_scale])
    actual = reference.gradient_scale(squares, max_norm, scale)
    if expected is None:
        assert actual is None
    else:
        assert_close(actual, expected, "law")
