"""Devices and builds that the fast path is not for: what happens instead, said once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from stand_in import DEVICE, OnStandIn, StandIn
from torch import Tensor
from torch.utils._pytree import tree_map_only
from training import saved_states

from adaptiverl import AdaptiveAdamW, AdaptiveLion, AdaptiveSGD, Control, backends
from adaptiverl.backends import placement
from adaptiverl.devices import numbers_device
from adaptiverl.optimizer import AdaptiveOptimizer
from adaptiverl.step import round

CARD = torch.device("cuda", 0)
TYPES = (torch.float32, torch.float32)
COMPILED = ((7, 5), (8, 0), (9, 0))


@pytest.fixture(autouse=True)
def _nothing_is_remembered() -> Iterator[None]:
    remembering = (backends._on_cuda, placement.controller_device)
    for function in remembering:
        function.cache_clear()
    yield
    for function in remembering:
        function.cache_clear()


@dataclass(frozen=True)
class Machine:
    """What a machine has, as far as it matters here."""

    capability: tuple[int, int] | None = (9, 0)
    hip: str | None = None
    nvcc: bool = True

    def pretend(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.version, "hip", self.hip)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: self.capability is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: self.capability)
        monkeypatch.setattr(placement, "has_cuda_controller", lambda: self.nvcc)
        monkeypatch.setattr(placement, "cuda_architectures", lambda: COMPILED if self.nvcc else ())
        # Triton itself need not be here.
        monkeypatch.setattr(backends, "triton_backend", lambda: backends.REFERENCE)


V100 = Machine(capability=(7, 0))
ROCM = Machine(hip="7.1")
NO_NVCC = Machine(nvcc=False)


@pytest.mark.parametrize(
    ("machine", "sweep", "controller"),
    [
        (
            V100,
            "needs compute capability 7.5 or higher, this card has 7.0",
            "compiled for compute capability 7.5, 8.0, 9.0 and later, this card has 7.0",
        ),
        (ROCM, "the Triton kernels hold PTX", "written for CUDA, and this torch is for ROCm"),
        (NO_NVCC, None, "built without nvcc"),
        (Machine(), None, None),
        (Machine(capability=(7, 5)), None, None),
        (Machine(capability=(12, 0)), None, None),
        (Machine(capability=None), None, None),
    ],
    ids=["7.0", "ROCm", "no nvcc", "9.0", "7.5", "12.0", "no card"],
)
def test_what_a_card_or_build_has_no_path_for_is_said_once(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    machine: Machine,
    sweep: str | None,
    controller: str | None,
) -> None:
    machine.pretend(monkeypatch)
    with caplog.at_level(logging.INFO, logger="adaptiverl"):
        for _ in range(3):
            resolution = backends.resolve(CARD, *TYPES)
            backends.resolve(CARD, torch.bfloat16, torch.bfloat16)
            home = placement.controller_device(CARD)
    assert (sweep or "Triton pass") in resolution.reason
    assert home == (CARD if controller is None else torch.device("cpu"))
    for reason, subject in ((sweep, "the step of tensors"), (controller, "the controller")):
        said = [r for r in caplog.records if r.getMessage().startswith(subject)]
        assert len(said) == (reason is not None)
        if reason is not None:
            assert said[0].levelno == logging.WARNING
            assert reason in said[0].getMessage()
            assert reason in backends.describe()


def test_what_is_compiled_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine().pretend(monkeypatch)
    said = backends.describe()
    assert "CUDA controller compiled for compute capability 7.5, 8.0, 9.0 and later;" in said
    assert said.endswith("CUDA pass Triton")
    assert "\n" not in said
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "(this torch has no CUDA)" in backends.describe()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "no CUDA" not in backends.describe()


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        ((7, 0), False),
        ((7, 2), False),
        ((7, 5), True),
        ((8, 0), True),
        ((8, 9), True),
        ((9, 0), True),
        ((10, 3), True),
        ((12, 1), True),
    ],
)
def test_a_card_finds_code_of_its_major_version_or_newer_ptx(
    capability: tuple[int, int], runs: bool
) -> None:
    assert placement.runs_on(capability, COMPILED) is runs
    assert not placement.runs_on(capability, ())
    assert not placement.runs_on((8, 6), ((7, 5), (9, 0)))


def test_another_accelerator_has_the_controller_on_the_cpu(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="adaptiverl"):
        for _ in range(2):
            assert placement.controller_device(torch.device("mps")) == torch.device("cpu")
    assert [r.levelno for r in caplog.records] == [logging.INFO]
    assert "none for device type 'mps'" in caplog.text


# Devices without float64

CPU = torch.device("cpu")
QUIET = Control(every=2, noise_bounds=(0.0, 0.0))
NOISY = Control(every=2, noise_bounds=(0.05, 0.05))
ON_PARAMETER = Control(every=2, noise_bounds=(0.05, 0.05), noise_target="parameter")


@dataclass(frozen=True)
class Case:
    """What a run on the stand-in is made with."""

    optimizer: type[AdaptiveOptimizer] = AdaptiveAdamW
    options: dict[str, Any] = field(default_factory=lambda: {"control": QUIET})
    dtype: torch.dtype = torch.float32
    scaled: bool = False
    """A gradient scaler is at work, and skips the third step"""
    exact: bool = True
    """Nothing is summed over a tensor: float32 there and float64 on the CPU then give one result"""


CASES = {
    "AdamW": Case(options={"control": QUIET, "amsgrad": True, "maximize": True}),
    "SGD": Case(AdaptiveSGD, {"control": QUIET, "lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "Lion": Case(AdaptiveLion, {"control": QUIET, "weight_decay": 0.1}, scaled=True),
    "half": Case(dtype=torch.bfloat16),
    "scaled": Case(scaled=True),
    "SGD scaled": Case(AdaptiveSGD, {"control": QUIET, "lr": 0.1, "momentum": 0.9}, scaled=True),
    "noise": Case(options={"control": NOISY}, exact=False),
    "SGD noise": Case(AdaptiveSGD, {"control": NOISY, "lr": 0.1, "weight_decay": 0.1}, exact=False),
    "noise on the parameter": Case(options={"control": ON_PARAMETER}, exact=False),
    "clip": Case(options={"control": NOISY, "max_grad_norm": 0.5}, scaled=True, exact=False),
    "alignment": Case(options={"control": Control.climb(50)}, exact=False),
    "alignment scaled": Case(
        AdaptiveSGD,
        {"control": Control.climb(50), "lr": 0.1, "momentum": 0.9},
        scaled=True,
        exact=False,
    ),
}


def start(case: Case, device: torch.device) -> AdaptiveOptimizer:
    generator = torch.Generator().manual_seed(0)
    shapes = ((5, 3), (7,), ())
    values = [torch.randn(shape, generator=generator).to(case.dtype) for shape in shapes]
    params = [torch.nn.Parameter(value.to(device)) for value in values]
    lr = torch.tensor(case.options.get("lr", 0.01)).to(device)
    return case.optimizer(params, **case.options | {"lr": lr})


def params_of(optimizer: AdaptiveOptimizer) -> list[Tensor]:
    return list(optimizer.param_groups[0]["params"])


def go_on(case: Case, optimizer: AdaptiveOptimizer, first: int, last: int) -> None:
    for i in range(first, last):
        generator = torch.Generator().manual_seed(i)
        for param in params_of(optimizer):
            grad = torch.randn(param.shape, generator=generator).to(param.dtype)
            param.grad = (8 * grad if case.scaled else grad).to(param.device)
        loss = torch.tensor(3.0 - 0.1 * i, dtype=case.dtype).to(param.device)
        if case.scaled:
            optimizer.grad_scale = torch.tensor(8.0).to(param.device)
            optimizer.found_inf = torch.tensor(float(i == 2)).to(param.device)
        optimizer.step(loss=loss)


def outcome(optimizer: AdaptiveOptimizer) -> tuple[list[Tensor], dict[str, float]]:
    """Every parameter and its state on the CPU; the knobs."""
    params = params_of(optimizer)
    states = [x for state in saved_states(optimizer).values() for _, x in sorted(state.items())]
    return [x.detach().cpu() for x in (*params, *states)], optimizer.knobs()


def assert_same(case: Case, found: AdaptiveOptimizer, expected: AdaptiveOptimizer) -> None:
    rtol, atol = (0.0, 0.0) if case.exact else (1e-5, 1e-6)
    (tensors, knobs), (other_tensors, other_knobs) = outcome(found), outcome(expected)
    for tensor, other in zip(tensors, other_tensors, strict=True):
        torch.testing.assert_close(tensor, other, rtol=rtol, atol=atol)
    assert knobs == (other_knobs if case.exact else pytest.approx(other_knobs, rel=1e-5))


@pytest.fixture
def _plain_torch_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(round, "backend_for", lambda *_, **__: backends.REFERENCE)


@pytest.mark.usefixtures("_plain_torch_everywhere")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_without_float64_the_numbers_live_on_the_cpu(case: Case) -> None:
    expected = start(case, CPU)
    go_on(case, expected, 0, 6)
    with StandIn():
        assert numbers_device(DEVICE) == CPU
        found = start(case, DEVICE)
        go_on(case, found, 0, 6)
        assert_same(case, found, expected)
        for param in params_of(found):
            assert isinstance(param, OnStandIn)
            state = saved_states(found)[param]
            assert state["step"].device == state.get("mu_product", state["step"]).device == CPU
            moments = found._algorithm.slots_of(found.param_groups[0])
            assert all(isinstance(state[name], OnStandIn) for name in moments)


@pytest.mark.usefixtures("_plain_torch_everywhere")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize(("here", "there"), [(CPU, DEVICE), (DEVICE, CPU)], ids=["to", "from"])
def test_a_checkpoint_goes_there_and_back(
    case: Case, here: torch.device, there: torch.device
) -> None:
    with StandIn():
        first = start(case, here)
        go_on(case, first, 0, 3)
        second = start(case, there)
        with torch.no_grad():
            for param, other in zip(*map(params_of, (second, first)), strict=True):
                param.copy_(other)
        second.load_state_dict(tree_map_only(Tensor, torch.clone, first.state_dict()))
        go_on(case, first, 3, 6)
        go_on(case, second, 3, 6)
        assert_same(case, second, first)


def test_the_stand_in_refuses_float64() -> None:
    with StandIn():
        here = torch.ones(3, device=DEVICE)
        for wrong in (
            lambda: torch.zeros(3, dtype=torch.float64, device=DEVICE),
            lambda: here.to(torch.float64),
            lambda: here.to(CPU, torch.float64),
            lambda: torch.zeros(3, dtype=torch.float64).copy_(here),
        ):
            with pytest.raises(TypeError, match=r"has no torch\.float64"):
                wrong()
        with pytest.raises(RuntimeError, match="found cpu and mps"):
            here + torch.ones(3)
        assert torch.equal(here.to(CPU).to(torch.float64), torch.ones(3, dtype=torch.float64))
