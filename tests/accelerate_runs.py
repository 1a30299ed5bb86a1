"""A loop as Accelerate's users write it, observed through `backward`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from framework_cases import How, Run, scheduler_of
from tiny_models import Tokens
from torch.utils.data import DataLoader

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")

from adaptiverl.integrations.accelerate import knob_logs, observe_backward  # noqa: E402

TAG, FIRST_LOG = "", 2


class Accelerate(Run):
    def __init__(self, folder: Path, how: How) -> None:
        super().__init__(how)
        self.folder = folder
        self.accelerator = accelerate.Accelerator(
            cpu=True,
            mixed_precision="bf16" if how.bf16 else "no",
            gradient_accumulation_steps=how.accumulate,
            log_with="tensorboard" if how.events else None,
            project_dir=folder,
        )
        self.accelerator.scaler = torch.amp.GradScaler("cpu") if how.scaler else None
        self.optimizer = optimizer = self.make_optimizer(self.model.parameters())
        loader = DataLoader(Tokens(how.size), batch_size=4)
        scheduler = scheduler_of(optimizer) if how.scheduled else None
        self.prepared = self.accelerator.prepare(self.model, optimizer, loader)
        self.scheduler = self.accelerator.prepare(scheduler) if scheduler is not None else None
        observe_backward(self.accelerator, self.prepared[1])

    def train(self, resume: Path | None = None) -> None:
        if resume is not None:
            self.accelerator.load_state(str(resume))
        if self.how.events:
            self.accelerator.init_trackers("events")
        self.begin()
        for epoch in range(self.how.epochs):
            if resume is None or epoch > 0:
                self._epoch()
            if self.how.saves and epoch == 0:
                self.accelerator.save_state(str(self.folder / SAVED))
        self.end()
        self.accelerator.end_training()

    def _epoch(self) -> None:
        accelerator, (model, optimizer, loader) = self.accelerator, self.prepared
        for batch in loader:
            with accelerator.accumulate(model):
                loss = model(**batch)["loss"]
                accelerator.backward(loss)
                if self.how.clip is not None and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), self.how.clip)
                optimizer.step()
                if self.scheduler is not None:
                    self.scheduler.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                self.listen()
                if self.how.events and len(self.knobs) % self.how.log_every == 0:
                    accelerator.log(knob_logs(optimizer), step=len(self.knobs))


make, SAVED = Accelerate, "saved"
