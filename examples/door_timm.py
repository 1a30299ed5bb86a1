"""timm: our optimizers by name."""

from __future__ import annotations

import timm
import torch
from timm.optim import create_optimizer_v2

from adaptiverl import Control
from adaptiverl.integrations.timm import register

register()
torch.manual_seed(0)
model = timm.create_model("test_resnet", num_classes=2)
optimizer = create_optimizer_v2(model, "adaptiveadamw", lr=None, control=Control.find_lr(200))
images, labels = torch.randn(16, 3, 64, 64), torch.arange(16) % 2
losses = []
for _ in range(200):
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(losses[-1], optimizer.knobs()["lr"])
