"""A real Trainer of Hugging Face's on a tiny model, steered by the callback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from framework_cases import How, Run
from tiny_models import Tokens

from adaptiverl import AdaptiveAdamW

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

from adaptiverl.integrations.huggingface import AdaptiveCallback  # noqa: E402

TAG, FIRST_LOG = "train/", 2
"""Before a name in TensorBoard; the number of the second step there"""


class Ears(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
    def __init__(self, run: Run) -> None:
        self.run = run

    def on_train_begin(self, *_: Any, **kwargs: Any) -> None:
        self.run.begin()

    def on_step_end(self, *_: Any, **kwargs: Any) -> None:
        self.run.listen()

    def on_train_end(self, *_: Any, **kwargs: Any) -> None:
        self.run.end()


class HuggingFace(Run):
    """A Trainer; what is given beside a `How` are its arguments, and TrainingArguments'."""

    def __init__(self, folder: Path, how: How, **native: Any) -> None:
        super().__init__(how)
        given: dict[str, Any] = {
            "train_dataset": Tokens(how.size),
            "optimizer_cls_and_kwargs": (AdaptiveAdamW, self.keywords),
        }
        if how.validated:
            given["eval_dataset"] = Tokens(8, seed=1)
        for name in ("optimizers", "optimizer_cls_and_kwargs", "callbacks", "eval_dataset"):
            if name in native:
                given[name] = native.pop(name)
        arguments: dict[str, Any] = {
            "output_dir": str(folder),
            "use_cpu": True,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": how.accumulate,
            "num_train_epochs": how.epochs,
            "logging_steps": how.log_every,
            "save_strategy": "epoch" if how.saves else "no",
            "eval_strategy": "epoch" if how.validated else "no",
            "report_to": ["tensorboard"] if how.events else [],
            "disable_tqdm": True,
            "lr_scheduler_type": "linear" if how.scheduled else "constant",
            "dataloader_pin_memory": False,
            "max_grad_norm": how.clip or 0.0,
            "bf16": how.bf16,
        }
        self.trainer = transformers.Trainer(
            self.model, transformers.TrainingArguments(**(arguments | native)), **given
        )
        if how.scaler:
            self.trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
        if "callbacks" not in given:
            self.trainer.add_callback(AdaptiveCallback(self.trainer, **how.callback))
        self.trainer.add_callback(Ears(self))

    def train(self, resume: Path | None = None) -> None:
        self.trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        self.shown = self.logged("loss")
        self.evaluations = self.logged("eval_loss")

    def evaluate(self) -> None:
        self.trainer.evaluate()

    def logged(self, key: str) -> list[float]:
        return [entry[key] for entry in self.trainer.state.log_history if key in entry]

    @property
    def optimizer(self) -> Any:  # type: ignore[override]
        return self.trainer.optimizer.optimizer


make, SAVED = HuggingFace, "checkpoint-3"
