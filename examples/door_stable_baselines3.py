"""Stable-Baselines3: PPO that finds its own rate, under the usual linear schedule."""

from __future__ import annotations

from dataclasses import replace

from stable_baselines3 import PPO

from adaptiverl import AdaptiveAdamW, Control
from adaptiverl.integrations.stable_baselines3 import AdaptiveCallback

control = replace(Control.find_lr("auto"), mode="modulate")
kwargs = {"eps": 1e-5, "weight_decay": 0.0, "control": control}
policy = {"optimizer_class": AdaptiveAdamW, "optimizer_kwargs": kwargs}
model = PPO("MlpPolicy", "CartPole-v1", lambda left: 3e-4 * left, n_steps=256, policy_kwargs=policy)
model.learn(8192, callback=AdaptiveCallback())
