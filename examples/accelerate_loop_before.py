"""A training loop with Accelerate, two micro-batches to a step."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch.optim import AdamW

from task import STEPS, make_loader, make_model

accelerator = Accelerator(gradient_accumulation_steps=2, log_with="tensorboard", project_dir="runs")
model = make_model()
optimizer = AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS // 2)
model, optimizer, scheduler, loader = accelerator.prepare(
    model, optimizer, scheduler, make_loader()
)
accelerator.init_trackers("migration")

for step, batch in enumerate(loader, start=1):
    with accelerator.accumulate(model):
        loss = model(**batch).loss
        accelerator.backward(loss)
        if accelerator.sync_gradients:
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    if step % 10 == 0:
        logs = {"loss": loss.item()}
        accelerator.log(logs, step=step)
        accelerator.print({"step": step, **logs})

accelerator.end_training()
