"""The Triton backend: `interpreted_optimizer.py` in its own process, its tables, who goes where."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from host_work import calls_in
from interpreted import check
from torch import Tensor, nn
from training import saved_states

from adaptiverl import AdaptiveAdamW, AdaptiveLion, AdaptiveSGD, Control, backends, devices
from adaptiverl.backends import layouts
from adaptiverl.step import look
from adaptiverl.step.bucket import AddressTable, Bucket
from adaptiverl.step.entries import COLUMNS, GRAD, NUMEL, ParameterEntry
from adaptiverl.step.fingerprint import Fingerprint, GroupKey
from adaptiverl.step.workspace import Workspace

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
QUIET = Control(noise_bounds=(0.0, 0.0))


def test_interpreted(tmp_path: Path) -> None:
    check(tmp_path, "interpreted_optimizer.py", "interpreted_alignment.py")


# The smallest kernels, compiled


@pytest.mark.parametrize(
    ("name", "architecture"),
    [("gradient_scale_kernel", 100), ("count_steps_kernel", 75), ("rewind_kernel", 100)],
)
def test_small_kernels_compile_and_keep_everything_in_registers(
    name: str, architecture: int
) -> None:
    triton = pytest.importorskip(
        "triton", reason="the kernels need triton, which torch's CPU wheels do not bring along"
    )
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from adaptiverl.kernels import clip, codegen, count, rewind

    if triton.knobs.runtime.interpret:
        pytest.skip("TRITON_INTERPRET is set: nothing is compiled in this process")
    module, types = {
        "gradient_scale_kernel": (
            clip,
            {"squares": "*fp64", "limit": "*fp64", "grad_scale": "*fp32", "factor": "*fp64"},
        ),
        "count_steps_kernel": (
            count,
            {"rows": "*i64"} | dict.fromkeys(("state", "groups", "effective"), "*fp64"),
        ),
        "rewind_kernel": (rewind, {"regions": "*i64", "chunks": "*i32", "state": "*fp64"}),
    }[name]
    kernel = getattr(module, name)
    constants = [name for name in kernel.arg_names if name.isupper()]
    signature = {"count": "i32"} | dict.fromkeys(constants, "constexpr") | types
    source = ASTSource(
        fn=kernel,
        signature={argument: signature[argument] for argument in kernel.arg_names},
        constexprs={(kernel.arg_names.index(n),): getattr(module, n) for n in constants},
    )
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": module.WARPS})
    assert ".local" not in compiled.asm["ptx"]
    assert "atom" not in compiled.asm["ptx"]
    sass = disassembled(compiled.asm["cubin"], codegen)
    assert "STL" not in sass
    assert "EXIT" in sass


def disassembled(cubin: bytes, codegen: Any) -> str:
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"kernel-{os.getpid()}.cubin"
    path.write_bytes(cubin)
    try:
        return str(codegen._run(codegen.knobs.nvidia.nvdisasm.path, "-c", path))
    finally:
        path.unlink()


# Who goes where


def test_cuda_tensors_of_a_known_dtype_go_to_triton() -> None:
    pytest.importorskip(
        "triton", reason="the kernels need triton, which torch's CPU wheels do not bring along"
    )
    for param, grad in backends.DTYPES:
        assert backends.resolve("cuda", param, grad).backend.name == "triton"


@pytest.mark.parametrize(
    ("device", "param", "grad", "reason"),
    [
        ("cuda", torch.float64, torch.float64, "does not take torch.float64 parameters"),
        ("cuda", torch.bfloat16, torch.float32, "with torch.float32 gradients"),
        ("mps", torch.float32, torch.float32, "no fused pass for device type 'mps'"),
        ("cpu", torch.float16, torch.float16, "takes float32 and bfloat16, not torch.float16"),
    ],
)
def test_the_reference_takes_the_rest_and_the_reason_is_given(
    device: str, param: torch.dtype, grad: torch.dtype, reason: str
) -> None:
    resolution = backends.resolve(device, param, grad)
    assert resolution.backend is backends.REFERENCE
    assert reason in resolution.reason


def test_a_missing_triton_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ImportError("No module named 'triton'")

    monkeypatch.setattr(backends, "triton_backend", missing)
    resolution = backends._on_cuda.__wrapped__(torch.device("cuda"))
    assert resolution.backend is backends.REFERENCE
    assert "No module named 'triton'" in resolution.reason
    assert "pip install triton" in resolution.reason
    assert "CUDA pass plain torch (Triton is missing" in backends.describe()


def lies_alike(*tensors: Tensor, noisy: bool = False) -> bool:
    return layouts.lie_alike(tensors, noisy)


def test_what_a_sweep_can_walk() -> None:
    plain = torch.zeros(2, 3, 4, 5)
    last = plain.contiguous(memory_format=torch.channels_last)
    assert lies_alike(plain, plain.clone(), noisy=True)
    assert lies_alike(last, last.clone())
    assert not lies_alike(last, last.clone(), noisy=True)
    assert not lies_alike(plain, last)
    assert not lies_alike(last, plain)
    assert lies_alike(torch.zeros(3, 4).t(), torch.zeros(3, 4).t())
    assert not lies_alike(torch.zeros(3, 4).t(), torch.zeros(4, 3))
    assert not lies_alike(torch.zeros(3, 8)[:, ::2], torch.zeros(3, 8)[:, ::2])
    assert not lies_alike(torch.zeros(3, 1).expand(3, 4), torch.zeros(3, 1).expand(3, 4))
    assert not lies_alike(plain, torch.zeros(2, 3, 4, 6))
    assert not lies_alike(plain, torch._neg_view(plain))
    # Dimensions of one element are walked in no order.
    assert lies_alike(torch.zeros(4, 1).t(), torch.zeros(1, 4), noisy=True)
    assert lies_alike(torch.zeros(()), torch.zeros(()), noisy=True)
    assert lies_alike(torch.zeros(0, 3), torch.zeros(0, 3), noisy=True)


def test_channels_last_is_swept_where_no_noise_is_drawn_and_steps_alike() -> None:
    weight = torch.randn(4, 3, 5, 5)
    outcomes = []
    for control, backend in ((QUIET, "cpu"), (Control(), "reference")):
        param = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
        optimizer = AdaptiveAdamW([param], 0.02, control=control)
        generator = torch.Generator().manual_seed(2)
        for _ in range(3):
            grad = torch.randn(weight.shape, generator=generator)
            param.grad = torch.empty_like(param).copy_(grad)
            optimizer.step(loss=torch.tensor(1.0))
        assert [b.backend.name for b in optimizer._round.plan._sorted] == [backend]
        outcomes.append(param.detach())
    torch.testing.assert_close(outcomes[0], outcomes[1], rtol=2e-6, atol=2e-6)


# Tables


class Sorted:
    """An optimizer, and how often it made a parameter's entry."""

    def __init__(self, params: list[nn.Parameter], monkeypatch: pytest.MonkeyPatch) -> None:
        self.optimizer = AdaptiveAdamW(params, 0.02, control=QUIET)
        self.made = 0
        entries = self.optimizer._round.plan._entries
        entry = entries._entry

        def counting(*args: Any) -> ParameterEntry:
            self.made += 1
            return entry(*args)

        monkeypatch.setattr(entries, "_entry", counting)

    def step(self) -> int:
        """How many entries this step made."""
        before = self.made
        self.optimizer.step(loss=torch.tensor(1.0))
        return self.made - before

    @property
    def rows(self) -> Tensor:
        return self.optimizer._round.plan._sorted[0].rows()


def params_with_gradients(count: int, size: int = 8) -> list[nn.Parameter]:
    params = [nn.Parameter(torch.ones(size)) for _ in range(count)]
    for p in params:
        p.grad = torch.ones(size)
    return params


def test_a_step_like_the_last_makes_no_entry_and_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Sorted(params_with_gradients(5), monkeypatch)
    assert seen.step() == 5
    table = seen.rows
    assert seen.step() == 0
    assert seen.rows is table


def test_moved_gradients_make_no_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    params = params_with_gradients(5)
    seen = Sorted(params, monkeypatch)
    seen.step()
    before, kept = seen.rows.clone(), params[3].grad
    params[3].grad = 2 * torch.ones(8)
    assert seen.step() == 0
    assert kept is not None
    assert seen.rows[3, GRAD] == params[3].grad.data_ptr() != kept.data_ptr()
    before[3, GRAD] = params[3].grad.data_ptr()
    assert torch.equal(seen.rows, before)


@pytest.mark.parametrize("has_streams", [False, True], ids=["host", "streams"])
def test_a_table_on_the_host_is_written_in_place(
    has_streams: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a stream may still read it, other addresses are another table."""
    monkeypatch.setattr(devices, "has_streams", lambda device: has_streams)
    monkeypatch.setattr(devices, "outlive_stream", lambda tensor: None)
    monkeypatch.setattr(devices, "pinned", lambda host, device: host.clone())
    table = AddressTable(CPU, Workspace(), "rows")
    first = table.refresh(torch.arange(2 * len(COLUMNS)).view(2, len(COLUMNS)))
    before, moved = first.clone(), table.with_gradients(array("q", [-7, 2**62]))
    assert moved[:, GRAD].tolist() == [-7, 2**62]
    others = torch.arange(len(COLUMNS)) != GRAD
    assert torch.equal(moved * others, before * others)
    assert (moved is first) == (not has_streams)
    assert has_streams == torch.equal(first, before)
    assert table.with_gradients(array("q", [-7, 2**62])) is moved


class Wrapped(Tensor):
    """Not known to lie where its address says."""


def _shrink(optimizer: Any, p: nn.Parameter) -> None:
    for t in (p, p.grad, *optimizer.state[p].values()):
        if t is not None and t.dim() == 1:
            t.data = t.data[:3]


def _other_dtype(optimizer: Any, p: nn.Parameter) -> None:
    p.grad = None
    p.grad_dtype = torch.bfloat16  # type: ignore[attr-defined]
    p.grad = torch.ones(8, dtype=torch.bfloat16)


def _exchange_states(optimizer: Any, p: nn.Parameter) -> None:
    """The states come in the order that they had, and belong to other parameters."""
    params, states = zip(*optimizer.state.items(), strict=True)
    optimizer.state.clear()
    optimizer.state.update(zip(reversed(params), states, strict=True))


def _set(**what: Any) -> Callable[[Any, nn.Parameter], None]:
    """The parameter gets another attribute."""

    def change(optimizer: Any, p: nn.Parameter) -> None:
        for name, new in what.items():
            setattr(p, name, new())

    return change


CHANGES: dict[str, Callable[[Any, nn.Parameter], Any]] = {
    "another moment": lambda o, p: o.state[p].update(exp_avg=torch.zeros(8)),
    "another moment beside the first": lambda o, p: o.state[p].update(
        exp_avg=torch.zeros(8), first=o.state[p]["exp_avg"]
    ),
    "another state": lambda o, p: o.state.update(
        {p: {name: value.clone() for name, value in o.state[p].items()}}
    ),
    "states exchanged": _exchange_states,
    "another count": lambda o, p: o.state[p].update(step=torch.tensor(7.0)),
    "a product": lambda o, p: o.state[p].update(mu_product=torch.tensor(0.5)),
    "a moment of another dtype": lambda o, p: o.state[p].update(
        exp_avg=torch.zeros(8, dtype=torch.bfloat16)
    ),
    "a state less": lambda o, p: o.state.pop(p),
    "other data": _set(data=lambda: torch.ones(8)),
    "no gradient": _set(grad=lambda: None),
    "a gradient with gaps": _set(grad=lambda: torch.ones(16)[::2]),
    "a gradient to be negated": _set(grad=lambda: torch._neg_view(torch.ones(8))),
    "a gradient of another class": _set(grad=lambda: torch.ones(8).as_subclass(Wrapped)),
    "a gradient of another dtype": _other_dtype,
    "maximize": lambda o, p: o.param_groups[0].update(maximize=True),
    "amsgrad": lambda o, p: o.param_groups[0].update(amsgrad=True),
    "fewer elements": _shrink,
    "another order": lambda o, p: o.param_groups[0]["params"].reverse(),
    "another group": lambda o, p: o.add_param_group({"params": params_with_gradients(1)}),
}


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_other_change_is_noticed(
    change: Any, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one call, or one by one where torch has no exchange API."""
    if not exchange:
        monkeypatch.setattr(look, "EXCHANGE", None)
    params = params_with_gradients(3)
    seen = Sorted(params, monkeypatch)
    seen.step()
    assert seen.step() == 0
    change(seen.optimizer, params[1])
    assert seen.step() > 0


def test_a_parameter_that_is_transposed_in_place_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    params = [nn.Parameter(torch.ones(3, 3))]
    params[0].grad = torch.ones(3, 3)
    seen = Sorted(params, monkeypatch)
    seen.step()
    assert seen.step() == 0
    params[0].data = params[0].data.t()
    assert seen.step() == 1


def test_a_parameter_that_changes_groups_steps_with_its_new_groups_rate() -> None:
    # SGD without momentum keeps one number of a parameter, so that its state's order tells nothing.
    params = params_with_gradients(3)
    groups = [{"params": params[:2], "lr": 0.1}, {"params": params[2:], "lr": 0.001}]
    optimizer = AdaptiveSGD(groups, momentum=0, control=Control.frozen())
    optimizer.step()
    first, second = (group["params"] for group in optimizer.param_groups)
    second.insert(0, first.pop())
    before = params[1].detach().clone()
    optimizer.step()
    torch.testing.assert_close(before - params[1].detach(), torch.full((8,), 0.001))


def test_a_glance_ends_where_there_is_no_state() -> None:
    params = params_with_gradients(1)
    standing = [GroupKey(list(params), ("exp_avg",), False)]
    assert Fingerprint.of(standing, {params[0]: {}}) is None
    assert Fingerprint.of(standing, {params[0]: {"step": torch.tensor(3.0)}}) is None
    assert Fingerprint.of(standing, {params[0]: {"exp_avg": torch.ones(8)}}) is None


@pytest.mark.parametrize("kind", [AdaptiveAdamW, AdaptiveSGD, AdaptiveLion])
def test_gradients_are_not_kept_between_steps(kind: Any) -> None:
    params = [*params_with_gradients(2), nn.Parameter(torch.ones(4, dtype=torch.float64))]
    params[2].grad = torch.ones(4, dtype=torch.float64)
    optimizer = kind(params, 0.01, control=QUIET)
    for _ in range(2):
        grads = [weakref.ref(p.grad) for p in params]  # type: ignore[arg-type]
        optimizer.step(loss=torch.tensor(1.0))
        optimizer.zero_grad()
        assert [ref() for ref in grads] == [None] * 3
        for p in params:
            p.grad = torch.ones_like(p)


def calls_in_a_step(tensors: int) -> int:
    """Of a step before which nothing has changed."""
    params = params_with_gradients(tensors, size=1)
    optimizer = AdaptiveAdamW(params, 0.02, control=QUIET)
    loss = torch.tensor(1.0)
    for _ in range(2):
        optimizer.step(loss=loss)
    calls = calls_in(lambda: optimizer.step(loss=loss))
    assert optimizer._round.plan._sorted[0].rows().shape == (tensors, len(COLUMNS))
    return calls


def test_a_tensor_costs_the_host_a_few_calls_a_step() -> None:
    few, many = calls_in_a_step(1_000), calls_in_a_step(4_000)
    assert many - few <= 3 * 3_000
    assert few <= 3 * 1_000 + 500


def test_a_size_that_changes_builds_the_scratch_anew_and_an_address_does_not() -> None:
    built = []

    def build(sizes: list[int]) -> tuple[Tensor, ...]:
        built.append(sizes)
        return (torch.tensor(sizes),)

    bucket = Bucket(backends.CPU, CPU)
    bucket._table = AddressTable(CPU, bucket.workspace, "rows")
    wanted = torch.arange(2 * len(COLUMNS)).view(2, len(COLUMNS))
    for change in (0, 0, 1, 2):
        wanted = wanted.clone()
        wanted[0, GRAD if change < 2 else NUMEL] += 16 * change
        bucket._rows = bucket._table.refresh(wanted)
        bucket.scratch(build)
    assert built == [[NUMEL, NUMEL + len(COLUMNS)], [NUMEL + 32, NUMEL + len(COLUMNS)]]


# Another device than the controller's


def test_tensors_beside_another_controller_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table on a device that the controller's launch does not reach."""
    params = params_with_gradients(3)
    optimizer = AdaptiveAdamW(params, 0.02, control=QUIET)
    twin_params = params_with_gradients(3)
    twin = AdaptiveAdamW(twin_params, 0.02, control=QUIET)
    plan, there = optimizer._round.plan, torch.device("cpu", 0)
    of_step = plan.of_step

    def elsewhere(*given: Any) -> Any:
        buckets = of_step(*given)
        plan._squares[there] = plan._squares[CPU]
        for bucket in buckets:
            monkeypatch.setattr(bucket, "device", there)
        return buckets

    monkeypatch.setattr(plan, "of_step", elsewhere)
    for _ in range(3):
        optimizer.step(loss=torch.tensor(1.0))
        twin.step(loss=torch.tensor(1.0))
    for p, q in zip(params, twin_params, strict=True):
        assert optimizer.state[p]["step"] == 3
        product = saved_states(optimizer)[p]["mu_product"]
        assert product == saved_states(twin)[q]["mu_product"]
        assert torch.equal(p, q)


# Through Triton's own launcher


@pytest.fixture(scope="module")
def launched() -> Any:
    """What `compiled_launches.py` saw."""
    pytest.importorskip(
        "triton", reason="the kernels need triton, which torch's CPU wheels do not bring along"
    )
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "compiled_launches.py")],
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_step_launches_three_kernels_over_all_chunks(launched: Any) -> None:
    """The controller's own launch is the fourth."""
    chunks = [1] * 3 + [6] * 3 + [16] * 3
    assert launched["all"]["steps"] == [
        [["sum_squares_kernel", n], ["gradient_scale_kernel", 1], ["step_kernel", n]]
        for n in chunks
    ]


def test_a_kernel_is_compiled_once_whatever_changes(launched: Any) -> None:
    """Steps, rates, seeds, limits, addresses, their alignment, how many tensors there are."""
    kernels = ["sum_squares_kernel", "gradient_scale_kernel", "step_kernel"]
    assert launched["all"]["compiled"] == kernels
    assert launched["again"]["compiled"] == []
    assert len(launched["again"]["steps"]) == 6


def test_another_dtype_is_another_launch_and_the_clip_is_one(launched: Any) -> None:
    sums, sweeps = "sum_squares_kernel", "step_kernel"
    step = [[sums, 1], [sums, 2], ["gradient_scale_kernel", 1], [sweeps, 1], [sweeps, 2]]
    assert launched["mixed"]["steps"] == [step] * 3
    assert launched["mixed"]["compiled"] == [sums, sweeps]


def test_what_nobody_needs_is_not_launched(launched: Any) -> None:
    assert launched["plain"]["steps"] == [[["step_kernel", 2]]] * 3
    steps = [[["sum_squares_kernel", 2], ["step_kernel", 2]]] * 3
    assert launched["sgd"]["steps"] == steps
