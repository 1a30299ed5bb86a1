"""`integrations.lightning`: a real Trainer on a tiny GPT-2, steered by the callback."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from host_waits import AT_HOME, HostWaits
from tiny_models import Tokens, overflow, tiny_gpt2
from torch import Tensor
from torch.utils.data import DataLoader

import adaptiverl
from adaptiverl import AdaptiveAdamW, Control

lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
pytest.importorskip("transformers", reason="transformers, for the model, is not installed")

import lightning.fabric as lightning_fabric  # noqa: E402
from lightning.pytorch.plugins.precision import MixedPrecision  # noqa: E402

from adaptiverl.integrations.lightning import AdaptiveCallback  # noqa: E402

pytestmark = [
    # Lightning's own use of a name in torch that is on its way out.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning"),
    # Advice about speed: the data are a few numbers in memory.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]

QUICK = Control(mode="modulate", every=2, noise_bounds=(0.01, 0.1))
EPOCHWISE = Control(mode="modulate", every=None, beta_loss=0.3, beta_reward=0.3, beta_variance=0.3)
KNOBS = {
    "adaptive/lr": "lr",
    "adaptive/alpha": "alpha",
    "adaptive/momentum": "momentum",
    "adaptive/noise": "noise",
}


class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
    """As Lightning's users write one; keeps what it computed for the test to compare with."""

    def __init__(self, control: Control = QUICK, dropout: float = 0.0, **optimizer: Any) -> None:
        super().__init__()
        self.model = tiny_gpt2(dropout)
        self.arguments = {"lr": 1e-2, "control": control, **optimizer}
        self.losses: list[Tensor] = []
        self.knobs: list[dict[str, float]] = []

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        loss: Tensor = self.model(**batch).loss
        self.losses.append(loss.detach())
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = AdaptiveAdamW(self.parameters(), **self.arguments)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, total_iters=10)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def on_train_batch_end(self, *args: Any) -> None:
        self.knobs.append(self.trainer.optimizers[0].knobs())


class ValidatedModule(Module):
    """The same with a validation."""

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        self.log("val_loss", self.model(**batch).loss)
        self.log("val_accuracy", torch.tensor(0.25))


class Unasked(Module):
    """The same, and nobody asks for its knobs."""

    def on_train_batch_end(self, *args: Any) -> None:
        pass


class ManualModule(Module):
    """The same with manual optimization."""

    def __init__(self, **optimizer: Any) -> None:
        super().__init__(**optimizer)
        self.automatic_optimization = False

    def training_step(self, batch: dict[str, Tensor], index: int) -> None:  # type: ignore[override]
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = super().training_step(batch, index)
        self.manual_backward(loss)
        optimizer.step()


def make_trainer(
    folder: Path, package: Any = lightning, callback: Any = None, **arguments: Any
) -> Any:
    defaults: dict[str, Any] = {
        "default_root_dir": str(folder),
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 1,
        "log_every_n_steps": 2,
        "callbacks": [callback or AdaptiveCallback()],
    }
    return package.Trainer(**(defaults | arguments))


def data(size: int = 24, batch: int = 4, seed: int = 0) -> Any:
    return DataLoader(Tokens(size, seed), batch_size=batch)


def fit(trainer: Any, module: Module, **arguments: Any) -> None:
    validated = isinstance(module, ValidatedModule)
    trainer.fit(module, data(), data(8, seed=1) if validated else None, **arguments)


def heard(module: Module) -> list[float]:
    return [knobs["loss"] for knobs in module.knobs]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_controller_hears_what_training_step_returns(tmp_path: Path, precision: Any) -> None:
    module = Module()
    trainer = make_trainer(tmp_path, precision=precision)
    fit(trainer, module)
    assert heard(module) == [loss.item() for loss in module.losses]
    assert len(set(heard(module))) == 6
    assert module.knobs[-1]["updates"] == 3


def test_accumulated_micro_batches_are_one_loss(tmp_path: Path) -> None:
    module = Module()
    fit(make_trainer(tmp_path, accumulate_grad_batches=4), module)
    # 6 micro-batches: a step of four, and one of the two that are left.
    losses = torch.stack(module.losses)
    expected = [losses[:4].mean().item(), losses[4:].mean().item()]
    assert [heard(module)[3], heard(module)[5]] == pytest.approx(expected, rel=1e-6)
    assert module.knobs[-1]["step"] == 2


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_scaled_losses_are_heard_unscaled_and_skipped_steps_not_at_all(
    tmp_path: Path, fused: bool | None, accumulate: int
) -> None:
    # By itself Lightning takes "16-mixed" only where there is a GPU; its plugin runs anywhere.
    plugin = MixedPrecision("bf16-mixed", device="cpu")
    plugin.scaler = torch.amp.GradScaler("cpu")
    module = Module(fused=fused)
    overflow(module.model, {2, 3})
    fit(make_trainer(tmp_path, plugins=[plugin], accumulate_grad_batches=accumulate), module)
    steps = module.knobs[accumulate - 1 :: accumulate]
    done = {1: [1, 2, 2, 2, 3, 4], 2: [1, 1, 2]}[accumulate]
    assert [knobs["step"] for knobs in steps] == done
    losses = torch.stack(module.losses).view(-1, accumulate).mean(1).tolist()
    for step in (i for i in range(1, len(done)) if done[i] > done[i - 1]):
        assert steps[step]["loss"] == pytest.approx(losses[step], rel=1e-6)


def test_a_nan_is_heard(tmp_path: Path) -> None:
    module = Module()
    compute = module.model.forward

    def forward(**batch: Tensor) -> Any:
        outputs = compute(**batch)
        if len(module.losses) == 2:
            outputs.loss = outputs.loss * torch.nan
        return outputs

    module.model.forward = forward
    fit(make_trainer(tmp_path, limit_train_batches=3), module)
    assert [knobs["nonfinite"] for knobs in module.knobs] == [0, 0, 1]


def test_manual_optimization(tmp_path: Path) -> None:
    module = ManualModule()
    trainer = make_trainer(tmp_path, logger=csv_logger(tmp_path))
    fit(trainer, module)
    assert heard(module) == [loss.item() for loss in module.losses]
    assert trainer.logged_metrics["adaptive/alpha"].item() == pytest.approx(
        module.knobs[-1]["alpha"]
    )


def csv_logger(folder: Path) -> Any:
    return lightning.loggers.CSVLogger(str(folder))


def test_knobs_are_logged_and_in_tensorboard(tmp_path: Path) -> None:
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is not installed",
    )
    module = Module()
    logger = lightning.loggers.TensorBoardLogger(str(tmp_path), name="", version="run")
    trainer = make_trainer(tmp_path, logger=logger)
    fit(trainer, module)
    events = accumulators.EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    for name, knob in KNOBS.items():
        expected = [module.knobs[i][knob] for i in (1, 3, 5)]
        scalars = events.Scalars(name)
        assert [event.step for event in scalars] == [1, 3, 5]
        assert [event.value for event in scalars] == pytest.approx(expected, rel=1e-6)
        assert trainer.logged_metrics[name].item() == pytest.approx(expected[-1], rel=1e-6)
    assert len({event.value for event in events.Scalars("adaptive/alpha")}) == 3


@pytest.mark.filterwarnings(
    # It is the directory that the test itself has just saved to.
    "ignore:Checkpoint directory .* exists and is not empty"
)
@pytest.mark.parametrize("control", [QUICK, EPOCHWISE], ids=["stepwise", "epochwise"])
def test_save_and_resume_is_exact(tmp_path: Path, control: Control) -> None:
    arguments: dict[str, Any] = {
        "max_epochs": 3,
        "accumulate_grad_batches": 2,
        "gradient_clip_val": 1.0,
        "enable_checkpointing": True,
    }
    whole = ValidatedModule(control, dropout=0.1)
    trainer = make_trainer(tmp_path, callbacks=callbacks(tmp_path), **arguments)
    fit(trainer, whole)
    resumed = ValidatedModule(control, dropout=0.1)
    again = make_trainer(tmp_path, callbacks=callbacks(tmp_path), **arguments)
    fit(again, resumed, ckpt_path=str(tmp_path / "epoch=0.ckpt"))
    assert len(resumed.losses) == 12
    assert torch.equal(torch.stack(resumed.losses), torch.stack(whole.losses[6:]))
    assert again.optimizers[0].knobs() == trainer.optimizers[0].knobs()
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert whole.knobs[5]["alpha"] != whole.knobs[-1]["alpha"], "the knobs moved after the save"


def callbacks(folder: Path) -> list[Any]:
    checkpoint = lightning.callbacks.ModelCheckpoint(
        str(folder), filename="{epoch}", save_top_k=-1, every_n_epochs=1
    )
    return [checkpoint, AdaptiveCallback(), Reseeded()]


class Reseeded(lightning.Callback):  # type: ignore[misc, name-defined]
    """Lightning's checkpoints leave torch's random state out, and dropout draws from it."""

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        torch.manual_seed(trainer.fit_loop.total_batch_idx)


def test_epochwise_control_moves_the_knobs_after_each_validation(tmp_path: Path) -> None:
    module = ValidatedModule(EPOCHWISE)
    seen: list[float] = []

    class Seen(lightning.Callback):  # type: ignore[misc, name-defined]
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if not trainer.sanity_checking:
                seen.append(trainer.callback_metrics["val_loss"].item())

    trainer = make_trainer(tmp_path, max_epochs=4, callbacks=[Seen(), AdaptiveCallback()])
    fit(trainer, module)
    trace = trainer.optimizers[0].trace()
    assert trace["loss"].tolist() == seen
    assert len(seen) == 4
    assert len(set(trace["lr"].tolist())) > 2
    trainer.validate(module, data(8, seed=1), verbose=False)
    assert trainer.optimizers[0].knobs()["updates"] == 4, "only validations in fit count"


def test_epochwise_control_with_a_reward(tmp_path: Path) -> None:
    callback = AdaptiveCallback(reward="val_accuracy")
    module = ValidatedModule(Control(mode="modulate", every=None, reward="given"))
    trainer = make_trainer(tmp_path, callback=callback, max_epochs=2)
    fit(trainer, module)
    assert trainer.optimizers[0].knobs()["reward"] == 0.25


def test_a_metric_that_is_not_there(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, callback=AdaptiveCallback(monitor="eval_loss"))
    with pytest.raises(ValueError, match=r"'eval_loss' after each evaluation.*'val_loss'"):
        fit(trainer, ValidatedModule(EPOCHWISE))


class UnscheduledModule(ValidatedModule):
    """No scheduler."""

    def configure_optimizers(self) -> Any:
        return AdaptiveAdamW(self.parameters(), **self.arguments)


def said(trainer: Any, module: Module) -> list[str]:
    """The warnings of a run that are the package's."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(trainer, module)
    return [str(w.message) for w in caught if "Control(" in str(w.message)]


MISUSES: dict[str, tuple[type[Module], Control, dict[str, Any], dict[str, Any], str]] = {
    "a reward and a monitor under step-wise control": (
        Module,
        QUICK,
        {"reward": "val_accuracy", "monitor": "val_loss"},
        {},
        r"monitor='val_loss', reward='val_accuracy'\) is ignored.*every=2.*Leave it out",
    ),
    "no metric for the reward": (
        ValidatedModule,
        Control(mode="modulate", every=None, reward="given"),
        {},
        {"max_epochs": 2},
        r"names no metric for the reward",
    ),
    "a schedule under the default control": (
        Module,
        Control(),
        {},
        {},
        r"the scheduler LinearLR moved lr of parameter group 0 from 0\.01 to 0\.0095.*"
        r"Control\(mode='modulate'\).*return none from configure_optimizers",
    ),
    "a horizon that is too short": (
        UnscheduledModule,
        Control.find_lr(horizon=4),
        {},
        {},
        r"horizon=4\) and a run of 6 steps \(Trainer\.estimated_stepping_batches\)"
        r": the last 2 steps train nothing\. Give horizon=6",
    ),
    "a horizon that is too long, micro-batches being counted": (
        UnscheduledModule,
        Control.find_lr(horizon=6),
        {},
        {"accumulate_grad_batches": 2},
        r"horizon=6\) and a run of 3 steps",
    ),
    "epoch-wise control without validations": (
        Module,
        EPOCHWISE,
        {},
        {},
        "makes none: give it a validation_step",
    ),
    "epoch-wise control and one epoch": (
        ValidatedModule,
        EPOCHWISE,
        {},
        {},
        "the first came after the last of 6 steps, too late for any of them",
    ),
    "epoch-wise control and validations that never come": (
        ValidatedModule,
        EPOCHWISE,
        {},
        {"check_val_every_n_epoch": 3, "max_epochs": 2},
        "this run of 12 steps had none",
    ),
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_what_goes_wrong_silently_is_warned_of_once(tmp_path: Path, misuse: str) -> None:
    kind, control, callback, arguments, message = MISUSES[misuse]
    trainer = make_trainer(tmp_path, callback=AdaptiveCallback(**callback), **arguments)
    (warning,) = said(trainer, kind(control))
    assert re.search(message, warning)


@pytest.mark.parametrize(
    ("kind", "control", "arguments"),
    [
        (UnscheduledModule, Control(), {}),
        (Module, Control.frozen(), {}),
        (UnscheduledModule, Control.find_lr(horizon=6), {}),
        (UnscheduledModule, Control.find_lr(), {}),
        # How many steps there will be Lightning cannot say here.
        (
            UnscheduledModule,
            Control.find_lr(horizon=9),
            {
                "max_epochs": 2,
                "callbacks": [
                    AdaptiveCallback(),
                    lightning.callbacks.GradientAccumulationScheduler({0: 1, 1: 2}),
                ],
            },
        ),
        (
            lambda control: ManualModule(control=control),
            dataclasses.replace(Control.find_lr(horizon=9), mode="modulate"),
            {},
        ),
        (ValidatedModule, EPOCHWISE, {"max_epochs": 2}),
        (ValidatedModule, EPOCHWISE, {"val_check_interval": 3}),
    ],
)
def test_an_ordinary_run_is_not_warned_of(
    tmp_path: Path, kind: Callable[[Control], Module], control: Control, arguments: dict[str, Any]
) -> None:
    assert said(make_trainer(tmp_path, **arguments), kind(control)) == []


def test_a_reward_that_the_control_does_not_take_is_refused_before_training(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, callback=AdaptiveCallback(reward="val_accuracy"))
    with pytest.raises(ValueError, match=r"is for Control\(reward='given'\).*'neg_loss'"):
        fit(trainer, ValidatedModule(EPOCHWISE))


def precisely(precision: str) -> dict[str, Any]:
    """By itself Lightning takes "16-mixed" only where there is a GPU; its plugin runs anywhere."""
    if precision != "16-mixed":
        return {"precision": precision}
    return {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("fused", [None, True])
def test_fused_and_lightnings_clipping_exclude_each_other_under_mixed_precision(
    tmp_path: Path, precision: Any, fused: bool | None
) -> None:
    class Plain(Unasked):
        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), fused=fused)

    refuses: Any = contextlib.nullcontext()
    if fused and precision != "32-true":
        refuses = pytest.raises(RuntimeError, match="does not allow for gradient clipping")
    for module, callbacks in ((Unasked(fused=fused), [AdaptiveCallback()]), (Plain(), [])):
        trainer = make_trainer(
            tmp_path, **precisely(precision), gradient_clip_val=1.0, callbacks=callbacks
        )
        with refuses:
            fit(trainer, module)
    # What clips in either case.
    module = Module(fused=fused, max_grad_norm=1.0)
    fit(make_trainer(tmp_path, **precisely(precision)), module)
    assert module.knobs[-1]["step"] == 6


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


def test_fabrics_step_takes_a_closure_and_no_loss() -> None:
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

    optimizer.step(closure)
    assert plain.knobs()["loss"] == losses[0].item()
    with pytest.raises(TypeError, match="unexpected keyword argument 'loss'"):
        optimizer.step(loss=losses[0])


def test_lightnings_monitor_shows_the_rate_that_was_given(tmp_path: Path) -> None:
    monitor = lightning.callbacks.LearningRateMonitor(logging_interval="step")
    module = UnscheduledModule(Control(every=1))
    logger = csv_logger(tmp_path)
    trainer = make_trainer(
        tmp_path, logger=logger, log_every_n_steps=1, callbacks=[monitor, AdaptiveCallback()]
    )
    fit(trainer, module)
    assert trainer.logged_metrics["adaptive/lr"].item() == pytest.approx(module.knobs[-1]["lr"])
    assert module.knobs[-1]["lr"] != 1e-2
    with (Path(logger.log_dir) / "metrics.csv").open() as stream:
        shown = {row.get("lr-AdaptiveAdamW") for row in csv.DictReader(stream)} - {""}
    assert {float(str(lr)) for lr in shown} == {1e-2}


def test_manual_optimization_takes_the_loss_in_its_step(tmp_path: Path) -> None:
    class Told(ManualModule):
        def training_step(self, batch: dict[str, Tensor], index: int) -> None:  # type: ignore[override]
            optimizer = self.optimizers()
            optimizer.zero_grad()
            loss = Module.training_step(self, batch, index)
            self.manual_backward(loss)
            optimizer.step(loss=loss)

    module = Told()
    fit(make_trainer(tmp_path, callbacks=[]), module)
    assert heard(module) == [loss.item() for loss in module.losses]


def test_an_optimizer_that_is_none_of_ours(tmp_path: Path) -> None:
    class Plain(Module):
        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters())

    with pytest.raises(TypeError, match=r"expected an AdaptiveAdamW, got AdamW"):
        fit(make_trainer(tmp_path), Plain())


def test_two_optimizers_are_refused(tmp_path: Path) -> None:
    class Two(ManualModule):
        def configure_optimizers(self) -> Any:
            return [AdaptiveAdamW(self.parameters()), AdaptiveAdamW(self.parameters())]

    with pytest.raises(ValueError, match=r"one optimizer, got 2"):
        fit(make_trainer(tmp_path), Two())


def test_nothing_of_ours_reads_a_value_between_logs(tmp_path: Path) -> None:
    waits = HostWaits(adaptiverl)

    class Watched(lightning.Callback):  # type: ignore[misc, name-defined]
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            waits.__enter__()

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            pl_module.losses[-1].item()
            waits.__exit__(None, None, None)

    plugin = MixedPrecision("bf16-mixed", device="cpu")
    plugin.scaler = torch.amp.GradScaler("cpu")
    trainer = make_trainer(
        tmp_path,
        plugins=[plugin],
        accumulate_grad_batches=2,
        log_every_n_steps=100,
        callbacks=[Watched(), AdaptiveCallback()],
    )

    fit(trainer, Unasked(fused=True))
    assert waits.of("adaptiverl").keys() <= AT_HOME
    assert waits.of("other").total() > 0, "the count works"


def test_the_package_of_the_other_name(tmp_path: Path) -> None:
    """`pytorch_lightning` has a Trainer and a module of its own; the callback serves both."""
    package = pytest.importorskip("pytorch_lightning", reason="pytorch-lightning is not installed")

    class Other(package.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = tiny_gpt2()

        def training_step(self, batch: dict[str, Tensor], index: int) -> Any:
            return self.model(**batch).loss

        def configure_optimizers(self) -> Any:
            return AdaptiveAdamW(self.parameters(), lr=1e-2, control=QUICK)

    trainer = make_trainer(tmp_path, package)
    trainer.fit(Other(), data())
    assert trainer.optimizers[0].knobs()["updates"] == 3
    assert "adaptive/alpha" in trainer.logged_metrics
