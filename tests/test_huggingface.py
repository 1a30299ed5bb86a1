"""`integrations.huggingface`: what is the Trainer's own; the rest is in test_frameworks.py."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from framework_cases import EPOCHWISE, KNOBS, QUICK, How
from tiny_models import Bigram, Tokens, tiny_gpt2
from training import assert_same

from adaptiverl import AdaptiveAdamW, Control, steer

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

from huggingface_runs import HuggingFace  # noqa: E402

from adaptiverl.integrations.huggingface import AdaptiveCallback  # noqa: E402

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
PLAIN = How(log_every=1)


def test_micro_batches_divided_by_their_tokens_are_one_loss(tmp_path: Path) -> None:
    how = How(model=tiny_gpt2, size=32)
    whole = HuggingFace(tmp_path, how, per_device_train_batch_size=12)
    parts = HuggingFace(tmp_path, how, gradient_accumulation_steps=3)
    whole.train()
    parts.train()
    # 32 sequences: 12, 12, 8; so the third step has two micro-batches of its three.
    assert parts.heard == pytest.approx(whole.heard, rel=1e-5)
    assert max(whole.heard) < 2 * min(whole.heard), "a loss of half the size would not be seen"


def test_the_logged_learning_rate_is_the_one_that_the_step_used(tmp_path: Path) -> None:
    frozen = HuggingFace(tmp_path, How(Control.frozen(), scheduled=True, log_every=1))
    frozen.train()
    scheduled = [1e-2 * (1 - i / 6) for i in range(6)]
    assert frozen.logged("learning_rate") == pytest.approx(scheduled)
    constant = HuggingFace(tmp_path, How(Control(every=2), log_every=1))
    constant.train()
    assert constant.logged("learning_rate") == constant.logged("adaptive/lr")
    assert len(set(constant.logged("learning_rate"))) > 1, "the scheduler's would be one number"
    modulated = HuggingFace(tmp_path, How(scheduled=True, log_every=1))
    modulated.train()
    alphas = modulated.logged("adaptive/alpha")
    used = [lr * alpha for lr, alpha in zip(scheduled, alphas, strict=True)]
    assert modulated.logged("learning_rate") == pytest.approx(used)
    # Logged after the scheduler's step: what the next step uses.
    assert modulated.logged("adaptive/lr") == [knobs["lr"] for knobs in modulated.knobs]
    summary = modulated.trainer.state.log_history[-1]
    assert not KNOBS.keys() & summary.keys(), "the summary of a run has no knobs"


def test_epochwise_control_with_several_data_sets_and_a_reward(tmp_path: Path) -> None:
    control = Control(every=None, reward="given")
    run = HuggingFace(
        tmp_path,
        How(control, callback={"monitor": "eval_b_loss", "reward": "eval_b_accuracy"}),
        eval_strategy="steps",
        eval_steps=2,
        eval_dataset={"a": Tokens(4, seed=1), "b": Tokens(8, seed=2)},
    )
    accuracy = {"accuracy": lambda p: float((p[0][:, :, 0].argmax(-1) == p[1][:, 0]).mean())}
    run.trainer.compute_metrics = lambda p: {name: of(p) for name, of in accuracy.items()}
    run.train()
    trace = run.optimizer.trace()
    assert len(trace["loss"]) == 3
    assert trace["loss"].tolist() == run.logged("eval_b_loss")
    assert trace["reward"].tolist() == run.logged("eval_b_accuracy")


@pytest.mark.parametrize(
    ("control", "option", "named"),
    [(EPOCHWISE, "monitor", {}), (QUICK, "pulse", {"pulse": "eval_loss"})],
)
def test_a_metric_of_none_of_the_data_sets(
    control: Control, option: str, named: dict[str, Any], tmp_path: Path
) -> None:
    data, how = {"a": Tokens(4), "b": Tokens(4)}, How(control, validated=True, callback=named)
    run = HuggingFace(tmp_path, how, eval_dataset=data)
    message = rf"{option}='eval_loss'.*data sets a, b: .*{option}='eval_a_loss'"
    with pytest.raises(ValueError, match=message):
        run.train()


class Reporter(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
    """A reporter: it is asked before the callbacks that come after it."""

    def __init__(self) -> None:
        self.rates: list[tuple[float, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            self.rates.append((logs["learning_rate"], logs["adaptive/lr"]))


@pytest.mark.parametrize("way", ["in the list", "its class in the list", "added later"])
def test_the_callback_finds_its_trainer(tmp_path: Path, way: str) -> None:
    listed: dict[str, list[Any]] = {
        "in the list": [AdaptiveCallback()],
        "its class in the list": [AdaptiveCallback],
    }
    reporter = Reporter()
    run = HuggingFace(tmp_path, PLAIN, callbacks=[reporter, *listed.get(way, [])])
    if way == "added later":
        run.trainer.add_callback(AdaptiveCallback())
    told = HuggingFace(tmp_path, PLAIN)
    run.train()
    told.train()
    assert run.heard == told.heard == run.shown
    assert run.knobs == told.knobs
    assert [lr for _, lr in reporter.rates] == told.logged("adaptive/lr")


def test_an_optimizer_of_your_own(tmp_path: Path) -> None:
    model = Bigram()
    plain = AdaptiveAdamW(model.parameters(), lr=1e-2, control=QUICK)
    run = HuggingFace(
        tmp_path,
        How(model=lambda: model, log_every=1),
        optimizers=(plain, None),
        optimizer_cls_and_kwargs=None,
    )
    run.train()
    assert run.heard == run.shown
    assert run.optimizer is plain


def test_an_optimizer_of_torchs_that_is_steered(tmp_path: Path) -> None:
    def begun(folder: Path) -> HuggingFace:
        model = Bigram()
        optimizer = torch.optim.NAdam(model.parameters(), lr=1e-2)
        steer(optimizer, dataclasses.replace(Control.climb("auto"), mode="modulate"))
        how = How(model=lambda: model, log_every=1, scheduled=True, saves=True, epochs=4, size=16)
        given = {"optimizers": (optimizer, None), "optimizer_cls_and_kwargs": None}
        return HuggingFace(folder, how, **given)

    whole, resumed = begun(tmp_path / "whole"), begun(tmp_path / "resumed")
    whole.train()
    alphas = whole.logged("adaptive/alpha")
    assert len(set(alphas)) > 3
    assert whole.optimizer.param_groups[0]["horizon"] == 16
    resumed.train(tmp_path / "whole" / "checkpoint-4")
    assert resumed.logged("adaptive/alpha") == alphas
    assert_same(list(resumed.model.parameters()), list(whole.model.parameters()))


def test_what_the_arguments_decide_and_what_the_dict(tmp_path: Path) -> None:
    wanted = {"weight_decay": 0.1, "learning_rate": 1.0, "adam_beta2": 0.5, "adam_epsilon": 1.0}
    run = HuggingFace(tmp_path, PLAIN, max_steps=1, **wanted)
    run.train()
    decayed, others = run.trainer.optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    for group in run.trainer.optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (1e-2, (0.9, 0.999), 1e-8)


def test_one_callback_serves_trainers_one_after_another(tmp_path: Path) -> None:
    callback = AdaptiveCallback()
    for _ in range(2):
        run = HuggingFace(tmp_path, PLAIN, callbacks=[callback], max_steps=2)
        for time in (1, 2):
            run.train()
            assert run.knobs[-1]["step"] == 2 * time
            assert run.heard[-1] == run.shown[-1]


def test_a_callback_that_nobody_owns_says_what_to_write(tmp_path: Path) -> None:
    trainer = HuggingFace(tmp_path, PLAIN).trainer
    with pytest.raises(RuntimeError, match=r"add_callback\(AdaptiveCallback\(trainer\)\)"):
        AdaptiveCallback().on_train_begin(trainer.args, trainer.state, trainer.control)
    with pytest.raises(TypeError, match=r"must be a Trainer or None, got 'eval_loss'.*monitor="):
        AdaptiveCallback("eval_loss")  # type: ignore[arg-type]


def test_a_trainer_that_speaks_of_another_run_is_not_taken_for_the_callbacks(
    tmp_path: Path,
) -> None:
    callback = AdaptiveCallback()
    trainer = HuggingFace(tmp_path, PLAIN, callbacks=[callback]).trainer
    trainer.create_optimizer()

    def tell(self: Any, state: Any) -> None:
        callback.on_train_begin(self.args, state, self.control)

    with pytest.raises(RuntimeError, match="found no Trainer that it belongs to"):
        tell(trainer, HuggingFace(tmp_path, PLAIN).trainer.state)
    tell(trainer, trainer.state)


def test_an_optimizer_that_is_none_of_ours(tmp_path: Path) -> None:
    foreign = (torch.optim.AdamW, {"lr": 1e-3})
    run = HuggingFace(tmp_path, PLAIN, optimizer_cls_and_kwargs=foreign)
    with pytest.raises(TypeError, match=r"expected an AdaptiveAdamW.*optimizer_cls_and_kwargs"):
        run.train()
