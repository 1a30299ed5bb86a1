"""PEFT: LoRA's few parameters, and a rate of their own."""

from __future__ import annotations

from peft import LoraConfig, get_peft_model

from adaptiverl import AdaptiveAdamW, Control
from task import make_loader, make_model

config = LoraConfig(r=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
model = get_peft_model(make_model(), config)
trained = [p for p in model.parameters() if p.requires_grad]
optimizer = AdaptiveAdamW(trained, lr=None, control=Control.find_lr(200))
losses = []
for _ in range(5):
    for batch in make_loader():
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
print(losses[-1])
