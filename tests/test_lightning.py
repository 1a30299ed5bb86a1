"""`integrations.lightning`: what is Lightning's own; the rest is in test_frameworks.py."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from framework_cases import EPOCHWISE, How, said
from torch import Tensor

from adaptiverl import AdaptiveAdamW, Control

lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")

import lightning.fabric as lightning_fabric  # noqa: E402
from lightning_runs import Lightning, Methods, Module, Validated  # noqa: E402

from adaptiverl.integrations import lightning as integration  # noqa: E402
from adaptiverl.integrations.lightning import AdaptiveCallback  # noqa: E402

pytestmark = [
    # Lightning's own use of a name in torch that is on its way out.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning"),
    # Advice about speed: the data are a few numbers in memory.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]
HORIZON = Control.climb(horizon=9)


class Manual(Module):
    """Manual optimization; `told` gives the loss to the step, which needs no callback."""

    told = False

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self.automatic_optimization = False

    def training_step(self, batch: dict[str, Tensor], index: int) -> None:  # type: ignore[override]
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = super().training_step(batch, index)
        self.manual_backward(loss)
        optimizer.step(**({"loss": loss} if self.told else {}))


class Told(Manual):
    told = True


class EverySecond(Manual):
    """A step after every second batch."""

    def training_step(self, batch: dict[str, Tensor], index: int) -> None:  # type: ignore[override]
        loss = Module.training_step(self, batch, index)
        self.manual_backward(loss)
        if index % 2:
            self.optimizers().step()
            self.optimizers().zero_grad()


class Two(Manual):
    def configure_optimizers(self) -> Any:
        return [AdaptiveAdamW(self.parameters()), AdaptiveAdamW(self.parameters())]


class Plain(Module):
    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), **self.run.how.optimizer)


def csv_logger(folder: Path) -> Any:
    return lightning.loggers.CSVLogger(str(folder))


def test_manual_optimization(tmp_path: Path) -> None:
    run = Lightning(tmp_path, How(), Manual, logger=csv_logger(tmp_path))
    run.train()
    assert run.heard == run.losses
    assert len(run.losses) == 6
    logged = run.trainer.logged_metrics["adaptive/alpha"].item()
    assert logged == pytest.approx(run.knobs[-1]["alpha"])


def test_manual_optimization_takes_the_loss_in_its_step(tmp_path: Path) -> None:
    run = Lightning(tmp_path, How(), Told, callbacks=[])
    run.train()
    assert run.heard == run.losses


@pytest.mark.parametrize(
    ("module", "how"),
    [(Module, How(accumulate=2, log_every=1)), (EverySecond, How(log_every=2))],
)
def test_the_knobs_are_read_where_lightning_logs_a_step(
    module: Any, how: How, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading waits for the device. In manual optimization Lightning counts batches, not steps."""
    read: list[float] = []

    def knob_logs(optimizer: Any) -> dict[str, float]:
        read.append(optimizer.knobs()["step"])
        return {}

    monkeypatch.setattr(integration, "knob_logs", knob_logs)
    Lightning(tmp_path, how, module).train()
    assert read == [1, 2, 3]


GROWING = lightning.callbacks.GradientAccumulationScheduler({0: 1, 1: 2})


@pytest.mark.parametrize(
    ("module", "how", "native"),
    [
        # How many steps there will be Lightning cannot say in these two.
        (Module, How(HORIZON, epochs=2), {"callbacks": [AdaptiveCallback(), GROWING]}),
        (Manual, How(dataclasses.replace(HORIZON, mode="modulate")), {}),
        (Validated, How(EPOCHWISE, validated=True), {"val_check_interval": 3}),
    ],
)
def test_an_unusual_run_is_not_warned_of(
    module: Any, how: How, native: dict[str, Any], tmp_path: Path
) -> None:
    assert said(Lightning(tmp_path, how, module, **native).train) == []


@pytest.mark.parametrize("half", [{}, {"bf16": True}, {"bf16": True, "scaler": True}], ids=str)
@pytest.mark.parametrize("fused", [None, True])
def test_fused_and_lightnings_clipping_exclude_each_other_under_mixed_precision(
    tmp_path: Path, half: dict[str, Any], fused: bool | None
) -> None:
    refuses: Any = contextlib.nullcontext()
    if fused and half:
        refuses = pytest.raises(RuntimeError, match="does not allow for gradient clipping")
    how = How(optimizer={"fused": fused}, clip=1.0, **half)
    for module, callbacks in ((Module, [AdaptiveCallback()]), (Plain, [])):
        with refuses:
            Lightning(tmp_path, how, module, callbacks=callbacks).train()
    # What clips in either case.
    run = Lightning(tmp_path, How(optimizer={"fused": fused, "max_grad_norm": 1.0}, **half))
    run.train()
    assert run.knobs[-1]["step"] == 6


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fabrics_wrapper_passes_on_what_is_observed(precision: Any) -> None:
    fabric = lightning_fabric.Fabric(accelerator="cpu", devices=1, precision=precision)
    model = torch.nn.Linear(2, 1)
    plain = AdaptiveAdamW(model.parameters(), lr=1e-2, control=Control(every=1), fused=True)
    wrapped, optimizer = fabric.setup(model, plain)
    for step in range(1, 4):
        loss = wrapped(torch.ones(4, 2)).float().square().mean()
        fabric.backward(loss)
        optimizer.observe(loss)
        fabric.clip_gradients(wrapped, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        assert optimizer.knobs() == plain.knobs()
        assert plain.knobs()["updates"] == plain.knobs()["step"] == step
        assert plain.knobs()["loss"] == loss.item()


def test_fabrics_step_takes_a_closure_or_a_loss() -> None:
    fabric = lightning_fabric.Fabric(accelerator="cpu", devices=1)
    model = torch.nn.Linear(2, 1)
    plain = AdaptiveAdamW(model.parameters(), lr=1e-2, control=Control(every=1))
    wrapped, optimizer = fabric.setup(model, plain)
    losses = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        losses.append(wrapped(torch.ones(4, 2)).square().mean())
        fabric.backward(losses[-1])
        return losses[-1]

    assert optimizer.step(closure) is losses[0]
    assert plain.knobs()["loss"] == losses[0].item()
    optimizer.step(loss=7.0)
    assert (plain.knobs()["loss"], plain.knobs()["step"]) == (7.0, 2)
    optimizer.step(closure, loss=8.0)  # what was told counts, and not what the closure returns
    assert (plain.knobs()["loss"], plain.knobs()["step"]) == (8.0, 3)


def test_lightnings_monitor_shows_the_rate_that_was_given(tmp_path: Path) -> None:
    monitor = lightning.callbacks.LearningRateMonitor(logging_interval="step")
    logger = csv_logger(tmp_path)
    callbacks = [monitor, AdaptiveCallback()]
    how = How(Control(every=1), log_every=1)
    run = Lightning(tmp_path, how, logger=logger, callbacks=callbacks)
    run.train()
    logged = run.trainer.logged_metrics["adaptive/lr"].item()
    assert logged == pytest.approx(run.knobs[-1]["lr"])
    assert run.knobs[-1]["lr"] != 1e-2
    with (Path(logger.log_dir) / "metrics.csv").open() as stream:
        shown = {row.get("lr-AdaptiveAdamW") for row in csv.DictReader(stream)} - {""}
    assert {float(str(lr)) for lr in shown} == {1e-2}


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (Plain, TypeError, r"expected an AdaptiveAdamW, got AdamW: return one from configure_opt"),
        (Two, ValueError, r"one optimizer, got 2"),
    ],
)
def test_optimizers_that_are_none_of_ours_or_too_many(
    module: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        Lightning(tmp_path, How(), module).train()


def test_the_package_of_the_other_name(tmp_path: Path) -> None:
    """`pytorch_lightning` has a Trainer and a module of its own; the callback serves both."""
    package = pytest.importorskip("pytorch_lightning", reason="pytorch-lightning is not installed")

    class Other(Methods, package.LightningModule):  # type: ignore[misc, name-defined]
        pass

    run = Lightning(tmp_path, How(), Other, package)
    run.train()
    assert run.knobs[-1]["updates"] == 3
    assert run.heard == run.losses
    assert "adaptive/alpha" in run.trainer.logged_metrics
