"""A training loop of one's own."""

from __future__ import annotations

import torch

from adaptiverl import AdaptiveAdamW, Control
from task import STEPS, make_loader, make_model

model = make_model()
optimizer = AdaptiveAdamW(
    model.parameters(), lr=3e-3, weight_decay=0.1, control=Control(mode="modulate")
)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)

for step, batch in enumerate(make_loader(), start=1):
    loss = model(**batch).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.observe(loss)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    if step % 10 == 0:
        print({"step": step, "loss": loss.item(), "lr": optimizer.knobs()["lr"]})
