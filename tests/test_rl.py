"""bench/rl: PPO's parts by hand, the tasks against gymnasium's, and rows that survive a kill."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from adaptiverl import Control

pytest.importorskip("gymnasium", reason="gymnasium is not installed (requirements.txt has it)")

from gymnasium.envs.classic_control.acrobot import AcrobotEnv

from bench.rl.__main__ import main
from bench.rl.agents import Agents
from bench.rl.environments import TASKS, Acrobots
from bench.rl.learners import Adam, Adaptive, KlAdaptive, Length, Method
from bench.rl.methods import METHODS
from bench.rl.ppo import PER_ROLLOUT, Run, Training, loss
from bench.rl.rollout import Samples, chosen, estimated
from bench.rl.rows import append, fingerprint, measured, read
from bench.rl.study import complete, plan
from bench.rl.tables import report
from bench.run.rows import newest

CART, ACROBOT = TASKS["CartPole-v1"], TASKS["Acrobot-v1"]
CONSTANT = Adam("constant", "", anneals=False)


def test_acrobots_are_gymnasiums() -> None:
    """Each from the same state, pushed the way it moves, which gets it up; and the reset after."""
    together = Acrobots(2)
    together.reset(seed=3)
    alone = [AcrobotEnv() for _ in range(2)]
    ends = 0
    for _ in range(200):
        before, ended = together.state.copy(), together.prev_done.copy()
        actions = np.where(before[3] < 0, 0, 2)
        seen, rewards, terminated, _, _ = together.step(actions)
        for i, one in enumerate(alone):
            if ended[i]:
                assert (rewards[i], terminated[i], together.steps[i]) == (0, False, 0)
                assert np.abs(together.state[:, i]).max() <= 0.1
                continue
            one.state = before[:, i]
            expected, reward, end, _, _ = one.step(int(actions[i]))
            np.testing.assert_allclose(seen[i], expected, atol=1e-6)
            assert (rewards[i], terminated[i]) == (reward, end)
            ends += end
    assert ends > 1


def test_an_acrobot_that_stays_down_is_cut_off() -> None:
    environment = Acrobots(1, max_episode_steps=3)
    environment.reset(seed=0)
    told = [environment.step([1])[1:4] for _ in range(5)]
    assert [bool(truncated[0]) for _, _, truncated in told] == [False, False, True, False, False]
    assert [rewards[0] for rewards, _, _ in told] == [-1, -1, -1, 0, -1]


def test_advantages_by_hand() -> None:
    rewards = torch.tensor([[[1.0], [2.0], [0.0], [4.0]]])
    values = torch.tensor([[[0.5], [1.0], [9.0], [2.0], [3.0]]])
    # The episode ends with the second step: the third one's state is that of its end.
    alive = torch.tensor([[[1.0], [1.0], [0.0], [1.0], [1.0]]])
    last = 4 + 0.99 * 3 - 2
    ended = 2 - 1.0
    expected = [1 + 0.99 * 1.0 - 0.5 + 0.99 * 0.95 * ended, ended]
    found = estimated(rewards, values, alive)[0, :, 0]
    torch.testing.assert_close(found[[0, 1, 3]], torch.tensor([*expected, last]))


def test_actions_are_drawn_by_their_probabilities() -> None:
    log_probabilities = torch.tensor([[[0.2, 0.5, 0.3]] * 4]).log()
    assert chosen(
        log_probabilities, torch.tensor([[0.1, 0.21, 0.69, 0.71]])
    ).flatten().tolist() == [
        *(0, 1, 1, 2),
    ]


def batch_of(agents: Agents) -> Samples:
    generator = np.random.default_rng(0)

    def drawn(*shape: int) -> Tensor:
        return torch.as_tensor(generator.standard_normal((2, 6, *shape)), dtype=torch.float32)

    actions = torch.as_tensor(generator.integers(0, 2, (2, 6)))
    with torch.no_grad():
        observations = drawn(4)
        likely = agents.log_probabilities(observations).gather(2, actions[..., None])[..., 0]
        weights = torch.tensor([[1.0, 1, 0, 1, 1, 1]] * 2)
        parts = (likely + 0.3 * drawn(), agents.values(observations) + 0.3 * drawn())
        return Samples(observations, actions, *parts, drawn(), drawn(), weights)


@pytest.mark.parametrize("value_clip", [0.2, math.inf])
def test_the_loss_is_ppos(value_clip: float) -> None:
    """Sample by sample in float64; one that counts for nothing is left out."""
    agents = Agents(CART, [4, 5])
    batch = batch_of(agents)
    found, divergences = (part.detach() for part in loss(agents, batch, value_clip))
    for run in range(2):
        kept = [i for i in range(6) if i != 2]
        advantages = batch.advantages[run].double().numpy()[kept]
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        total = divergence = 0.0
        for i, advantage in zip(kept, advantages, strict=True):
            seen = batch.observations[:, i : i + 1]
            likely = agents.log_probabilities(seen)[run, 0].detach().double().numpy()
            value = float(agents.values(seen).detach()[run, 0])
            action, before = int(batch.actions[run, i]), float(batch.values[run, i])
            log_ratio = likely[action] - float(batch.log_probabilities[run, i])
            ratio = math.exp(log_ratio)
            policy = max(-advantage * ratio, -advantage * min(max(ratio, 0.8), 1.2))
            entropy = -sum(math.exp(x) * x for x in likely)
            target = float(batch.returns[run, i])
            near = before + min(max(value - before, -value_clip), value_clip)
            squares = max((value - target) ** 2, (near - target) ** 2)
            total += (policy - 0.01 * entropy + 0.5 * squares / 2) / 5
            divergence += (ratio - 1 - log_ratio) / 5
        assert float(found[run]) == pytest.approx(total, rel=1e-5)
        assert float(divergences[run]) == pytest.approx(divergence, rel=1e-4)


def trained(*runs: Run, rollouts: int = 3) -> Training:
    training = Training(CART, runs, rollouts * PER_ROLLOUT)
    training.run()
    return training


def frozen(length: Length) -> Control:
    return Control.frozen()


def test_a_run_does_not_depend_on_those_beside_it_nor_on_the_kind_of_adam() -> None:
    ours = Adaptive("frozen", "", frozen)
    runs = [Run(CONSTANT, 1e-3, 7), Run(CONSTANT, 1e-3, 8), Run(ours, 1e-3, 7)]
    together, alone = trained(*runs), trained(runs[1])
    first, second, third = (parameters(together, i) for i in range(3))
    torch.testing.assert_close(parameters(alone, 0), second, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(third, first, rtol=1e-4, atol=1e-5)
    assert together.worlds.finished[1] == alone.worlds.finished[0]
    assert together.worlds.finished[2] == together.worlds.finished[0] != alone.worlds.finished[0]
    assert together.highest_rates == [1e-3] * 3


def parameters(training: Training, run: int) -> Tensor:
    return torch.cat([stack.detach()[run].flatten() for stack in training.agents.parameters])


def test_gradients_are_clipped_and_one_that_does_not_count_is_none() -> None:
    training = Training(CART, [Run(CONSTANT, 1e-3, 0), Run(CONSTANT, 1e-3, 1)], PER_ROLLOUT)
    samples = training.worlds.roll_out()
    samples.returns *= 1e4
    training.update(samples)
    squares = sum(
        p.grad.square().flatten(1).sum(1) for p in training.agents.parameters if p.grad is not None
    )
    torch.testing.assert_close(torch.as_tensor(squares).sqrt(), torch.tensor([0.5, 0.5]))


def test_every_return_is_told_once() -> None:
    """CartPole's return counts the episode's steps; the one in which the next begins has none."""
    training = Training(CART, [Run(CONSTANT, 1e-3, 0)], 2 * PER_ROLLOUT)
    samples = training.worlds.roll_out()
    first = training.new_returns()
    assert training.new_returns() == [[]]
    assert first == training.worlds.finished
    unfinished = training.worlds.so_far.sum()
    assert sum(first[0]) + unfinished == PER_ROLLOUT - float((samples.weights == 0).sum())


@pytest.mark.parametrize(
    ("divergence", "expected"), [(0.021, 2e-3), (0.02, 3e-3), (0.005, 3e-3), (0.0049, 4.5e-3)]
)
def test_the_kl_rule_by_hand(divergence: float, expected: float) -> None:
    stack = torch.zeros(1, 2, 3, requires_grad=True)
    stack.grad = torch.ones_like(stack)
    learner = KlAdaptive("", "").start([stack], 3e-3, Length(1, 1, 1))
    learner.step(torch.zeros(1), torch.tensor([divergence], dtype=torch.float64))
    assert learner.rates() == pytest.approx([expected])
    assert stack.detach().flatten().tolist() == pytest.approx([-expected] * 6, rel=1e-3)


@pytest.mark.parametrize("told", ["nothing", "loss", "return"])
def test_what_an_optimizer_is_told(told: str) -> None:
    stack = torch.zeros(1, 2, 3, requires_grad=True)
    stack.grad = torch.ones_like(stack)
    control = replace(Control.epochwise(), reward="given") if told == "return" else Control(every=1)
    method = Adaptive("", "", lambda _: control, told)  # type: ignore[arg-type]
    learner = method.start([stack], 1e-3, Length(2, 1, 1))
    for returns, step in (([3.0, 5.0], 2.0), ([], 7.0)):
        learner.roll([returns])
        learner.step(torch.tensor([step]), torch.zeros(1))
    optimizer = learner.optimizers[0]  # type: ignore[attr-defined]
    trace = optimizer.trace()
    pairs = {"nothing": ([], []), "loss": ([2, 7], [-2, -7]), "return": ([-4], [4])}
    assert (trace["loss"].tolist(), trace["reward"].tolist()) == pairs[told]


def test_measured_by_hand() -> None:
    returns = [float(n) for n in range(1, 131)]
    # After the rollouts 0, 10 and 130 episodes: means of 1 to 10 and of 111 to 130.
    assert measured(returns, [0, 10, 130]) == (80.5, (5.5 + 120.5) / 2)
    assert all(map(math.isnan, measured([], [0, 0])))


def test_a_killed_study_goes_on_to_the_rows_of_an_undisturbed_one(tmp_path: Path) -> None:
    keys = plan(["CartPole-v1"], ["adam", "find-lr"], [1e-3], [0], PER_ROLLOUT)
    whole = complete(tmp_path / "whole.csv", keys, workers=1)
    broken = tmp_path / "broken.csv"
    append(broken, whole[:1])
    with broken.open("a") as file:
        file.write("CartPole-v1,find-lr,0.0")
    assert read(broken) == whole[:1]
    again = complete(broken, keys, workers=1)
    assert [replace(row, seconds=0.0) for row in again] == [replace(r, seconds=0.0) for r in whole]
    assert again[0] == whole[0], "what is there is not trained again"
    assert len(broken.read_text().splitlines()) == 3
    assert newest([replace(whole[0], fingerprint="older"), whole[0]]) == [whole[0]]


def test_a_fingerprint_is_of_what_steers() -> None:
    def other(length: Length) -> Control:
        return Control.climb(length.updates)

    one = METHODS["find-lr"]
    assert isinstance(one, Adaptive)
    assert fingerprint(one) == fingerprint(replace(one))
    assert fingerprint(one) != fingerprint(replace(one, control=other))
    assert fingerprint(one) != fingerprint(replace(one, anneals=True))
    kinds: list[Method] = [Adam("a", ""), Adam("a", "", anneals=False)]
    assert len({fingerprint(kind) for kind in kinds}) == 2


def test_tables_and_requests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.csv"
    (row,) = complete(path, plan(["CartPole-v1"], ["adam"], [1e-3], [0], PER_ROLLOUT), workers=1)
    append(path, [replace(row, final=10.0), replace(row, seed=1, final=14.0)])
    assert "| Adam, annealed | 12 ± 2 | 10 |" in report(newest(read(path)))
    gone = replace(row, method="a method that was taken out")
    append(tmp_path / "old.csv", [gone, row])
    assert complete(tmp_path / "old.csv", [row.key], workers=1) == [row]
    assert main(["--report", str(path)]) == 0
    assert "12 ± 2" in capsys.readouterr().out
    for wrong, said in (
        (["--methods", "adamw"], "no method is called 'adamw'; there are adam, "),
        (["--report", __file__], "has the columns"),
        (["--report", str(tmp_path)], "cannot be read"),
        (["--report", str(tmp_path / "absent.csv")], "absent.csv holds no rows"),
        (["--out", str(tmp_path)], "must be a file that rows can be added to"),
        (["--out", str(path / "below.csv")], "must be a file that rows can be added to"),
        (["--quick", "--full"], "not allowed with"),
    ):
        assert main(wrong) == 2
        assert said in capsys.readouterr().err
