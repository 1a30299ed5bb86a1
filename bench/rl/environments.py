"""The tasks: gymnasium's CartPole-v1 and Acrobot-v1, many copies in one call.

Both are vector environments of gymnasium's "next step" kind: in the step after an episode's end the
action is ignored, the reward is 0, and what is returned is the next episode's first observation.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

Floats = NDArray[np.float64]

GRAVITY = 9.8
DURATION = 0.2  # of a step, in seconds
FASTEST = np.array([[4 * np.pi], [9 * np.pi]])  # of the two joints, in radians a second


class Task(NamedTuple):
    """What is learnt, and how PPO goes about it."""

    name: str  # gymnasium's, and perhaps what differs from CleanRL
    inputs: int  # numbers of an observation
    actions: int
    published: float  # mean return of CleanRL's PPO after 500,000 steps, and its spread
    spread: float

    start: float  # an episode's first state is drawn from ±this
    epochs: int = 4  # how often each rollout is gone through
    value_clip: float = 0.2
    """How far a value may move from that in the rollout, before its loss is the clipped one"""

    @property
    def is_cart(self) -> bool:
        return self.name.startswith("CartPole")

    def make(self, count: int) -> Any:
        return CartPoleVectorEnv(count) if self.is_cart else Acrobots(count)

    def observed(self, state: Floats) -> NDArray[np.float32]:
        """(4, environments) to (environments, numbers)."""
        return (state.T if self.is_cart else seen(state)).astype(np.float32)


TASKS = {
    task.name: task
    for task in (
        Task("CartPole-v1", 4, 2, 490.0, 6.0, 0.05),
        Task("Acrobot-v1", 6, 3, -86.0, 1.0, 0.1),
        # Stable-Baselines3's defaults: values are not clipped, and a rollout is used ten times.
        Task("CartPole-v1-ten-epochs", 4, 2, 490.0, 6.0, 0.05, epochs=10, value_clip=math.inf),
    )
}


class Acrobots(VectorEnv[Any, Any, Any]):
    """gymnasium's Acrobot-v1, of which it has no vectorised form: the same numbers, all at once.

    Args:
        num_envs: How many.
        max_episode_steps: After which an episode is cut off.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 (gymnasium's attribute)

    def __init__(self, num_envs: int = 1, max_episode_steps: int = 500) -> None:
        self.num_envs = num_envs
        self.max_episode_steps = max_episode_steps
        high = np.array([1, 1, 1, 1, 4 * np.pi, 9 * np.pi], dtype=np.float32)
        self.single_observation_space = Box(-high, high, dtype=np.float32)
        self.single_action_space = Discrete(3)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.state: Floats = np.zeros((4, num_envs))  # two angles, two speeds
        self.steps = np.zeros(num_envs, dtype=np.int64)
        self.prev_done = np.zeros(num_envs, dtype=np.bool_)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.state = self._drawn(self.num_envs)
        self.steps[:] = 0
        self.prev_done[:] = False
        return seen(self.state), {}

    def step(self, actions: Any) -> Any:
        moved = runge_kutta(self.state, np.asarray(actions) - 1.0)
        moved[:2] = (moved[:2] + np.pi) % (2 * np.pi) - np.pi
        moved[2:] = np.clip(moved[2:], -FASTEST, FASTEST)
        moved[:, self.prev_done] = self._drawn(int(self.prev_done.sum()))
        self.state = moved
        self.steps = np.where(self.prev_done, 0, self.steps + 1)
        up = -np.cos(moved[0]) - np.cos(moved[0] + moved[1]) > 1
        terminated = up & ~self.prev_done
        truncated = self.steps >= self.max_episode_steps
        rewards = np.where(terminated | self.prev_done, 0.0, -1.0)
        self.prev_done = terminated | truncated
        return seen(self.state), rewards, terminated, truncated, {}

    def _drawn(self, count: int) -> Floats:
        return self.np_random.uniform(-0.1, 0.1, (4, count))


def seen(state: Floats) -> NDArray[np.float32]:
    """What Acrobot shows of its state."""
    first, second = state[:2]
    angles = (np.cos(first), np.sin(first), np.cos(second), np.sin(second))
    return np.stack([*angles, *state[2:]], axis=1).astype(np.float32)


def runge_kutta(state: Floats, torque: Floats) -> Floats:
    """One step of `DURATION`, of fourth order."""
    first = velocities(state, torque)
    second = velocities(state + DURATION / 2 * first, torque)
    third = velocities(state + DURATION / 2 * second, torque)
    fourth = velocities(state + DURATION * third, torque)
    return state + DURATION / 6 * (first + 2 * second + 2 * third + fourth)


def velocities(state: Floats, torque: Floats) -> Floats:
    """What moves the two joints: equations of R. Sutton's and A. Barto's book, all sizes 1."""
    angle1, angle2, speed1, speed2 = state
    cosine, sine = np.cos(angle2), np.sin(angle2)
    inertia1, inertia2 = 3.5 + cosine, 1.25 + 0.5 * cosine
    weight2 = 0.5 * GRAVITY * np.cos(angle1 + angle2 - np.pi / 2)
    weight1 = 1.5 * GRAVITY * np.cos(angle1 - np.pi / 2) + weight2
    weight1 = weight1 - 0.5 * speed2**2 * sine - speed2 * speed1 * sine
    pushed = torque + inertia2 / inertia1 * weight1 - 0.5 * speed1**2 * sine - weight2
    faster2 = pushed / (1.25 - inertia2**2 / inertia1)
    faster1 = -(inertia2 * faster2 + weight1) / inertia1
    return np.stack([speed1, speed2, faster1, faster2])
