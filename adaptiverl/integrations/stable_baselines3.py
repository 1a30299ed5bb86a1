"""`AdaptiveCallback` for Stable-Baselines3: the optimizer hears returns, the knobs are logged."""

from __future__ import annotations

import math
from typing import Any

from adaptiverl.integrations.checks import ScheduleWatch, check_horizon, tell_horizon, warn
from adaptiverl.integrations.steering import Steered, knob_logs, steered

try:
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
    from stable_baselines3.common.policies import ActorCriticPolicy
except ImportError as error:
    raise ImportError(
        "adaptiverl.integrations.stable_baselines3 needs stable-baselines3, which is not there "
        f"({error}): pip install 'stable-baselines3>=2.4'"
    ) from error

__all__ = ["AdaptiveCallback", "AdaptivePolicy"]

REMEDY = "give policy_kwargs={'optimizer_class': AdaptiveAdamW, ...} to PPO, A2C or DQN"


class AdaptivePolicy(ActorCriticPolicy):
    """``"MlpPolicy"`` whose optimizer has two groups: the actor's and the critic's.

    What both share is the actor's. ``Control(groups="own")`` then finds a rate for each. It is
    given to PPO in the place of ``"MlpPolicy"``.
    """

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        critic = [*self.mlp_extractor.value_net.parameters(), *self.value_net.parameters()]
        if not self.share_features_extractor:
            critic += self.vf_features_extractor.parameters()
        known = {id(parameter) for parameter in critic}
        actor = [parameter for parameter in self.parameters() if id(parameter) not in known]
        groups = [{"params": actor}, {"params": critic}]
        kwargs = {"lr": lr_schedule(1), **self.optimizer_kwargs}
        self.optimizer = self.optimizer_class(groups, **kwargs)


class AdaptiveCallback(BaseCallback):
    """Steers a policy's `AdaptiveAdamW` by the returns (docs/reinforcement-learning.md).

    After every rollout in which an episode ended, their mean return is the reward of one
    observation, and its negative the loss; with ``Control(every=None)`` it is an update as well. A
    control that finds the rate by the gradients is told nothing; ``Control(horizon="auto")`` learns
    how many updates the run of a PPO or A2C takes. ``adaptive/lr``, ``adaptive/alpha``,
    ``adaptive/momentum`` and ``adaptive/noise`` are in the log.

    Warned of once: a learning-rate schedule under ``Control(mode="replace")``, a horizon that is
    not the run's, and, where PPO's values are not clipped (``clip_range_vf``), a control that looks
    for one rate of actor and critic, or does not know how often a rollout is used.

    Raises:
        TypeError: When training starts: the policy's optimizer is none of ours.

    Examples:
        >>> callback = AdaptiveCallback()  # model.learn(100_000, callback=callback)
    """

    def __init__(self) -> None:
        super().__init__()
        self._returns: list[float] = []
        self._steered: Steered | None = None
        self._schedule: ScheduleWatch | None = None

    def _on_training_start(self) -> None:
        self._steered = steered(getattr(self.model.policy, "optimizer", None), REMEDY)
        self._returns.clear()
        self._schedule = ScheduleWatch(
            self._steered, "Stable-Baselines3's learning_rate", "give a number as learning_rate"
        )
        if isinstance(self.model, OnPolicyAlgorithm):
            updates = self._steered.knobs()["step"] + updates_of(self.model)
            tell_horizon(self._steered, updates)
            check_horizon(self._steered.control, updates, "total_timesteps, in updates")
            if getattr(self.model, "clip_range_vf", None) is None:
                check_search(self._steered, *updates_per_rollout(self.model))

    def _on_step(self) -> bool:
        for info in self.locals.get("infos", ()):
            if "episode" in info:
                self._returns.append(float(info["episode"]["r"]))
        return True

    def _on_rollout_start(self) -> None:
        """Between two rollouts the policy was trained, at the rates of a schedule."""
        if self._schedule is not None:
            self._schedule.look()

    def _on_rollout_end(self) -> None:
        assert self._steered is not None
        control = self._steered.control
        if self._returns and not control.finds_lr:
            mean = sum(self._returns) / len(self._returns)
            tell = self._steered.update if control.every is None else self._steered.observe
            tell(-mean, mean if control.reward == "given" else None)
            self._returns.clear()
        for name, knob in knob_logs(self._steered).items():
            self.logger.record(name, knob)


def updates_of(model: OnPolicyAlgorithm) -> int:
    """How many steps its optimizer will take in this ``learn``; ``target_kl`` may make it fewer."""
    left = model._total_timesteps - model.num_timesteps
    rollouts = -(-left // (model.n_steps * model.n_envs))
    return int(rollouts * math.prod(updates_per_rollout(model)))


def updates_per_rollout(model: OnPolicyAlgorithm) -> tuple[int, int]:
    """Minibatches and epochs: PPO's, or one of each, A2C's."""
    samples = model.n_steps * model.n_envs
    return -(-samples // getattr(model, "batch_size", samples)), getattr(model, "n_epochs", 1)


def check_search(optimizer: Steered, minibatches: int, epochs: int) -> None:
    """A search by the gradients reads new samples only, and actor and critic have one each."""
    control = optimizer.control
    counted = control.reuse == (minibatches, epochs)
    apart = control.groups == "own" and len(optimizer.param_groups) > 1
    if not control.finds_lr or epochs == 1 or (counted and apart):
        return
    warn(
        f"Each rollout is gone through {epochs} times, in {minibatches} minibatches, by an actor "
        f"and a critic, and Control(law={control.law!r}, groups={control.groups!r}, "
        f"reuse={control.reuse}) over {len(optimizer.param_groups)} group(s) takes that for new "
        "samples or for one net: the rate can become a hundred times too high. Use AdaptivePolicy "
        f"and Control.climb(horizon, groups='own', reuse=({minibatches}, {epochs}))"
    )
