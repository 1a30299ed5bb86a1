"""Stable-Baselines3: PPO whose rate follows the returns, once after each rollout."""

from __future__ import annotations

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from adaptiverl import AdaptiveAdamW, Control


class Returns(BaseCallback):
    """Tells the optimizer the mean return of the last episodes."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        returns = [episode["r"] for episode in self.model.ep_info_buffer]
        if returns:
            self.model.policy.optimizer.update(loss=-sum(returns) / len(returns))


kwargs = {"eps": 1e-5, "weight_decay": 0.0, "control": Control.epochwise()}
policy = {"optimizer_class": AdaptiveAdamW, "optimizer_kwargs": kwargs}
model = PPO("MlpPolicy", "CartPole-v1", n_steps=256, policy_kwargs=policy, seed=0, device="cpu")
model.learn(4096, callback=Returns())
print(model.policy.optimizer.knobs()["lr"])
