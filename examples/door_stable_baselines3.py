"""Stable-Baselines3: PPO whose actor and critic find a rate each."""

from __future__ import annotations

from typing import Any

from stable_baselines3 import PPO

from adaptiverl import AdaptiveAdamW, Control
from adaptiverl.integrations.stable_baselines3 import AdaptiveCallback, AdaptivePolicy

rollout: dict[str, Any] = {"n_steps": 256, "batch_size": 64, "n_epochs": 10}
control = Control.climb("auto", groups="own", reuse=(256 // 64, 10))
kwargs = {"eps": 1e-5, "weight_decay": 0.0, "control": control}
policy = {"optimizer_class": AdaptiveAdamW, "optimizer_kwargs": kwargs}
model = PPO(AdaptivePolicy, "CartPole-v1", policy_kwargs=policy, seed=0, device="cpu", **rollout)
model.learn(8192, callback=AdaptiveCallback())
