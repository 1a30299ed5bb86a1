"""examples/door_*.py: each framework's way in trains, and goes on from its checkpoint to the bit.

`make doors` installs the frameworks, into an environment of its own, and runs these.
"""

from __future__ import annotations

import copy
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training import assert_same, values

from adaptiverl import AdaptiveAdamW, AdaptiveLion, AdaptiveSGD, Control

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
DOORS = sorted(path.stem.removeprefix("door_") for path in EXAMPLES.glob("door_*.py"))
LONGEST = 25

# Whatever these packages warn of is theirs; what we say of a control is not.
pytestmark = [
    pytest.mark.filterwarnings("ignore", r"error:.*Control\("),
    pytest.mark.usefixtures("fresh_accelerate"),
]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """Run an example as its reader does, in an empty folder; returns its names."""

    def run_it(door: str) -> dict[str, Any]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(EXAMPLES))
        return runpy.run_path(str(EXAMPLES / f"door_{door}.py"), run_name="__main__")

    return run_it


@pytest.fixture(autouse=True)
def _one_process() -> Iterator[None]:
    """What a framework has started is over with its test."""
    yield
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def needs(*packages: str) -> None:
    for package in packages:
        pytest.importorskip(
            package, reason=f"{package} is not installed (make doors)", exc_type=ImportError
        )


def fell(losses: list[float]) -> None:
    assert losses[-1] < 0.9 * losses[0], "it trains"


def again(names: dict[str, Any], optimizer: Any, step: Callable[[Any, Any], Any]) -> None:
    """A copy with a new optimizer that has loaded the old one's checkpoint goes on alike."""
    model, trained = names["model"], names["optimizer"]
    other = copy.deepcopy(model)
    fresh = optimizer([p for p in other.parameters() if p.requires_grad])
    fresh.load_state_dict(copy.deepcopy(trained.state_dict()))
    for one, its in ((model, trained), (other, fresh)):
        for _ in range(3):
            its.zero_grad()
            step(one, its).backward()
            its.step()
    assert_same(values(other.parameters()), values(model.parameters()))
    assert fresh.knobs()["step"] == trained.knobs()["step"] > 3


@pytest.mark.parametrize("door", DOORS)
def test_an_example_is_short_and_a_page_names_it(door: str) -> None:
    text = (EXAMPLES / f"door_{door}.py").read_text("utf-8")
    assert len([line for line in text.splitlines() if line.strip()]) <= LONGEST
    assert f"(../examples/door_{door}.py)" in (ROOT / "docs/frameworks.md").read_text("utf-8")


def test_timm(run: Any) -> None:
    needs("timm")
    names = run("timm")
    fell(names["losses"])
    assert isinstance(names["optimizer"], AdaptiveAdamW)
    from timm.optim import create_optimizer_v2

    control = names["optimizer"].control

    def make(params: Any) -> Any:
        return create_optimizer_v2(params, "adaptiveadamw", lr=1e-3, control=control)

    names["optimizer"] = plain = make(names["model"].parameters())
    plain.zero_grad()
    x, y = names["images"], names["labels"]

    def step(model: Any, _: Any) -> Any:
        return torch.nn.functional.cross_entropy(model(x), y)

    for _ in range(3):
        step(names["model"], None).backward()
        plain.step()
    again(names, make, step)


@pytest.mark.parametrize(
    ("name", "kind"), [("adaptivesgd", AdaptiveSGD), ("adaptivelion", AdaptiveLion)]
)
def test_timm_makes_the_others_too(name: str, kind: Any) -> None:
    needs("timm")
    from timm.optim import create_optimizer_v2

    from adaptiverl.integrations.timm import register

    register()
    register()
    optimizer: Any = create_optimizer_v2(torch.nn.Linear(2, 2), name, lr=0.1, weight_decay=0.1)
    assert type(optimizer) is kind
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.1]


def test_skorch(run: Any, tmp_path: Path) -> None:
    needs("skorch")
    names = run("skorch")
    net, (x, y) = names["net"], (names["x"], names["y"])
    losses = net.history[:, "train_loss"]
    fell(losses)
    assert net.optimizer_.knobs()["loss_mean"] == pytest.approx(losses[-1], rel=0.3)
    other = copy.deepcopy(net)
    files = {f"f_{what}": str(tmp_path / what) for what in ("params", "optimizer")}
    net.save_params(**files)
    other.initialize()
    other.load_params(**files)
    for one in (net, other):
        one.partial_fit(x, y, epochs=2)
    assert_same(values(other.module_.parameters()), values(net.module_.parameters()))
    assert other.optimizer_.knobs() == pytest.approx(net.optimizer_.knobs(), nan_ok=True)


def test_peft(run: Any) -> None:
    needs("peft", "transformers")
    names = run("peft")
    fell(names["losses"])
    assert 0 < len(names["trained"]) < len(list(names["model"].parameters()))
    from task import Counting

    names["optimizer"] = AdaptiveAdamW(names["trained"], lr=1e-3)
    batch = {k: v[None] for k, v in Counting()[0].items()}
    names["model"].eval()

    def step(model: Any, optimizer: Any) -> Any:
        loss = model(**batch).loss
        optimizer.observe(loss)
        return loss

    step(names["model"], names["optimizer"]).backward()
    names["optimizer"].step()
    again(names, AdaptiveAdamW, step)


def test_stable_baselines3(run: Any, tmp_path: Path) -> None:
    needs("stable_baselines3", "gymnasium")
    names = run("stable_baselines3")
    model = names["model"]
    optimizer = model.policy.optimizer
    # The callback said where the run ends: 32 rollouts of 40 updates.
    assert optimizer.knobs()["step"] == 32 * 40
    assert optimizer.knobs()["lr"] == 0
    assert 1e-4 < max(optimizer.trace()["lr"].tolist()) < 3e-2, "found, and not a hundred times"
    assert sum(episode["r"] for episode in list(model.ep_info_buffer)[-10:]) > 10 * 100, "it learns"
    model.save(tmp_path / "ppo")
    loaded = names["PPO"].load(tmp_path / "ppo", device="cpu").policy.optimizer
    assert isinstance(loaded, AdaptiveAdamW)
    assert loaded.knobs() == pytest.approx(optimizer.knobs(), nan_ok=True)
    assert_same(loaded.state_dict(), optimizer.state_dict())


def small_ppo(control: Any, learning_rate: Any = 3e-4, **more: Any) -> Any:
    from stable_baselines3 import PPO

    from adaptiverl.integrations.stable_baselines3 import AdaptivePolicy

    policy = {"optimizer_class": AdaptiveAdamW, "optimizer_kwargs": {"control": control}}
    return PPO(
        *(AdaptivePolicy, "CartPole-v1", learning_rate),
        n_steps=64,
        batch_size=32,
        n_epochs=2,
        policy_kwargs=policy,
        device="cpu",
        seed=0,
        **more,
    )


@pytest.mark.parametrize("every", [None, 4])
def test_stable_baselines3_tells_returns(every: int | None) -> None:
    """In a rollout of 4 updates, once: at its end, or in its last step."""
    needs("stable_baselines3", "gymnasium")
    from adaptiverl.integrations.stable_baselines3 import AdaptiveCallback

    model = small_ppo(Control(every=every, reward="given"))
    model.learn(5 * 64, callback=AdaptiveCallback())
    trace, episodes = model.policy.optimizer.trace(), list(model.ep_info_buffer)
    # All episodes' returns, in groups, each group's mean once.
    told = [row for row in trace["reward"].tolist() if row == row]
    assert trace["loss"].tolist() == [-reward for reward in trace["reward"].tolist()]
    assert len(told) == 5
    ends, means = [0, *(64 * (i + 1) for i in range(5))], []
    steps = 0
    by_rollout: dict[int, list[float]] = {}
    for episode in episodes:
        steps += episode["l"]
        by_rollout.setdefault((steps - 1) // 64, []).append(float(episode["r"]))
    means = [sum(by_rollout[i]) / len(by_rollout[i]) for i in range(len(ends) - 1)]
    assert told == pytest.approx(means)


@pytest.mark.parametrize(
    ("control", "learning_rate", "said"),
    [
        (
            Control.climb("auto", groups="own"),
            3e-4,
            r"reuse=None\).*groups='own', reuse=\(2, 2\)",
        ),
        (Control.climb("auto", "own", (2, 3)), 3e-4, r"reuse=\(2, 3\)\) over 2 group"),
        (Control.climb("auto", reuse=(2, 2)), 3e-4, "groups='one', .* or for one net"),
        (Control.find_lr(), 3e-4, r"law='range_test', groups='one', reuse=None"),
        (Control.climb(20, "own", (2, 2)), 3e-4, r"Control\(horizon=20\) and a run of 12 steps"),
        (
            Control.epochwise(),
            lambda left: 3e-4 * left,
            r"learning_rate moved lr of parameter group 0 from",
        ),
    ],
)
def test_stable_baselines3_warns(control: Any, learning_rate: Any, said: str) -> None:
    needs("stable_baselines3", "gymnasium")
    from adaptiverl.integrations.stable_baselines3 import AdaptiveCallback

    with pytest.warns(UserWarning, match=said) as caught:
        small_ppo(control, learning_rate).learn(3 * 64, callback=AdaptiveCallback())
    assert sum("Control(" in str(warning.message) for warning in caught) == 1


def test_stable_baselines3_clips_values_and_is_not_warned_of() -> None:
    needs("stable_baselines3", "gymnasium")
    from adaptiverl.integrations.stable_baselines3 import AdaptiveCallback

    model = small_ppo(Control.climb("auto"), clip_range_vf=0.2)
    model.learn(3 * 64, callback=AdaptiveCallback())
    assert model.policy.optimizer.knobs()["step"] == 12


def test_stable_baselines3_needs_one_of_ours() -> None:
    needs("stable_baselines3", "gymnasium")
    from stable_baselines3 import A2C

    from adaptiverl.integrations.stable_baselines3 import AdaptiveCallback

    model = A2C("MlpPolicy", "CartPole-v1", device="cpu")
    with pytest.raises(TypeError, match=r"expected an AdaptiveAdamW, got RMSprop.*policy_kwargs"):
        model.learn(10, callback=AdaptiveCallback())


@pytest.mark.parametrize(("door", "at"), [("trl_sft", 10), ("trl_grpo", 5)])
def test_trl(run: Any, door: str, at: int) -> None:
    needs("trl", "datasets")
    torch.manual_seed(0)
    whole = run(door)["trainer"]
    steps = whole.args.max_steps
    if door == "trl_sft":
        fell([entry["loss"] for entry in whole.state.log_history if "loss" in entry])
    optimizer = whole.optimizer.optimizer
    assert isinstance(optimizer, AdaptiveAdamW)
    assert optimizer.knobs()["step"] == steps
    logged = [e for e in whole.state.log_history if "adaptive/lr" in e]
    assert len({entry["adaptive/alpha"] for entry in logged}) > 1
    expected, knobs = values(whole.model.parameters()), optimizer.knobs()
    whole.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / f"checkpoint-{at}"))
    assert_same(values(whole.model.parameters()), expected)
    assert whole.optimizer.optimizer.knobs() == pytest.approx(knobs, nan_ok=True)


def test_torchtitan(run: Any) -> None:
    needs("torchtitan")
    names = run("torchtitan")
    fell(names["losses"])
    container, model = names["optimizers"], names["model"]
    (inner,) = container.optimizers
    assert isinstance(inner, AdaptiveAdamW)
    assert inner.knobs()["loss_mean"] > 0
    saved = copy.deepcopy(container.state_dict())
    from torchtitan.components.optimizer import OptimizersContainer, default_adamw

    from task import make_loader

    def train(optimizers: Any, one: Any) -> None:
        for number, batch in enumerate(make_loader()):
            if number == 3:
                break
            optimizers.zero_grad()
            loss = one(**batch).loss
            loss.backward()
            getattr(optimizers, "observe", bool)(loss)
            optimizers.step()

    other = copy.deepcopy(model).eval()
    resumed = type(container)(names["config"], model_parts=[other])
    resumed.load_state_dict(saved)
    train(container, model.eval())
    train(resumed, other)
    assert_same(values(other.parameters()), values(model.parameters()))
    assert resumed.optimizers[0].knobs() == pytest.approx(inner.knobs(), nan_ok=True)
    # An AdamW's checkpoint has no controller: ours starts afresh, with its moments.
    theirs = default_adamw()
    theirs.implementation = "foreach"
    plain = OptimizersContainer(theirs, model_parts=[other])
    train(plain, other)
    resumed.load_state_dict(copy.deepcopy(plain.state_dict()))
    ours, adamws = (
        [optim.state[p]["exp_avg"] for optim in of for p in other.parameters()]
        for of in (resumed, plain)
    )
    assert_same(ours, adamws)
    train(resumed, other)


def test_torchtitan_finds_the_rate() -> None:
    needs("torchtitan")
    from tiny_models import Bigram, Tokens
    from torchtitan.components.optimizer import ParamGroupConfig

    from adaptiverl.integrations.torchtitan import AdaptiveOptimizersContainer

    groups = ParamGroupConfig(
        pattern=".*", optimizer_name="AdaptiveAdamW", optimizer_kwargs={"lr": 1e-3}
    )
    config = AdaptiveOptimizersContainer.Config(
        param_groups=[groups],
        optimizer_factory_kwargs_by_name={"AdaptiveAdamW": {"control": Control.find_lr(160)}},
        implementation="foreach",
    )
    model, batch = Bigram(), Tokens(64)
    optimizers = AdaptiveOptimizersContainer(config, model_parts=[model])
    losses, lrs = [], []
    for step in range(160):
        tokens = batch.tokens[step % 8 :: 8]
        optimizers.zero_grad()
        loss = model(tokens, tokens)["loss"]
        loss.backward()
        optimizers.observe(loss)
        optimizers.step()
        losses.append(loss.item())
        lrs.append(optimizers.optimizers[0].knobs()["lr"])
    top = lrs.index(max(lrs))
    assert 20 < top < 40, "the ramp"
    assert losses[top] < 0.5 * losses[0] < losses[top + 2], "its weights went back"
    assert lrs[-1] == 0
    fell(losses)


def test_deepspeed(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    needs("deepspeed")
    port = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29519"}
    for name, value in {**port, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    import deepspeed

    # Ranks on one machine would share memory by it: compiled at its first use, for minutes.
    monkeypatch.setitem(deepspeed.ops.__compatible_ops__, "deepspeed_shm_comm", False)
    names = run("deepspeed")
    fell(names["losses"])
    optimizer, engine = names["optimizer"], names["engine"]
    assert optimizer.knobs()["step"] == len(names["losses"])
    engine.save_checkpoint(str(tmp_path / "saved"))
    from task import make_loader

    def train() -> list[Any]:
        for number, batch in enumerate(make_loader()):
            if number == 3:
                break
            loss = engine(**batch).loss
            engine.backward(loss)
            optimizer.observe(loss)
            engine.step()
        return values(names["model"].parameters()), optimizer.knobs()  # type: ignore[return-value]

    engine.eval()
    expected, knobs = train()
    engine.load_checkpoint(str(tmp_path / "saved"))
    resumed, again = train()
    assert_same(resumed, expected)
    assert again == pytest.approx(knobs, nan_ok=True)


@pytest.mark.parametrize(
    ("keys", "steps", "saved"),
    [
        ({}, 160, 20),  # on the ramp of find_lr
        *(
            ({"adaptive_optimizer": kind.__name__, "adaptive_control": "climb"}, 12, 6)
            for kind in (AdaptiveAdamW, AdaptiveLion, AdaptiveSGD)
        ),
    ],
    ids=["find_lr", "AdamW", "Lion", "SGD"],
)
def test_axolotl(
    keys: dict[str, str], steps: int, saved: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own hook on a Trainer; `axolotl train` itself needs a GPU's packages."""
    needs("axolotl.integrations.base", "transformers")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from transformers import Trainer, TrainingArguments

    from adaptiverl.integrations.axolotl import AdaptivePlugin
    from task import Counting, make_model

    def trained(resume: bool) -> Any:
        args = TrainingArguments(
            str(tmp_path), max_steps=steps, save_steps=saved, learning_rate=1e-3, use_cpu=True,
            report_to=[], disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(make_model(), args, train_dataset=Counting())
        AdaptivePlugin().post_trainer_create(keys, trainer)
        checkpoint = str(tmp_path / f"checkpoint-{saved}") if resume else None
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer

    whole, resumed = trained(False), trained(True)
    optimizer = whole.optimizer.optimizer
    assert type(optimizer).__name__ == keys.get("adaptive_optimizer", "AdaptiveAdamW")
    control = optimizer.control
    assert (control.law, control.mode) == (
        "alignment" if "adaptive_control" in keys else "range_test",
        "modulate",
    )
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0}
    assert optimizer.param_groups[0]["horizon"] == steps
    assert_same(values(resumed.model.parameters()), values(whole.model.parameters()))
    with pytest.raises(ValueError, match=r"must be one of modulate, find_lr, climb, got 'fast'"):
        AdaptivePlugin().post_trainer_create({"adaptive_control": "fast"}, SimpleNamespace())


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    for door in ("timm", "torchtitan"):
        for name in [door, *(x for x in sys.modules if x.startswith(f"{door}."))]:
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, f"adaptiverl.integrations.{door}", raising=False)
        with pytest.raises(ImportError, match=f"needs {door}.*pip install '{door}>="):
            importlib.import_module(f"adaptiverl.integrations.{door}")
