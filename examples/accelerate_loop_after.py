"""A training loop with Accelerate, two micro-batches to a step."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from adaptiverl import AdaptiveAdamW, Control
from adaptiverl.integrations.accelerate import knob_logs, observe_backward
from task import STEPS, make_loader, make_model

accelerator = Accelerator(gradient_accumulation_steps=2, log_with="tensorboard", project_dir="runs")
model = make_model()
optimizer = AdaptiveAdamW(
    model.parameters(), lr=3e-3, weight_decay=0.1, control=Control(mode="modulate")
)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS // 2)
model, optimizer, scheduler, loader = accelerator.prepare(
    model, optimizer, scheduler, make_loader()
)
observe_backward(accelerator, optimizer)
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
        logs = {"loss": loss.item(), **knob_logs(optimizer)}
        accelerator.log(logs, step=step)
        accelerator.print({"step": step, **logs})

accelerator.end_training()
