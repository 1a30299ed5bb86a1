"""A real Trainer of Lightning's on a tiny model, steered by the callback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from framework_cases import How, Run, scheduler_of
from tiny_models import Tokens
from torch import Tensor
from torch.utils.data import DataLoader

lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")

from lightning.pytorch.plugins.precision import MixedPrecision  # noqa: E402

from adaptiverl.integrations.lightning import AdaptiveCallback  # noqa: E402

TAG, FIRST_LOG = "", 1


class Methods:
    """As Lightning's users write them."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.model, self.run = run.model, run

    def training_step(self, batch: dict[str, Tensor], index: int) -> Any:
        return self.model(**batch)["loss"]

    def configure_optimizers(self) -> Any:
        optimizer = self.run.make_optimizer(self.model.parameters())
        if not self.run.how.scheduled:
            return optimizer
        return [optimizer], [{"scheduler": scheduler_of(optimizer), "interval": "step"}]


class Module(Methods, lightning.LightningModule):  # type: ignore[misc, name-defined]
    pass


class Validated(Module):
    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        self.log("val_loss", self.model(**batch)["loss"])
        self.log("val_accuracy", torch.tensor(0.25))


class Ears(lightning.Callback):  # type: ignore[misc, name-defined]
    """Lightning's checkpoints leave torch's random state out: each batch starts from its own."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.stepped = False

    def on_train_start(self, *_: Any) -> None:
        self.run.begin()

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        torch.manual_seed(trainer.fit_loop.total_batch_idx)

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.stepped = True

    def on_train_batch_end(self, *_: Any) -> None:
        if self.stepped:
            self.run.listen()
        self.stepped = False

    def on_validation_end(self, trainer: Any, *_: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.run.evaluations.append(trainer.callback_metrics["val_loss"].item())

    def on_train_end(self, *_: Any) -> None:
        self.run.end()


def held_out() -> Any:
    return DataLoader(Tokens(8, seed=1), batch_size=4)


class Lightning(Run):
    """A Trainer; what is given beside a `How` are its module's class, its own, its arguments."""

    def __init__(
        self, folder: Path, how: How, module: Any = None, package: Any = lightning, **native: Any
    ) -> None:
        super().__init__(how)
        self.module = (module or (Validated if how.validated else Module))(self)
        callbacks = [AdaptiveCallback(**how.callback)]
        # By itself Lightning takes "16-mixed" only where there is a GPU; its plugin runs anywhere.
        half = MixedPrecision("bf16-mixed", device="cpu")
        half.scaler = torch.amp.GradScaler("cpu") if how.scaler else None
        if how.saves:
            checkpoint = lightning.callbacks.ModelCheckpoint(
                str(folder), filename="{epoch}", save_top_k=-1, every_n_epochs=1
            )
            callbacks.append(checkpoint)
        arguments: dict[str, Any] = {
            "default_root_dir": str(folder),
            "accelerator": "cpu",
            "max_epochs": how.epochs,
            "accumulate_grad_batches": how.accumulate,
            "gradient_clip_val": how.clip,
            "logger": False,
            "enable_checkpointing": how.saves,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 1,
            "log_every_n_steps": how.log_every,
            "plugins": [half] if how.bf16 or how.scaler else None,
        }
        if how.events:
            logger = lightning.loggers.TensorBoardLogger(str(folder), name="", version="events")
            arguments["logger"] = logger
        callbacks = native.pop("callbacks", callbacks)
        self.trainer = package.Trainer(callbacks=[*callbacks, Ears(self)], **(arguments | native))

    def train(self, resume: Path | None = None) -> None:
        data = DataLoader(Tokens(self.how.size), batch_size=4)
        self.trainer.fit(
            self.module, data, held_out() if self.how.validated else None, ckpt_path=resume
        )

    def evaluate(self) -> None:
        self.trainer.validate(self.module, held_out(), verbose=False)

    @property
    def optimizer(self) -> Any:  # type: ignore[override]
        return self.trainer.optimizers[0]


make, SAVED = Lightning, "epoch=0.ckpt"
