"""`integrations.huggingface`: a real Trainer on a tiny GPT-2, steered by the callback."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from host_waits import AT_HOME, HostWaits
from tiny_models import Bigram, Tokens, overflow, tiny_gpt2
from torch import Tensor, nn

import adaptiverl
from adaptiverl import AdaptiveAdamW, Control

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")

from adaptiverl.integrations.huggingface import AdaptiveCallback  # noqa: E402

QUICK = Control(every=2, noise_bounds=(0.01, 0.1))
UNDER_SCHEDULE = Control(mode="modulate", every=2, noise_bounds=(0.01, 0.1))
EPOCHWISE = Control(every=None, beta_loss=0.3, beta_reward=0.3, beta_variance=0.3)
KNOBS = {"adaptive/lr", "adaptive/alpha", "adaptive/momentum", "adaptive/noise"}


@pytest.fixture(autouse=True)
def _fresh_accelerate_state() -> Iterator[None]:
    """Accelerate keeps one precision per process; each test chooses its own."""
    yield
    accelerate.state.AcceleratorState._reset_state(True)
    accelerate.state.GradientState._reset_state()


class Heard(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
    """What the optimizer knows after each step."""

    def __init__(self) -> None:
        self.knobs: list[dict[str, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.knobs.append(kwargs["optimizer"].optimizer.knobs())


NAMED: dict[str, Any] = {}
"""The callback is told its trainer, and nothing else."""


def make_trainer(
    folder: Path,
    model: nn.Module | None = None,
    *,
    control: Control = QUICK,
    optimizer: dict[str, Any] | None = None,
    callback: dict[str, Any] | None = NAMED,
    callbacks: Any = None,
    optimizers: Any = None,
    eval_dataset: Any = None,
    **arguments: Any,
) -> Any:
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "per_device_train_batch_size": 4,
        "max_steps": 6,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "lr_scheduler_type": "constant",
        "dataloader_pin_memory": False,
        "max_grad_norm": 0.0,
    }
    given: dict[str, Any] = {"optimizers": optimizers}
    if optimizers is None:
        keywords = {"lr": 1e-2, "control": control, **(optimizer or {})}
        given = {"optimizer_cls_and_kwargs": (AdaptiveAdamW, keywords)}
    trainer = transformers.Trainer(
        tiny_gpt2() if model is None else model,
        transformers.TrainingArguments(**(defaults | arguments)),
        train_dataset=Tokens(32),
        eval_dataset=eval_dataset,
        callbacks=callbacks,
        **given,
    )
    if callback is not None:
        trainer.add_callback(AdaptiveCallback(trainer, **callback))
    return trainer


def heard_losses(trainer: Any) -> list[float]:
    heard = Heard()
    trainer.add_callback(heard)
    trainer.train()
    return [knobs["loss"] for knobs in heard.knobs]


def logged(trainer: Any, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def knobs_of(trainer: Any) -> dict[str, float]:
    knobs: dict[str, float] = trainer.optimizer.optimizer.knobs()
    return knobs


def test_the_controller_hears_the_loss_that_the_trainer_logs(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    heard = heard_losses(trainer)
    assert heard == logged(trainer, "loss")
    assert len(set(heard)) == 6
    assert knobs_of(trainer)["updates"] == 3


@pytest.mark.parametrize("model", [tiny_gpt2, Bigram], ids=["divided by tokens", "divided by k"])
def test_accumulated_micro_batches_are_one_loss(
    tmp_path: Path, model: Callable[[], nn.Module]
) -> None:
    whole = heard_losses(make_trainer(tmp_path, model(), per_device_train_batch_size=12))
    parts = heard_losses(
        make_trainer(
            tmp_path, model(), per_device_train_batch_size=4, gradient_accumulation_steps=3
        )
    )
    # 32 sequences: 12, 12, 8; so every third step has two micro-batches of its three.
    assert parts == pytest.approx(whole, rel=1e-5)
    assert max(whole) < 2 * min(whole), "a loss of half the size would not be noticed otherwise"


def test_bfloat16(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, bf16=True)
    heard = heard_losses(trainer)
    assert heard == logged(trainer, "loss")
    assert heard != heard_losses(make_trainer(tmp_path)), "autocast was off"


class Watched(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
    """Watches from the first step to the last: preparing an optimizer may look at it."""

    def __init__(self, waits: HostWaits) -> None:
        self.waits = waits

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.waits.__enter__()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.waits.__exit__(None, None, None)


@pytest.mark.parametrize("fused", [None, True])
def test_scaled_losses_are_heard_unscaled_and_skipped_steps_not_at_all(
    tmp_path: Path, fused: bool | None
) -> None:
    model = tiny_gpt2()
    overflow(model, {0, 1, 4})
    trainer = make_trainer(tmp_path, model, max_steps=8, optimizer={"fused": fused})
    # By itself the Trainer takes a scaler only where there is a GPU.
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    heard = Heard()
    trainer.add_callback(heard)
    trainer.train()
    losses = logged(trainer, "loss")
    assert len(set(losses)) == 8, "a loss that was heard at the wrong step would be seen"
    assert [knobs["step"] for knobs in heard.knobs] == [0, 0, 1, 2, 2, 3, 4, 5]
    for step in (2, 3, 5, 6, 7):
        assert heard.knobs[step]["loss"] == losses[step]
    assert heard.knobs[4] == heard.knobs[3]


class NanOnce(Bigram):
    """Its third loss is NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        outputs = super().forward(input_ids, labels)
        self.calls += 1
        if self.calls == 3:
            outputs["loss"] = outputs["loss"] * torch.nan
        return outputs


def test_a_nan_is_heard_though_the_trainer_filters_it_from_its_log(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, NanOnce(), max_steps=4)
    heard = Heard()
    trainer.add_callback(heard)
    trainer.train()
    assert not any(loss != loss for loss in logged(trainer, "loss"))
    assert [knobs["nonfinite"] for knobs in heard.knobs] == [0, 0, 1, 2]
    # At the next update the rate goes down by the full reflex (method.md#non-finite).
    assert heard.knobs[3]["alpha"] < heard.knobs[1]["alpha"]


def test_knobs_are_in_its_log_and_in_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = make_trainer(
        tmp_path,
        report_to=["tensorboard"],
        logging_steps=2,
        lr_scheduler_type="linear",
        control=UNDER_SCHEDULE,
    )
    heard = Heard()
    trainer.add_callback(heard)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in entries] == [2, 4, 6]
    for entry in entries:
        knobs = heard.knobs[int(entry["step"]) - 1]
        assert entry["adaptive/alpha"] == knobs["alpha"] != 1.0
        assert entry["adaptive/momentum"] == knobs["momentum"]
        assert entry["adaptive/noise"] == knobs["noise"] >= 0.01
        # Logged after the scheduler's step: what the next step uses.
        assert entry["adaptive/lr"] == knobs["lr"]
        # The Trainer's own name is for the step that was taken: 6 steps, linearly to 0.
        scheduled = 1e-2 * (1 - (entry["step"] - 1) / 6)
        assert entry["learning_rate"] == pytest.approx(scheduled * knobs["alpha"])
    assert not KNOBS & trainer.state.log_history[-1].keys(), "the summary of a run has no knobs"
    seen = scalars(tmp_path / "events")
    for name in KNOBS:
        assert [step for step, _ in seen[f"train/{name}"]] == [2, 4, 6]
        values = [value for _, value in seen[f"train/{name}"]]
        assert values == pytest.approx([entry[name] for entry in entries], rel=1e-6)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's scalars by tag."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is not installed",
    )
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def test_save_and_resume_is_exact(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {
        "control": UNDER_SCHEDULE,
        "max_steps": 9,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "save_strategy": "steps",
        "save_steps": 5,
        "lr_scheduler_type": "cosine",
        "max_grad_norm": 1.0,
    }
    whole = make_trainer(tmp_path / "whole", tiny_gpt2(dropout=0.1), **arguments)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", tiny_gpt2(dropout=0.1), **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-5"))
    assert logged(resumed, "step")[-1] == 9
    assert_same_training(whole, resumed)
    # The checkpoint was in mid-run, and the rest of the run moved the knobs.
    saved = torch.load(tmp_path / "whole/checkpoint-5/optimizer.pt", weights_only=True)
    memory = whole.optimizer.state_dict()["param_groups"][0]["adaptive_state"]
    assert not torch.equal(saved["param_groups"][0]["adaptive_state"], memory)


def assert_same_training(whole: Any, resumed: Any) -> None:
    torch.testing.assert_close(
        dict(resumed.model.state_dict()), dict(whole.model.state_dict()), rtol=0, atol=0
    )
    assert knobs_of(resumed) == knobs_of(whole)
    ours, theirs = (trainer.optimizer.state_dict()["state"] for trainer in (resumed, whole))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_epochwise_control_moves_the_knobs_after_each_evaluation(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        control=EPOCHWISE,
        eval_strategy="steps",
        eval_steps=2,
        eval_dataset=Tokens(8, seed=1),
        max_steps=8,
    )
    trainer.train()
    trace = trainer.optimizer.optimizer.trace()
    assert trace["loss"].tolist() == logged(trainer, "eval_loss")
    assert len(set(trace["lr"].tolist())) > 2
    moved = trace["lr"][-1].item()
    trainer.evaluate()
    assert knobs_of(trainer)["alpha"] == moved, "an evaluation outside of training is none of ours"


def test_epochwise_control_resumes_exactly(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {
        "control": EPOCHWISE,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "eval_dataset": Tokens(8, seed=1),
        "save_strategy": "steps",
        "save_steps": 4,
        "max_steps": 8,
    }
    whole = make_trainer(tmp_path / "whole", **arguments)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-4"))
    assert knobs_of(whole)["updates"] == 4
    assert_same_training(whole, resumed)


def test_epochwise_control_with_several_data_sets_and_a_reward(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        control=Control(every=None, reward="given"),
        callback={"monitor": "eval_b_loss", "reward": "eval_b_accuracy"},
        eval_strategy="steps",
        eval_steps=2,
        eval_dataset={"a": Tokens(4, seed=1), "b": Tokens(8, seed=2)},
        max_steps=4,
    )
    trainer.compute_metrics = lambda p: {"accuracy": float((p[0].argmax(-1) == p[1]).mean())}
    trainer.train()
    trace = trainer.optimizer.optimizer.trace()
    assert trace["loss"].tolist() == logged(trainer, "eval_b_loss")
    assert trace["reward"].tolist() == logged(trainer, "eval_b_accuracy")


def test_a_metric_that_is_not_there(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        control=EPOCHWISE,
        callback={"monitor": "val_loss"},
        eval_strategy="steps",
        eval_steps=1,
        eval_dataset=Tokens(4),
    )
    with pytest.raises(ValueError, match=r"'val_loss' after each evaluation.*'eval_loss'"):
        trainer.train()


def test_a_metric_of_none_of_the_data_sets(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        control=EPOCHWISE,
        eval_strategy="steps",
        eval_steps=1,
        eval_dataset={"a": Tokens(4), "b": Tokens(4)},
    )
    with pytest.raises(ValueError, match=r"'eval_loss'.*data sets a, b: .*monitor='eval_a_loss'"):
        trainer.train()


def said(run: Callable[[], object]) -> str:
    """The one warning of a run."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    (warning,) = caught
    assert warning.category is UserWarning
    return str(warning.message)


Misuse = tuple[dict[str, Any], str]
MISUSES: dict[str, Misuse] = {
    "a reward under step-wise control": (
        {"callback": {"reward": "eval_accuracy"}},
        r"reward='eval_accuracy'\) is ignored.*every=2.*Leave it out",
    ),
    "a monitor under step-wise control, even the default one": (
        {"callback": {"monitor": "eval_loss"}},
        r"monitor='eval_loss'\) is ignored.*every=2.*Leave it out",
    ),
    "no metric for the reward": (
        {
            "control": Control(every=None, reward="given"),
            "eval_strategy": "steps",
            "eval_steps": 1,
            "eval_dataset": Tokens(4),
        },
        r"names no metric for the reward.*AdaptiveCallback\(reward=",
    ),
    "the Trainer's default schedule under the default control": (
        {"lr_scheduler_type": "linear"},
        r"'linear'\) moved lr of parameter group 0 from 0\.01 to 0\.00666667.*"
        r"Control\(mode='modulate'\).*lr_scheduler_type='constant'",
    ),
    "a warm-up": (
        {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2},
        r"'constant_with_warmup'\) moved lr of parameter group 0 from 0 to 0\.005",
    ),
    "a horizon that is too short": (
        {"control": Control.find_lr(horizon=2)},
        r"horizon=2\) and a run of 3 steps.*the last 1 steps train nothing.*horizon=3",
    ),
    "a horizon that is too long": (
        {"control": Control.find_lr(horizon=10)},
        r"horizon=10\) and a run of 3 steps \(TrainerState\.max_steps\).*ends 7 steps before",
    ),
    "epoch-wise control without evaluations": (
        {"control": EPOCHWISE},
        "makes none: give TrainingArguments an eval_strategy",
    ),
    "epoch-wise control that is asked for another metric's data set": (
        {
            "control": EPOCHWISE,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "eval_dataset": {"a": Tokens(4)},
            "callback": {"monitor": "eval_a_lost"},
        },
        "this run of 3 steps had none, so the knobs never moved",
    ),
    "epoch-wise control and a run that ends before the first evaluation": (
        {
            "control": EPOCHWISE,
            "eval_strategy": "steps",
            "eval_steps": 5,
            "eval_dataset": Tokens(4),
        },
        "the first came after the last of 3 steps, too late for any of them: give TrainingArg",
    ),
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_what_goes_wrong_silently_is_warned_of_once(tmp_path: Path, misuse: str) -> None:
    arguments, message = MISUSES[misuse]
    trainer = make_trainer(tmp_path, Bigram(), max_steps=3, **arguments)
    assert re.search(message, said(trainer.train))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"lr_scheduler_type": "linear", "control": UNDER_SCHEDULE},
        {"lr_scheduler_type": "linear", "control": Control.frozen()},
        {"control": Control.find_lr(horizon=3)},
        {"control": Control.find_lr()},
        {
            "control": EPOCHWISE,
            "eval_strategy": "epoch",
            "num_train_epochs": 2,
            "max_steps": -1,
            "eval_dataset": Tokens(4),
            "callback": {"monitor": "eval_loss"},
        },
    ],
    ids=str,
)
def test_an_ordinary_run_is_not_warned_of(tmp_path: Path, arguments: dict[str, Any]) -> None:
    make_trainer(tmp_path, Bigram(), **({"max_steps": 3} | arguments)).train()


def test_a_reward_that_the_control_does_not_take_is_refused_before_training(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        Bigram(),
        control=EPOCHWISE,
        callback={"reward": "eval_accuracy"},
        eval_strategy="epoch",
        eval_dataset=Tokens(4),
    )
    with pytest.raises(ValueError, match=r"is for Control\(reward='given'\).*'neg_loss'"):
        trainer.train()


def test_the_logged_learning_rate_is_the_one_that_the_step_used(tmp_path: Path) -> None:
    plain = make_trainer(tmp_path, Bigram(), control=Control.frozen(), lr_scheduler_type="linear")
    plain.train()
    assert logged(plain, "learning_rate") == pytest.approx([1e-2 * (1 - i / 6) for i in range(6)])
    ours = make_trainer(tmp_path, Bigram())
    ours.train()
    assert logged(ours, "learning_rate") == logged(ours, "adaptive/lr")
    assert len(set(logged(ours, "learning_rate"))) > 1, "the scheduler's would be one number"


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
    trainer = make_trainer(
        tmp_path, Bigram(), callback=None, callbacks=[reporter, *listed.get(way, [])]
    )
    if way == "added later":
        trainer.add_callback(AdaptiveCallback())
    told = make_trainer(tmp_path, Bigram())
    assert heard_losses(trainer) == heard_losses(told) == logged(trainer, "loss")
    assert knobs_of(trainer) == knobs_of(told)
    assert [lr for _, lr in reporter.rates] == logged(told, "adaptive/lr")


def test_an_optimizer_of_your_own(tmp_path: Path) -> None:
    model = Bigram()
    plain = AdaptiveAdamW(model.parameters(), lr=1e-2, control=QUICK)
    told = make_trainer(tmp_path, model, optimizers=(plain, None))
    assert heard_losses(told) == logged(told, "loss")
    assert knobs_of(told) == plain.knobs()


def test_what_the_arguments_decide_and_what_the_dict(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, weight_decay=0.1, learning_rate=1.0, adam_beta2=0.5, adam_epsilon=1.0, max_steps=1
    )
    trainer.train()
    decayed, others = trainer.optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    for group in trainer.optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (1e-2, (0.9, 0.999), 1e-8)


def test_one_callback_serves_trainers_one_after_another(tmp_path: Path) -> None:
    callback = AdaptiveCallback()
    for _ in range(2):
        trainer = make_trainer(tmp_path, Bigram(), callback=None, callbacks=[callback], max_steps=2)
        for run in (1, 2):
            trainer.train()
            assert knobs_of(trainer)["step"] == 2 * run
            assert knobs_of(trainer)["loss"] == logged(trainer, "loss")[-1]


def test_a_callback_that_nobody_owns_says_what_to_write(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, Bigram())
    with pytest.raises(RuntimeError, match=r"add_callback\(AdaptiveCallback\(trainer\)\)"):
        AdaptiveCallback().on_train_begin(trainer.args, trainer.state, trainer.control)


def test_a_metrics_name_in_the_trainers_place() -> None:
    with pytest.raises(TypeError, match=r"must be a Trainer or None, got 'eval_loss'.*monitor="):
        AdaptiveCallback("eval_loss")  # type: ignore[arg-type]


def test_an_optimizer_that_is_none_of_ours(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.optimizer_cls_and_kwargs = (torch.optim.AdamW, {"lr": 1e-3})
    with pytest.raises(TypeError, match=r"expected an AdaptiveAdamW.*optimizer_cls_and_kwargs"):
        trainer.train()


def test_nothing_of_ours_reads_a_value_between_logs(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, max_steps=8, logging_steps=4, gradient_accumulation_steps=2, max_grad_norm=1.0
    )
    waits = HostWaits(adaptiverl, transformers, accelerate)
    trainer.add_callback(Watched(waits))
    trainer.train()
    assert waits.of("adaptiverl").keys() <= AT_HOME
    # The Trainer's own NaN filter reads twice in each of the 16 micro-batches: the count works.
    assert waits.of("transformers").total() >= 16
