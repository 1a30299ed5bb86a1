"""The Triton kernels in Triton's interpreter against the oracle. `test_kernels.py` runs this file.

By hand: ``TRITON_INTERPRET=1 pytest tests/interpreted_kernels.py``. The interpreter is chosen when
triton is imported, so these tests need a process of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import oracle
import pytest
import torch
import triton
import triton.language as tl
from adaptiverl.kernels import adamw_step, philox, statistics, sweep
from adaptiverl.kernels.chunks import CHUNK, chunk_table, partial_sums
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tolerances import assert_close
from torch import Tensor
from triton import knobs
from triton.runtime import interpreter

from adaptiverl.layout import FIELDS

if not knobs.runtime.interpret:
    raise RuntimeError("set TRITON_INTERPRET=1 before Python starts: these tests run interpreted")

# Triton 3.6's interpreter does this at every loop, and says nothing of it from 3.7 on.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

BETA2, EPS, WEIGHT_DECAY = 0.98, 1e-8, 0.1
GROUPS = torch.tensor(
    [[9.0, 9.0, BETA2, EPS, WEIGHT_DECAY], [9.0, 9.0, 0.9, 1e-6, 0.02]], dtype=torch.float64
)
EFFECTIVE = torch.tensor([[0.05, 0.87], [0.02, 0.95]], dtype=torch.float64)
SEED = (1 << 63) + (7 << 32) + 0xDEADBEEF
TOLERANCE = {
    torch.float32: "step_float32",
    torch.bfloat16: "step_bfloat16",
    torch.float16: "step_float16",
}


@pytest.fixture(autouse=True)
def _hardware_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter cuts float32 off to bfloat16; GPUs round, as `test_codegen.py` checks."""
    cut_off = interpreter._convert_float

    def convert(values: np.ndarray, source: tl.dtype, target: tl.dtype, mode: object) -> np.ndarray:
        if (source, target) != (tl.float32, tl.bfloat16):
            return cut_off(values, source, target, mode)
        rounded = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)
        return rounded.view(torch.uint16).numpy()

    monkeypatch.setattr(interpreter, "_convert_float", convert)


def controller_block(noise: float, active: float = 1, step: float = 5) -> Tensor:
    """The controller's state; what no kernel may read is NaN."""
    values = {
        "noise": noise,
        "active": active,
        "step": step,
        "seed_low": SEED & 0xFFFFFFFF,
        "seed_high": SEED >> 32,
    }
    assert values.keys() <= set(FIELDS)
    return torch.tensor([values.get(name, float("nan")) for name in FIELDS], dtype=torch.float64)


def place(values: Tensor, misaligned: bool) -> Tensor:
    """The values in memory of their own, at a multiple of 16 bytes or one element past it."""
    skipped = 1 if misaligned else 0
    memory = torch.full((values.numel() + skipped + 4,), 77, dtype=values.dtype)
    assert memory.data_ptr() % 16 == 0
    here = memory[skipped : skipped + values.numel()]
    here.copy_(values.flatten())
    return here


@dataclass
class Parameter:
    """One tensor with its state as before a step, and what its row says beside the addresses."""

    param: Tensor
    grad: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    max_exp_avg_sq: Tensor
    group: int = 0
    index: int = 0
    offset: int = 0
    logical_numel: int = 0
    maximize: bool = False
    square: float = 0.0
    steps: int = 3
    step: Tensor = field(init=False)
    mu_product: Tensor = field(init=False)

    def __post_init__(self) -> None:
        momentum = float(EFFECTIVE[self.group, 1])
        self.step = torch.tensor(float(self.steps + 1))
        self.mu_product = torch.tensor(0.9**self.steps * momentum, dtype=torch.float64)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.param, self.grad, self.exp_avg, self.exp_avg_sq, self.max_exp_avg_sq

    def state(self) -> tuple[Tensor, ...]:
        return self.param, self.exp_avg, self.exp_avg_sq, self.max_exp_avg_sq

    def row(self) -> tuple[int, ...]:
        tensors = (*self.tensors(), self.step, self.mu_product)
        numbers = (self.group, self.index, self.offset, self.logical_numel, int(self.maximize))
        return (*(t.data_ptr() for t in tensors), self.param.numel(), *numbers)


def make_parameter(
    numel: int,
    param_dtype: torch.dtype = torch.float32,
    grad_dtype: torch.dtype = torch.float32,
    misaligned: str = "",
    **options: int | bool,
) -> Parameter:
    values = torch.randn(4, numel, dtype=torch.float64)
    tensors = {
        "param": values[0].to(param_dtype),
        "grad": (0.5 * values[1]).to(grad_dtype),
        "exp_avg": (0.3 * values[2]).float(),
        "exp_avg_sq": (0.2 * (0.05 + values[3].square())).float(),
        "max_exp_avg_sq": (0.25 * torch.rand(numel)).float(),
    }
    placed = {name: place(t, misaligned == name) for name, t in tensors.items()}
    made = Parameter(**placed, logical_numel=numel, **options)  # type: ignore[arg-type]
    made.square = float(made.grad.double().square().sum())
    return made


@dataclass
class Launch:
    """The tables of one launch, and the launch."""

    parameters: Sequence[Parameter]

    def __post_init__(self) -> None:
        self.rows = torch.tensor([p.row() for p in self.parameters], dtype=torch.int64)
        self.chunks = chunk_table([p.param.numel() for p in self.parameters])
        count = len(self.parameters)
        self.partials, self.finished = partial_sums(len(self.chunks), count, torch.device("cpu"))
        self.partials.fill_(float("nan"))
        self.squares = torch.full((count,), float("nan"), dtype=torch.float64)

    def statistics(self, block: Tensor, always: bool) -> Tensor:
        statistics.sum_squares(
            self.rows,
            self.chunks,
            block,
            self.squares,
            self.partials,
            self.finished,
            always=always,
            grad_dtype=self.parameters[0].grad.dtype,
        )
        return self.squares

    def step(
        self,
        noise: float = 0.0,
        gradient_scale: float | None = None,
        sums: bool = False,
        amsgrad: bool = False,
        block: Tensor | None = None,
    ) -> Tensor | None:
        squares = torch.tensor([p.square for p in self.parameters], dtype=torch.float64)
        scale = None
        if gradient_scale is not None:
            scale = torch.tensor(gradient_scale, dtype=torch.float64)
        shape = (len(self.parameters), 3)
        out = torch.full(shape, float("nan"), dtype=torch.float64) if sums else None
        adamw_step.adamw_step(
            self.rows,
            self.chunks,
            controller_block(noise) if block is None else block,
            GROUPS,
            EFFECTIVE,
            squares,
            scale,
            out,
            self.partials,
            self.finished,
            param_dtype=self.parameters[0].param.dtype,
            grad_dtype=self.parameters[0].grad.dtype,
            amsgrad=amsgrad,
        )
        assert not self.finished.any(), "a ticket was not handed back"
        return out


def expected(
    p: Parameter, noise: float, gradient_scale: float | None, amsgrad: bool
) -> oracle.AdamWState:
    """The oracle's step of a parameter that was not stepped yet."""
    lr, momentum = EFFECTIVE[p.group].tolist()
    _, _, beta2, eps, weight_decay = GROUPS[p.group].tolist()
    numel = p.param.numel()
    elements = np.arange(p.offset, p.offset + numel)
    scale = 1.0 if gradient_scale is None else gradient_scale
    param, grad, exp_avg, exp_avg_sq, largest = (
        t.double().numpy() for t in (p.param, p.grad, p.exp_avg, p.exp_avg_sq, p.max_exp_avg_sq)
    )
    return oracle.adamw_step(
        param,
        grad,
        exp_avg,
        exp_avg_sq,
        largest if amsgrad else None,
        step=p.steps,
        mu_product=0.9**p.steps,
        lr=lr,
        momentum=momentum,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        maximize=p.maximize,
        noise=noise,
        xi=oracle.noise(SEED, p.index, 5, elements) if noise else None,
        gradient_scale=scale,
        sum_of_squares=p.square * scale**2,
        rms_numel=p.logical_numel,
    )


def check(
    parameters: Sequence[Parameter],
    noise: float = 0.0,
    gradient_scale: float | None = None,
    sums: bool = False,
    amsgrad: bool = False,
) -> None:
    """Step all parameters in one launch and compare everything with the oracle."""
    wanted = [expected(p, noise, gradient_scale, amsgrad) for p in parameters]
    wanted_sums = [
        oracle.alignment_sums(
            p.grad.double().numpy(),
            p.exp_avg.numpy(),
            p.exp_avg_sq.numpy(),
            float(GROUPS[p.group, 3]),
            gradient_scale=1.0 if gradient_scale is None else gradient_scale,
            maximize=p.maximize,
        )
        for p in parameters
    ]
    untouched = [p.max_exp_avg_sq.clone() for p in parameters]
    got_sums = Launch(parameters).step(noise, gradient_scale, sums, amsgrad)
    for p, state, largest in zip(parameters, wanted, untouched, strict=True):
        assert_close(p.param, state.param, TOLERANCE[p.param.dtype])
        assert_close(p.exp_avg, state.exp_avg, "step_float32")
        assert_close(p.exp_avg_sq, state.exp_avg_sq, "step_float32")
        if amsgrad:
            assert_close(p.max_exp_avg_sq, state.max_exp_avg_sq, "step_float32")
        else:
            assert torch.equal(p.max_exp_avg_sq, largest)
    if sums:
        assert got_sums is not None
        for (gu, gg, uu), row in zip(wanted_sums, got_sums, strict=True):
            assert_close(row[0], gu, "statistics", scale=(gg * uu) ** 0.5)
            assert_close(row[1], gg, "statistics")
            assert_close(row[2], uu, "statistics")


# Philox and the normals


@triton.jit
def _words_kernel(counters, keys, out, COUNT: tl.constexpr):
    lanes = tl.arange(0, COUNT)
    c0 = tl.load(counters + lanes).to(tl.uint32)
    c1 = tl.load(counters + COUNT + lanes).to(tl.uint32)
    c2 = tl.load(counters + 2 * COUNT + lanes).to(tl.uint32)
    c3 = tl.load(counters + 3 * COUNT + lanes).to(tl.uint32)
    k0, k1 = tl.load(keys).to(tl.uint32), tl.load(keys + 1).to(tl.uint32)
    w0, w1, w2, w3 = philox.philox4x32(c0, c1, c2, c3, k0, k1)
    tl.store(out + lanes, w0.to(tl.int64))
    tl.store(out + COUNT + lanes, w1.to(tl.int64))
    tl.store(out + 2 * COUNT + lanes, w2.to(tl.int64))
    tl.store(out + 3 * COUNT + lanes, w3.to(tl.int64))


def words(counters: Tensor, keys: Sequence[int]) -> np.ndarray:
    out = torch.empty_like(counters)
    _words_kernel[(1,)](counters, torch.tensor(keys), out, COUNT=counters.shape[1])
    return out.numpy()


def test_philox_gives_the_published_answers() -> None:
    ones = 0xFFFFFFFF
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    answers = [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ones,) * 4, (ones,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (pi, (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ]
    for counter, key, answer in answers:
        assert tuple(words(torch.tensor(counter)[:, None], key)[:, 0]) == answer


def test_philox_words_are_the_oracles() -> None:
    counters = torch.randint(0, 2**32, (4, 64))
    keys = torch.randint(0, 2**32, (2,)).tolist()
    assert np.array_equal(words(counters, keys), oracle.philox4x32(*counters.numpy(), *keys))


@triton.jit
def _normals_kernel(first, numbers, by_quad, by_element, QUADS: tl.constexpr):
    element = tl.load(first)
    index = tl.load(numbers).to(tl.uint32)
    step = tl.load(numbers + 1).to(tl.uint32)
    k0, k1 = tl.load(numbers + 2).to(tl.uint32), tl.load(numbers + 3).to(tl.uint32)
    lanes = tl.arange(0, 4 * QUADS)
    xi = philox.quad_normals(element >> 2, index, step, k0, k1, QUADS)
    tl.store(by_quad + lanes, xi)
    tl.store(by_element + lanes, philox.element_normals(element + lanes, index, step, k0, k1))


@pytest.mark.parametrize("first", [0, 4096, 2**34 - 2048, 2**60])
def test_normals_are_the_oracles_by_quad_and_by_element(first: int) -> None:
    index, step, quads = 2**32 - 5, 2**31 + 3, 1024
    numbers = torch.tensor([index, step, SEED & 0xFFFFFFFF, SEED >> 32])
    by_quad, by_element = torch.empty(4 * quads), torch.empty(4 * quads)
    _normals_kernel[(1,)](torch.tensor(first), numbers, by_quad, by_element, QUADS=quads)
    wanted = oracle.noise(SEED, index, step, np.arange(first, first + 4 * quads))
    assert_close(by_quad, wanted, "normals", scale=1.0)
    # Not only against the normals' scale: each to the bound that philox.py states.
    assert float(np.max(np.abs(by_quad.double().numpy() / wanted - 1))) < 4.1e-6
    assert torch.equal(by_quad, by_element)


# Statistics

SIZES = (0, CHUNK - 1, 1, CHUNK, 0, 0, CHUNK + 1, 7, 1000, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_squares_are_summed_per_tensor(dtype: torch.dtype) -> None:
    parameters = [make_parameter(n, dtype, dtype) for n in (*SIZES, 2 * CHUNK + 5000)]
    parameters += [make_parameter(n, dtype, dtype, "grad") for n in (3000, 5)]
    launch = Launch(parameters)
    squares = launch.statistics(controller_block(0.0), always=True)
    for p, square in zip(parameters, squares, strict=True):
        assert_close(square, float(p.grad.double().square().sum()), "statistics")
    assert not launch.finished.any()
    again = squares.clone()
    assert torch.equal(launch.statistics(controller_block(0.0), always=True), again)


@pytest.mark.parametrize(
    ("noise", "active", "always", "runs"),
    [(0.1, 1, False, True), (0.0, 1, False, False), (0.1, 0, True, False), (0.0, 1, True, True)],
)
def test_statistics_end_at_once_where_nobody_needs_them(
    noise: float, active: float, always: bool, runs: bool
) -> None:
    launch = Launch([make_parameter(100)])
    squares = launch.statistics(controller_block(noise, active), always)
    assert bool(squares.isfinite().all()) == runs
    assert bool(launch.partials[:, 0].isfinite().all()) == runs


# The sweep

PAIRS = [
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
]


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize(("param_dtype", "grad_dtype"), PAIRS, ids=str)
def test_step_is_the_oracles_with_every_option(
    param_dtype: torch.dtype, grad_dtype: torch.dtype, noise: float, amsgrad: bool
) -> None:
    parameters = [
        make_parameter(0, param_dtype, grad_dtype),
        make_parameter(2100, param_dtype, grad_dtype, index=1),
        make_parameter(1, param_dtype, grad_dtype, index=2, maximize=True),
        make_parameter(700, param_dtype, grad_dtype, "grad", index=3, group=1, maximize=True),
        make_parameter(0, param_dtype, grad_dtype, index=4),
    ]
    check(parameters, noise, gradient_scale=0.37, sums=True, amsgrad=amsgrad)


@pytest.mark.parametrize("sums", [False, True])
@pytest.mark.parametrize("gradient_scale", [None, 0.01])
@pytest.mark.parametrize("maximize", [False, True])
def test_step_is_the_oracles_with_few_options(
    maximize: bool, gradient_scale: float | None, sums: bool
) -> None:
    check([make_parameter(1030, maximize=maximize)], 0.0, gradient_scale, sums)


def test_chunks_meet_at_their_edges_and_empty_tensors_are_harmless() -> None:
    check([make_parameter(n, index=i) for i, n in enumerate(SIZES)], sums=True)


def test_a_tensor_of_several_chunks_is_summed_whole() -> None:
    check([make_parameter(2 * CHUNK + 1500)], noise=0.2, sums=True)


@pytest.mark.parametrize("misaligned", ["param", "grad", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"])
def test_any_tensor_may_be_misaligned(misaligned: str) -> None:
    check([make_parameter(1100, misaligned=misaligned)], noise=0.2, sums=True, amsgrad=True)


@settings(max_examples=12, phases=(Phase.generate,))
@given(
    sizes=st.lists(st.integers(0, 2500), min_size=1, max_size=4),
    pair=st.sampled_from(PAIRS),
    noise=st.sampled_from([0.0, 0.01, 1.0]),
    gradient_scale=st.none() | st.floats(1e-3, 10),
    misaligned=st.sampled_from(["", "grad", "param"]),
    amsgrad=st.booleans(),
    maximize=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_step_is_the_oracles_over_random_shapes(
    sizes: list[int],
    pair: tuple[torch.dtype, torch.dtype],
    noise: float,
    gradient_scale: float | None,
    misaligned: str,
    amsgrad: bool,
    maximize: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    parameters = [
        make_parameter(n, *pair, misaligned if i % 2 else "", index=i, maximize=maximize)
        for i, n in enumerate(sizes)
    ]
    check(parameters, noise, gradient_scale, sums=True, amsgrad=amsgrad)


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 1023, 1024, 1026, 2051])
def test_shards_draw_the_noise_of_the_whole(cut: int) -> None:
    whole = make_parameter(2052, index=6)
    shards = []
    for part in (slice(0, cut), slice(cut, 2052)):
        param, grad, *moments = (place(t[part], False) for t in whole.tensors())
        shard = Parameter(
            param=param,
            grad=grad,
            exp_avg=moments[0],
            exp_avg_sq=moments[1],
            max_exp_avg_sq=moments[2],
            index=6,
            offset=part.start,
            logical_numel=2052,
            square=whole.square,
        )
        shards.append(shard)
    Launch([whole]).step(noise=0.5)
    Launch(shards).step(noise=0.5)
    for name in ("param", "exp_avg", "exp_avg_sq"):
        together = torch.cat([getattr(shard, name) for shard in shards])
        assert torch.equal(together, getattr(whole, name)), name


def test_a_shard_far_inside_a_tensor_draws_its_own_noise() -> None:
    for offset in (2**34 - 4, 2**34 + 1):
        check([make_parameter(1100, offset=offset)], noise=1.0)


def test_a_chunk_beyond_two_to_the_thirty_first_elements_is_found() -> None:
    p = make_parameter(1100)
    wanted = expected(p, 0.0, None, False)
    launch = Launch([p])
    number = 2**32 // CHUNK
    # The addresses of a tensor whose last elements are the ones that are here.
    launch.rows[0, :5] -= 4 * 2**32
    launch.rows[0, 7] += 2**32
    launch.chunks[0, 1] = number
    launch.step()
    assert_close(p.param, wanted.param, "step_float32")
    assert_close(p.exp_avg_sq, wanted.exp_avg_sq, "step_float32")


def test_a_skipped_step_changes_nothing() -> None:
    p = make_parameter(1100)
    p.grad[5] = float("nan")
    before = [t.clone() for t in p.state()]
    block = controller_block(0.3, active=0)
    sums = Launch([p]).step(0.3, sums=True, amsgrad=True, block=block)
    assert all(torch.equal(t, b) for t, b in zip(p.state(), before, strict=True))
    assert sums is not None
    assert bool(sums.isnan().all())


def test_without_noise_no_random_word_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def refuse(*arguments: object) -> None:
        drawn.append(arguments)
        raise AssertionError("a normal was drawn")

    monkeypatch.setattr(sweep, "quad_normals", refuse)
    monkeypatch.setattr(sweep, "element_normals", refuse)
    check([make_parameter(1100)])
    assert not drawn
    with pytest.raises(Exception, match="a normal was drawn"):
        Launch([make_parameter(1100)]).step(noise=0.1)
    assert drawn


def test_two_runs_give_the_same_bits() -> None:
    outcomes = []
    for _ in range(2):
        torch.manual_seed(3)
        p = make_parameter(CHUNK + 1100)
        sums = Launch([p]).step(noise=0.2, sums=True, amsgrad=True)
        assert sums is not None
        outcomes.append([*p.state(), sums])
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


def test_a_nan_stays_where_it_is() -> None:
    p = make_parameter(1100)
    p.grad[1030] = float("nan")
    Launch([p]).step(amsgrad=True)
    for t in p.state():
        assert t.isnan().nonzero().flatten().tolist() == [1030]


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_eps_of_zero_is_right_for_subnormal_second_moments() -> None:
    groups = GROUPS.clone()
    groups[0, 3] = 0
    p = make_parameter(1100)
    p.grad.mul_(1e-22)
    p.exp_avg.mul_(1e-22)
    p.exp_avg_sq.fill_(1e-41)
    lr, momentum = EFFECTIVE[0].tolist()
    wanted = oracle.adamw_step(
        *(t.double().numpy() for t in (p.param, p.grad, p.exp_avg, p.exp_avg_sq)),
        step=p.steps,
        mu_product=0.9**p.steps,
        lr=lr,
        momentum=momentum,
        beta2=BETA2,
        eps=0.0,
        weight_decay=WEIGHT_DECAY,
    )
    launch = Launch([p])
    out = torch.zeros(1, 3, dtype=torch.float64)
    adamw_step.adamw_step(
        launch.rows,
        launch.chunks,
        controller_block(0.0),
        groups,
        EFFECTIVE,
        None,
        None,
        out,
        launch.partials,
        launch.finished,
        param_dtype=torch.float32,
        grad_dtype=torch.float32,
        amsgrad=False,
    )
    # The second moment itself has only a subnormal's bits.
    rough = np.abs(p.param.double().numpy() - wanted.param)
    assert float(rough.max()) < 2e-4
    assert bool(out.isfinite().all())


def test_no_tensors_is_no_launch() -> None:
    empty = torch.empty((0, 2), dtype=torch.int32)
    nothing = torch.empty(0, dtype=torch.float64)
    rows = torch.empty((0, 13), dtype=torch.int64)
    partials, finished = partial_sums(0, 0, torch.device("cpu"))
    block = controller_block(0.0)
    statistics.sum_squares(
        rows, empty, block, nothing, partials, finished, always=True, grad_dtype=torch.float32
    )
    adamw_step.adamw_step(
        rows,
        empty,
        block,
        GROUPS,
        EFFECTIVE,
        None,
        None,
        None,
        partials,
        finished,
        param_dtype=torch.float32,
        grad_dtype=torch.float32,
        amsgrad=False,
    )
