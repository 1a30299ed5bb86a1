"""DeepSpeed: ZeRO takes an optimizer that it has not tested, if it is told to."""

from __future__ import annotations

import deepspeed

from adaptiverl import AdaptiveAdamW, Control
from task import make_loader, make_model

model = make_model()
optimizer = AdaptiveAdamW(model.parameters(), lr=3e-3, control=Control(every=5))
engine, *_ = deepspeed.initialize(
    model=model,
    optimizer=optimizer,
    config={
        "train_batch_size": 8,
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,  # with offload: zero_force_ds_cpu_optimizer, False
    },
)
losses = []
for batch in make_loader():
    loss = engine(**batch).loss
    engine.backward(loss)
    optimizer.observe(loss)
    engine.step()
    losses.append(loss.item())
