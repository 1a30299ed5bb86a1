"""skorch: the optimizer is an argument, and hears the loss of each step's closure."""

from __future__ import annotations

import torch
from skorch import NeuralNetClassifier

from adaptiverl import AdaptiveAdamW, Control

torch.manual_seed(0)
x = torch.randn(256, 8)
y = (x[:, 0] * x[:, 1] > 0).long()
net = NeuralNetClassifier(
    torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2)),
    criterion=torch.nn.CrossEntropyLoss,
    max_epochs=20,
    lr=1e-2,
    optimizer=AdaptiveAdamW,
    optimizer__control=Control(every=5),
    train_split=None,
)
net.fit(x, y)
print(net.history[-1]["train_loss"], net.optimizer_.knobs()["lr"])
