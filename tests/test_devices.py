"""Cards and builds that the fast path is not for: what happens instead, said once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from adaptiverl import dispatch

CARD = torch.device("cuda", 0)
TYPES = (torch.float32, torch.float32)
COMPILED = ((7, 5), (8, 0), (9, 0))


@pytest.fixture(autouse=True)
def _nothing_is_remembered() -> Iterator[None]:
    remembering = (dispatch.resolve, dispatch._cuda_sweep, dispatch.controller_device)
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
        monkeypatch.setattr(dispatch, "has_cuda_controller", lambda: self.nvcc)
        monkeypatch.setattr(dispatch, "cuda_architectures", lambda: COMPILED if self.nvcc else ())
        # Triton itself need not be here.
        monkeypatch.setattr(dispatch, "triton_backend", lambda: dispatch.REFERENCE)


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
            resolution = dispatch.resolve(CARD, *TYPES)
            dispatch.resolve(CARD, torch.bfloat16, torch.bfloat16)
            home = dispatch.controller_device(CARD)
    assert (sweep or "Triton sweep") in resolution.reason
    assert home == (CARD if controller is None else torch.device("cpu"))
    for reason, subject in ((sweep, "the step of tensors"), (controller, "the controller")):
        said = [r for r in caplog.records if r.getMessage().startswith(subject)]
        assert len(said) == (reason is not None)
        if reason is not None:
            assert said[0].levelno == logging.WARNING
            assert reason in said[0].getMessage()
            assert reason in dispatch.describe()


def test_what_is_compiled_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine().pretend(monkeypatch)
    said = dispatch.describe()
    assert "CUDA controller compiled for compute capability 7.5, 8.0, 9.0 and later;" in said
    assert said.endswith("CUDA sweep Triton")
    assert "\n" not in said
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "(this torch has no CUDA)" in dispatch.describe()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "no CUDA" not in dispatch.describe()


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
    assert dispatch.runs_on(capability, COMPILED) is runs
    assert not dispatch.runs_on(capability, ())


def test_between_two_major_versions_there_is_no_code() -> None:
    assert not dispatch.runs_on((8, 6), ((7, 5), (9, 0)))


def test_another_accelerator_has_the_controller_on_the_cpu(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="adaptiverl"):
        for _ in range(2):
            assert dispatch.controller_device(torch.device("mps")) == torch.device("cpu")
    assert [r.levelno for r in caplog.records] == [logging.INFO]
    assert "none for device type 'mps'" in caplog.text
