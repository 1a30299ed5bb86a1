"""Whole optimizers through the Triton backend, in Triton's interpreter, against the CPU's sweep.

`test_triton_backend.py` runs this file. By hand: ``TRITON_INTERPRET=1 pytest
tests/interpreted_optimizer.py``. The interpreter is chosen when triton is imported, so these tests
need a process of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from adaptiverl.kernels.layout import STATE_ACTIVE, STATE_REWIND
from host_waits import HostWaits
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from interpreted_pass import _hardware_rounding, _patched_once, pytestmark  # noqa: F401
from pass_cases import COUNT_EFFECTIVE, COUNT_GROUPS, counted_tables
from tolerances import assert_close
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import interpreter

import adaptiverl
from adaptiverl import AdaptiveAdamW, AdaptiveLion, AdaptiveSGD, Control, backends
from adaptiverl.kernels import clip, count, reference, rewind
from adaptiverl.layout import FIELDS

QUIET = Control(noise_bounds=(0.0, 0.0))
NOISY = Control(every=2, noise_bounds=(0.05, 0.05))
ON_PARAMETER = Control(every=2, noise_bounds=(0.05, 0.05), noise_target="parameter")

Make = Callable[[list[nn.Parameter]], Any]


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tensors go where CUDA's would."""
    use_triton(monkeypatch)


def use_triton(patch: pytest.MonkeyPatch) -> None:
    real = backends.resolve
    patch.setattr(backends, "resolve", lambda _, *dtypes: real("cuda", *dtypes))


Trained = tuple[Any, list[nn.Parameter]]


def by_both(train: Callable[[], Trained], other: str = "cpu") -> tuple[Trained, Trained]:
    """The same training by Triton and by the backend that takes it otherwise."""
    theirs = train()
    assert backends_of(theirs[0]) == {other}
    with pytest.MonkeyPatch.context() as patch:
        use_triton(patch)
        ours = train()
    assert backends_of(ours[0]) == {"triton"}
    return ours, theirs


def parameters(*sizes: int, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(n, generator=generator).to(dtype)) for n in sizes]


def gradients(params: list[nn.Parameter], step: int, dtype: torch.dtype | None = None) -> None:
    generator = torch.Generator().manual_seed(1000 + step)
    for p in params:
        grad = (0.5 * torch.randn(p.shape, generator=generator)).to(p.dtype)
        if dtype is None or dtype == p.dtype:
            p.grad = grad
        else:
            p.grad = None
            p.grad_dtype = dtype  # type: ignore[attr-defined]
            p.grad = grad.to(dtype)


def run(make: Make, params: list[nn.Parameter], steps: int = 3, **scaler: Tensor) -> Any:
    optimizer = make(params)
    for step in range(steps):
        gradients(params, step)
        for name, value in scaler.items():
            setattr(optimizer, name, value)
        optimizer.observe(3.0 - 0.1 * step)
        optimizer.step()
    return optimizer


def backends_of(optimizer: Any) -> set[str]:
    return {bucket.backend.name for bucket in optimizer._round.plan._sorted}


def assert_same_training(ours: Trained, theirs: Trained) -> None:
    for a, b in zip(ours[1], theirs[1], strict=True):
        assert_close(a.detach(), b.detach(), "step_float32")
        assert ours[0].state[a].keys() == theirs[0].state[b].keys()
        for name, value in theirs[0].state[b].items():
            assert_close(ours[0].state[a][name], value, "step_float32")


def compare(make: Make, sizes: tuple[int, ...], **scaler: Any) -> None:
    """The same training by both backends."""

    def train() -> Trained:
        params = parameters(*sizes)
        return run(make, params, **scaler), params

    ours, theirs = by_both(train)
    for p, start in zip(ours[1], parameters(*sizes), strict=True):
        assert p.numel() == 0 or not torch.equal(p, start)
    assert_same_training(ours, theirs)


# The whole optimizer


@pytest.mark.parametrize("control", [QUIET, NOISY, ON_PARAMETER], ids=["quiet", "noisy", "on p"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (AdaptiveAdamW, {"max_grad_norm": 0.7, "seed": 7}),
        (AdaptiveAdamW, {}),
        (AdaptiveSGD, {"momentum": 0.0, "weight_decay": 0.1, "max_grad_norm": 0.7}),
        (AdaptiveSGD, {"momentum": 0.9, "weight_decay": 0.1, "max_grad_norm": 0.7}),
        (AdaptiveLion, {"weight_decay": 0.1, "max_grad_norm": 0.7}),
    ],
)
def test_it_trains_as_on_the_cpu(kind: Any, options: dict[str, Any], control: Control) -> None:
    compare(lambda params: kind(params, 0.02, control=control, **options), (0, 700, 1, 7))


@settings(max_examples=6, phases=(Phase.generate,))
@given(
    sizes=st.lists(st.integers(0, 1100), min_size=1, max_size=2),
    control=st.sampled_from([QUIET, NOISY, ON_PARAMETER]),
    amsgrad=st.booleans(),
    maximize=st.booleans(),
    norm=st.none() | st.floats(0.1, 10),
    scale=st.none() | st.sampled_from([0.5, 1024.0]),
)
def test_adamw_trains_as_on_the_cpu_over_random_options(
    sizes: list[int],
    control: Control,
    amsgrad: bool,
    maximize: bool,
    norm: float | None,
    scale: float | None,
) -> None:
    scaler: dict[str, Any] = {} if scale is None else {"grad_scale": torch.tensor(scale)}
    compare(
        lambda params: AdaptiveAdamW(
            params,
            0.02,
            amsgrad=amsgrad,
            maximize=maximize,
            control=control,
            max_grad_norm=norm,
        ),
        (*sizes, 3),
        **scaler,
    )


def test_the_noise_is_the_cpus() -> None:
    """σ = 1 and a momentum of 0.85: the moments after one step are the noise, to the bit of u."""
    control = Control(noise_bounds=(0.999, 0.999))

    def train() -> Trained:
        params = parameters(2050)
        return run(lambda p: AdaptiveAdamW(p, 0.01, control=control, seed=11), params, 1), params

    moments = []
    for optimizer, params in by_both(train):
        gradients(params, 0)
        moments.append(optimizer.state[params[0]]["exp_avg"] / 0.1 - params[0].grad)
    assert_close(moments[0], moments[1], "normals", scale=1.0)
    assert 0.4 < float(moments[0].std()) < 0.6


def test_an_overflow_changes_nothing(triton: None) -> None:
    params = parameters(600, 3)
    optimizer = run(lambda p: AdaptiveAdamW(p, 0.02, control=NOISY, max_grad_norm=1.0), params, 2)
    before = [p.detach().clone() for p in params]
    state = [{k: v.clone() for k, v in optimizer.state[p].items()} for p in params]
    gradients(params, 2)
    params[0].grad[5] = float("inf")  # type: ignore[index]
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(64.0), torch.tensor(1.0)
    optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    for p, held in zip(params, state, strict=True):
        assert all(torch.equal(optimizer.state[p][name], x) for name, x in held.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_steps_as_elsewhere(dtype: torch.dtype) -> None:
    def train() -> Trained:
        params = parameters(1100, 5, dtype=dtype)
        return run(lambda p: AdaptiveAdamW(p, 0.1, control=NOISY), params, 1), params

    other = "cpu" if dtype == torch.bfloat16 else "reference"
    (ours, params), (theirs, expected) = by_both(train, other)
    for a, b in zip(params, expected, strict=True):
        name = "step_bfloat16" if dtype == torch.bfloat16 else "step_float16"
        assert_close(a.detach(), b.detach(), name)
        for key in ("exp_avg", "exp_avg_sq"):
            assert ours.state[a][key].dtype == torch.float32
            assert_close(ours.state[a][key], theirs.state[b][key], "step_float32")


def test_dtypes_and_amsgrad_share_an_optimizer_but_no_launch(triton: None) -> None:
    params = parameters(300) + parameters(200, dtype=torch.bfloat16) + parameters(100, 50)
    groups: list[dict[str, Any]] = [{"params": params[:3]}, {"params": params[3:], "amsgrad": True}]
    optimizer = run(lambda _: AdaptiveAdamW(groups, 0.1, control=NOISY, max_grad_norm=1.0), params)
    assert backends_of(optimizer) == {"triton"}
    assert [len(bucket.indices) for bucket in optimizer._round.plan._sorted] == [2, 1, 1]


# What the hard cases need


def test_gradients_may_be_views_into_one_bucket_at_odd_offsets() -> None:
    """As DistributedDataParallel makes them: without padding, so not aligned to 16 bytes."""
    sizes = (3, 1100, 5, 600)

    def train() -> Trained:
        params = parameters(*sizes)
        bucket = torch.zeros(sum(sizes))
        optimizer = AdaptiveAdamW(params, 0.02, control=NOISY)
        for step in range(2):
            gradients(params, step)
            bucket.copy_(torch.cat([p.grad for p in params]))  # type: ignore[misc]
            for p, view in zip(params, bucket.split(sizes), strict=True):
                p.grad = view
            optimizer.step(loss=torch.tensor(1.0))
        return optimizer, params

    ours, theirs = by_both(train)
    assert any(p.grad.data_ptr() % 16 for p in ours[1])  # type: ignore[union-attr]
    assert_same_training(ours, theirs)


def test_scalars_and_gradients_that_come_and_go() -> None:
    """A 0-d parameter; one without a gradient in some steps; one that is frozen, then thaws."""

    def train() -> Trained:
        params = [nn.Parameter(torch.tensor(0.5)), *parameters(520, 40, 9)]
        optimizer = AdaptiveAdamW(params, 0.02, control=NOISY, max_grad_norm=0.5)
        for step in range(5):
            gradients(params, step)
            if step in (1, 3):
                params[1].grad = None
            if step < 2:
                params[2].grad = None
            optimizer.step(loss=torch.tensor(2.0))
        return optimizer, params

    ours, theirs = by_both(train)
    assert [int(ours[0].state[p]["step"]) for p in ours[1]] == [5, 3, 3, 5]
    assert_same_training(ours, theirs)


# No wait, and few launches


class Operations(TorchDispatchMode):
    """Names of the operations that would be launches on a GPU: on anything but tables and views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in (*args, out) if isinstance(x, Tensor)]
        on_host = tensors and all(t.dtype == torch.int64 for t in tensors)
        if not on_host and not func.is_view and func.namespace != "profiler":
            self.names[str(func)] += 1
        return out


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Names of the kernels that a step asks for; they are counted and not run.

    The interpreter's own running of a kernel is full of operations on tensors.
    """
    seen: Counter[str] = Counter()

    def count_only(self: Any, *args: Any, **kwargs: Any) -> None:
        seen[self.fn.__name__] += 1

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", count_only)
    return seen


def test_a_step_is_four_launches_and_no_wait(triton: None, launches: Counter[str]) -> None:
    params = parameters(*[3] * 30)
    optimizer = run(
        lambda p: AdaptiveAdamW(p, 0.02, control=NOISY, max_grad_norm=1.0),
        params,
        2,
        grad_scale=torch.tensor(2.0),
        found_inf=torch.tensor(0.0),
    )
    optimizer.observe(torch.tensor(1.0))
    gradients(params, 3)
    launches.clear()
    with Operations() as operations, HostWaits(adaptiverl) as waits:
        optimizer.step()
    assert operations.names == {"adaptiverl.advance_.default": 1}
    assert launches == {
        "sum_squares_kernel": 1,
        "gradient_scale_kernel": 1,
        "step_kernel": 1,
    }
    assert not waits.of("adaptiverl")


def test_the_count_notices_an_operation() -> None:
    values = torch.zeros(3)
    with Operations() as operations, HostWaits(adaptiverl) as waits:
        values.add_(1)
        values[0].item()
    assert operations.names["aten.add_.Tensor"] == 1
    assert waits.of("other") == {"": 1}


# The two smallest kernels


@pytest.mark.parametrize("grad_scale", [None, torch.tensor(1024.0), torch.tensor([0.3]).double()])
@pytest.mark.parametrize("limit", [None, 0.5, 1e9])
@pytest.mark.parametrize("tensors", [1, 1024, 2500])
def test_the_factor_is_the_references(
    tensors: int, limit: float | None, grad_scale: Tensor | None
) -> None:
    squares = torch.rand(tensors, dtype=torch.float64)
    factor = torch.full((), 9.0, dtype=torch.float64)
    bound = None if limit is None else torch.tensor(limit, dtype=torch.float64)
    clip.gradient_scale(squares, bound, grad_scale, factor)
    expected = reference.gradient_scale([squares], limit, grad_scale)
    assert_close(factor, 1.0 if expected is None else expected, "step_float64")


def test_a_nan_norm_makes_a_nan_factor() -> None:
    """As torch.nn.utils.clip_grad_norm_ has it."""
    squares = torch.tensor([1.0, float("nan")], dtype=torch.float64)
    factor, limit = torch.ones((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    clip.gradient_scale(squares, limit, None, factor)
    assert factor.isnan()
    clip.gradient_scale(squares.fill_(float("inf")), limit, None, factor)
    assert factor == 0


@pytest.mark.parametrize("active", [0, 1])
@pytest.mark.parametrize("tensors", [1, 128, 200])
def test_steps_are_counted(tensors: int, active: int) -> None:
    cases = [counted_tables() for _ in range(-(-tensors // 9))]
    rows = torch.cat([case[0] for case in cases])[:tensors]
    rows[:, 8] = torch.arange(tensors) % 2
    state = torch.full((STATE_ACTIVE.value + 1,), float("nan"), dtype=torch.float64)
    state[STATE_ACTIVE.value] = active
    groups = COUNT_GROUPS.repeat(2, 1)
    effective = torch.cat([COUNT_EFFECTIVE, 2 * COUNT_EFFECTIVE])

    def found() -> Tensor:
        tables = [torch.cat([case[1], case[2][:, None].double()], dim=1) for case in cases]
        return torch.cat(tables)

    expected = found()
    if active:
        expected[:tensors] = torch.cat([case[3] for case in cases])[:tensors]
        twice = (rows[:, 8] == 1) & (rows[:, 6] != 0)
        expected[:tensors][twice, :2] *= 2
    count.count_steps(rows, state, groups, effective)
    assert torch.equal(found()[:, 2:], expected[:, 2:])
    torch.testing.assert_close(found(), expected, rtol=1e-14, atol=0)


BIG = rewind.CHUNK * rewind.WORD
REGIONS = (0, 1, 3, 4, 5, 64, 4 * rewind.BLOCK, 4 * rewind.BLOCK + 3, BIG - 1, BIG, BIG + 6)


@pytest.mark.parametrize("on", [0.0, 1.0])
@pytest.mark.parametrize(("to", "of"), [(0, 0), (2, 0), (0, 1), (3, 3)])
def test_memory_goes_back_where_the_state_says_so(on: float, to: int, of: int) -> None:
    """Of any size, from any address to any other; what lies around stays as it is."""
    whole = [torch.arange(n + 8, dtype=torch.int64).to(torch.uint8) for n in REGIONS]
    kept = [w.flip(0) + 1 for w in whole]
    expected = [w.clone() for w in whole]
    rows = []
    for i, (w, k, e) in enumerate(zip(whole, kept, expected, strict=True)):
        n, zeroed = len(w) - 8, i % 2 == 0
        rows.append([w[to:].data_ptr(), 0 if zeroed else k[of:].data_ptr(), n])
        if on:
            e[to : to + n] = 0 if zeroed else k[of : of + n]
    state = torch.full((len(FIELDS),), float("nan"), dtype=torch.float64)
    state[STATE_REWIND.value] = on
    rewind.rewind(torch.tensor(rows), rewind.chunks_of(REGIONS), state)
    for found, wanted in zip(whole, expected, strict=True):
        assert torch.equal(found, wanted)
