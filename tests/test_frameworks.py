"""Hugging Face's Trainer, Accelerate and Lightning: the same run in each is steered alike."""

from __future__ import annotations

import importlib
import math
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from framework_cases import EPOCHWISE, KNOBS, QUICK, How, said, scalars
from host_waits import AT_HOME, HostWaits
from tiny_models import Bigram, NanOnce, Tokens
from training import assert_same

import adaptiverl
from adaptiverl import Control
from adaptiverl.terms import Horizon

pytestmark = [
    pytest.mark.usefixtures("fresh_accelerate"),
    # Lightning's own use of a name in torch that is on its way out.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning"),
    # Advice about speed: the data are a few numbers in memory.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # A run goes on in another folder than the one that it began in.
    pytest.mark.filterwarnings("ignore:The dirpath has changed from"),
]
TRAINERS = ["huggingface", "lightning"]
every_framework = pytest.mark.parametrize("framework", [*TRAINERS, "accelerate"])
every_trainer = pytest.mark.parametrize("framework", TRAINERS)


def runs_of(framework: str) -> Any:
    return importlib.import_module(f"{framework}_runs")


def trained(framework: str, folder: Path, **how: Any) -> Any:
    run = runs_of(framework).make(folder, How(**how))
    run.train()
    return run


# --- what the controller hears --------------------------------------------------------------------


@every_framework
@pytest.mark.parametrize("bf16", [False, True])
def test_the_controller_hears_what_goes_backward(
    framework: str, bf16: bool, tmp_path: Path
) -> None:
    run = runs_of(framework).make(tmp_path, How(bf16=bf16, log_every=1))
    types: set[torch.dtype] = set()
    run.model.head.register_forward_hook(lambda *seen: types.add(seen[2].dtype))
    run.train()
    assert types == {torch.bfloat16 if bf16 else torch.float32}
    assert run.heard == run.losses
    assert len(set(run.heard)) == 6
    assert run.knobs[-1]["updates"] == 3
    assert run.shown in ([], run.losses), "the framework logs another loss"


@every_framework
def test_accumulated_micro_batches_are_one_loss(framework: str, tmp_path: Path) -> None:
    run = trained(framework, tmp_path, accumulate=4)
    # 6 micro-batches: a step of four, and one of the two that are left.
    expected = [sum(run.losses[:4]) / 4, sum(run.losses[4:]) / 2]
    assert run.heard == pytest.approx(expected, rel=1e-6)
    assert run.knobs[-1]["step"] == 2


@every_framework
@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_scaled_losses_are_heard_unscaled_and_skipped_steps_not_at_all(
    framework: str, fused: bool | None, accumulate: int, tmp_path: Path
) -> None:
    overflows = {0, 1, 4}
    run = trained(
        framework,
        tmp_path,
        size=32,
        scaler=True,
        overflows=overflows,
        optimizer={"fused": fused},
        accumulate=accumulate,
    )
    losses = torch.tensor(run.losses, dtype=torch.float64).view(-1, accumulate).mean(1).tolist()
    assert len(set(losses)) == len(losses), "a loss heard at the wrong step would not be seen"
    assert len(run.knobs) == len(losses)
    done = 0
    for step, (loss, knobs) in enumerate(zip(losses, run.knobs, strict=True)):
        skipped = overflows & {step * accumulate + i for i in range(accumulate)}
        done += not skipped
        assert knobs["step"] == done
        if not skipped:
            assert knobs["loss"] == pytest.approx(loss, rel=1e-6)
        elif done:
            # Accelerate takes a fused step for done, so a scheduler goes on, as with AdamW.
            assert {**knobs, "lr": 0} == {**run.knobs[step - 1], "lr": 0}


@every_framework
def test_a_nan_is_heard_even_if_the_log_filters_it(framework: str, tmp_path: Path) -> None:
    run = trained(framework, tmp_path, model=NanOnce, size=16, log_every=1)
    assert [knobs["nonfinite"] for knobs in run.knobs] == [0, 0, 1, 2]
    assert not any(map(math.isnan, run.shown))
    # At the next update the rate goes down by the full reflex (method.md#non-finite).
    assert run.knobs[3]["alpha"] < run.knobs[1]["alpha"]


# --- logs, checkpoints, waits ---------------------------------------------------------------------


@every_framework
def test_knobs_are_in_tensorboard(
    framework: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    run = trained(framework, tmp_path, events=True, scheduled=True)
    runs, seen = runs_of(framework), scalars(tmp_path / "events")
    logged = run.knobs[1::2]
    for name, knob in KNOBS.items():
        steps, values = zip(*seen[runs.TAG + name], strict=True)
        assert list(steps) == [runs.FIRST_LOG + i for i in (0, 2, 4)]
        assert values == pytest.approx([knobs[knob] for knobs in logged], rel=1e-6)
    assert len({knobs["alpha"] for knobs in logged}) == 3
    assert all(knobs["noise"] >= 0.01 for knobs in logged)


@pytest.mark.parametrize(
    ("framework", "control"),
    [
        *((framework, QUICK) for framework in [*TRAINERS, "accelerate"]),
        *((framework, EPOCHWISE) for framework in TRAINERS),
    ],
)
def test_save_and_resume_is_exact(framework: str, control: Control, tmp_path: Path) -> None:
    how = How(
        control,
        model=lambda: Bigram(dropout=0.1),
        epochs=3,
        accumulate=2,
        clip=1.0,
        scheduled=True,
        validated=control is EPOCHWISE,
        saves=True,
    )
    runs = runs_of(framework)
    whole = runs.make(tmp_path / "whole", how)
    whole.train()
    resumed = runs.make(tmp_path / "resumed", how)
    resumed.train(tmp_path / "whole" / runs.SAVED)
    assert len(whole.losses) == 18
    assert resumed.losses == whole.losses[6:]
    assert resumed.knobs == whole.knobs[3:]
    assert_same(list(resumed.model.parameters()), list(whole.model.parameters()))
    assert_same(resumed.optimizer.state_dict(), whole.optimizer.state_dict())
    assert whole.knobs[2]["alpha"] != whole.knobs[-1]["alpha"], "the knobs moved after the save"


@every_framework
@pytest.mark.parametrize(
    "how", [{"clip": 1.0}, {"scaler": True, "optimizer": {"fused": True}}], ids=str
)
def test_nothing_of_ours_reads_a_value_between_logs(
    framework: str, how: dict[str, Any], tmp_path: Path
) -> None:
    waits = HostWaits(adaptiverl)
    trained(framework, tmp_path, waits=waits, scheduled=True, accumulate=2, log_every=100, **how)
    assert waits.of("adaptiverl").keys() <= AT_HOME
    assert waits.of("other").total() > 0, "the count works"


@every_trainer
def test_an_automatic_horizon_is_the_runs_number_of_steps(framework: str, tmp_path: Path) -> None:
    how: dict[str, Any] = {"epochs": 2, "accumulate": 2, "saves": True}  # 6 steps
    told = trained(framework, tmp_path / "told", control=Control.climb(6), **how)
    auto = trained(framework, tmp_path / "auto", control=Control.climb("auto"), **how)
    assert auto.knobs == told.knobs
    assert auto.knobs[3]["held"] == 1, "a run without a horizon would still look for the rate"
    assert auto.knobs[0]["held"] == 0
    resumed = runs_of(framework).make(tmp_path / "again", How(Control.climb("auto"), **how))
    resumed.train(tmp_path / "auto" / runs_of(framework).SAVED)
    assert resumed.knobs == told.knobs[3:]


@every_framework
def test_find_lr_searches_goes_back_and_trains(framework: str, tmp_path: Path) -> None:
    """Saved on its ramp and resumed, to the bit; no rate is given."""
    horizon: Horizon = 160 if framework == "accelerate" else "auto"
    how = How(Control.find_lr(horizon), size=128, epochs=5, saves=True, optimizer={"lr": None})
    runs = runs_of(framework)
    whole, resumed = (runs.make(tmp_path / name, how) for name in ("whole", "resumed"))
    whole.train()
    lrs, held = ([knobs[name] for knobs in whole.knobs] for name in ("lr", "held"))
    assert len(lrs) == 160
    top = lrs.index(max(lrs))
    assert 32 < top < 40, "the ramp, and no save after it"
    assert held[:top] == [0] * top
    back = next(step for step in range(top, 160) if held[step])
    assert back <= top + 2
    before, after = whole.losses[back], whole.losses[back + 1]
    assert before < 0.1 * whole.losses[0]
    assert after == pytest.approx(whole.losses[0], rel=0.1), (
        "of another batch: the weights went back"
    )
    assert lrs[-1] == 0
    assert statistics.mean(whole.losses[-20:]) < 0.5 * whole.losses[0]
    resumed.train(tmp_path / "whole" / runs.SAVED.replace("3", "32"))
    assert resumed.knobs == whole.knobs[32:]
    assert_same(list(resumed.model.parameters()), list(whole.model.parameters()))


# --- control by evaluations -----------------------------------------------------------------------


@every_trainer
def test_epochwise_control_moves_the_knobs_after_each_evaluation(
    framework: str, tmp_path: Path
) -> None:
    run = trained(framework, tmp_path, control=EPOCHWISE, validated=True, epochs=4)
    trace = run.optimizer.trace()
    assert trace["loss"].tolist() == run.evaluations
    assert len(run.evaluations) == 4
    assert len(set(trace["lr"].tolist())) > 2
    run.evaluate()
    assert run.optimizer.knobs()["updates"] == 4, "an evaluation outside of training is not ours"


@every_trainer
def test_epochwise_control_with_a_reward(framework: str, tmp_path: Path) -> None:
    control = Control(mode="modulate", every=None, reward="given")
    reward = {"huggingface": "eval_loss", "lightning": "val_accuracy"}[framework]
    how = {"control": control, "validated": True, "epochs": 2, "callback": {"reward": reward}}
    run = trained(framework, tmp_path, **how)
    expected = run.evaluations if framework == "huggingface" else [0.25, 0.25]
    assert run.optimizer.trace()["reward"].tolist() == expected


@every_trainer
def test_evaluations_are_pulses(framework: str, tmp_path: Path) -> None:
    metric = {"huggingface": "eval_loss", "lightning": "val_loss"}[framework]
    run = trained(framework, tmp_path, validated=True, epochs=4, callback={"pulse": metric})
    knobs = run.optimizer.knobs()
    assert (knobs["pulses"], knobs["pulse"]) == (4, run.evaluations[-1])
    assert len(run.evaluations) == 4
    run.evaluate()
    assert run.optimizer.knobs()["pulses"] == 4, "an evaluation outside of training is not ours"
    silent = trained(framework, tmp_path, validated=True, epochs=4)
    assert "pulses" not in silent.optimizer.knobs()
    assert silent.knobs[-1]["lr"] == run.knobs[-1]["lr"], "it got better, so nothing moved"


@every_trainer
@pytest.mark.parametrize(
    ("control", "metric", "message"),
    [
        (Control.frozen(), None, r"AdaptiveCallback\(pulse='\w+'\) lowers.*all its gains are 0"),
        (EPOCHWISE, None, r"Control\(every=None\) the knobs are told evaluations alone"),
        (
            QUICK,
            "x_loss",
            r"'x_loss' after each evaluation, with pulse='x_loss'.*'(eval|val)_loss'",
        ),
    ],
)
def test_pulses_that_can_come_to_nothing(
    framework: str, control: Control, metric: str | None, message: str, tmp_path: Path
) -> None:
    name = metric or {"huggingface": "eval_loss", "lightning": "val_loss"}[framework]
    with pytest.raises(ValueError, match=message):
        trained(framework, tmp_path, control=control, validated=True, callback={"pulse": name})


# --- what is refused, and what is warned of -------------------------------------------------------


@every_trainer
@pytest.mark.parametrize("option", ["monitor", "reward", "pulse"])
def test_a_name_that_is_none_is_refused_before_training(framework: str, option: str) -> None:
    callback = importlib.import_module(f"adaptiverl.integrations.{framework}").AdaptiveCallback
    with pytest.raises(TypeError, match=rf"{option} must be the name of a metric .*got True of"):
        callback(**{option: True})


GIVEN = Control(mode="modulate", every=None, reward="given")
STEPS = r"Trainer(State\.max_steps|\.estimated_stepping_batches)"
MISUSES: dict[str, tuple[dict[str, Any], str]] = {
    "a pulse without evaluations": (
        {"callback": {"pulse": "val_loss"}},
        r"pulse='val_loss'\) looks at evaluations, and this trainer makes none.*or leave pulse out",
    ),
    "a reward and a monitor under step-wise control": (
        {"callback": {"reward": "accuracy", "monitor": "val_loss"}},
        r"monitor='val_loss', reward='accuracy'\) is ignored.*every=2.*Leave it out",
    ),
    "a monitor under step-wise control, even a default one": (
        {"callback": {"monitor": "eval_loss"}},
        r"\(monitor='eval_loss'\) is ignored.*every=2.*Leave it out",
    ),
    "no metric for the reward": (
        {"control": GIVEN, "validated": True, "epochs": 2},
        r"names no metric for the reward.*AdaptiveCallback\(reward=",
    ),
    "a schedule under the default control": (
        {"control": Control(), "scheduled": True},
        r"the scheduler (LinearLR|\(lr_scheduler_type='linear'\)) moved lr of parameter group 0 "
        r"from 0\.01 to 0\.0(095|0833333), .*Control\(mode='modulate'\).*, or "
        r"(return none from configure_optimizers|lr_scheduler_type='constant')",
    ),
    "a horizon that is too short": (
        {"control": Control.climb(horizon=4)},
        rf"horizon=4\) and a run of 6 steps \({STEPS}\): the last 2 steps train nothing\. "
        "Give horizon=6",
    ),
    "a horizon that is too long, micro-batches being counted": (
        {"control": Control.climb(horizon=6), "accumulate": 2},
        rf"horizon=6\) and a run of 3 steps \({STEPS}\): it ends 3 steps before",
    ),
    "a horizon that is not the run's, under a law that has no cooldown": (
        {"control": Control.distilled(horizon=4)},
        rf"horizon=4\) and a run of 6 steps \({STEPS}\): that law moves the knobs as if the run "
        r"ended at step 4\. Give horizon=6",
    ),
    "epoch-wise control without evaluations": (
        {"control": EPOCHWISE},
        "makes none: give (TrainingArguments an eval_strategy|it a validation_step)",
    ),
    "epoch-wise control and one epoch": (
        {"control": EPOCHWISE, "validated": True},
        "the first came after the last of 6 steps, too late for any of them: give",
    ),
}
OF_ONE: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    (
        "huggingface",
        {"control": Control()},
        {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2},
        r"'constant_with_warmup'\) moved lr of parameter group 0 from 0 to 0\.005",
    ),
    (
        "huggingface",
        {"control": EPOCHWISE, "validated": True, "callback": {"monitor": "eval_a_lost"}},
        {"eval_dataset": {"a": Tokens(4)}},
        "this run of 6 steps had none, so the knobs never moved",
    ),
    (
        "lightning",
        {"control": EPOCHWISE, "validated": True, "epochs": 2},
        {"check_val_every_n_epoch": 3},
        "this run of 12 steps had none, so the knobs never moved",
    ),
]


@pytest.mark.parametrize(
    ("framework", "how", "native", "message"),
    [
        *(
            pytest.param(framework, how, {}, message, id=f"{framework}: {name}")
            for framework in TRAINERS
            for name, (how, message) in MISUSES.items()
        ),
        *OF_ONE,
    ],
)
def test_what_goes_wrong_silently_is_warned_of_once(
    framework: str, how: dict[str, Any], native: dict[str, Any], message: str, tmp_path: Path
) -> None:
    run = runs_of(framework).make(tmp_path, How(**how), **native)
    (warning,) = said(run.train)
    assert re.search(message, warning), warning


@every_trainer
@pytest.mark.parametrize(
    "how",
    [
        {"control": Control()},
        {"scheduled": True},
        {"control": Control.frozen(), "scheduled": True},
        {"control": Control.climb(horizon=6)},
        {"control": Control.climb()},
        {"control": EPOCHWISE, "validated": True, "epochs": 2},
    ],
    ids=["default", "schedule", "frozen", "horizon", "no horizon", "epoch-wise"],
)
def test_an_ordinary_run_is_not_warned_of(
    framework: str, how: dict[str, Any], tmp_path: Path
) -> None:
    assert said(runs_of(framework).make(tmp_path, How(**how)).train) == []


@every_trainer
def test_metrics_that_are_not_there_or_not_taken(framework: str, tmp_path: Path) -> None:
    epochwise: dict[str, Any] = {"control": EPOCHWISE, "validated": True}
    with pytest.raises(ValueError, match=r"'x_loss' after each evaluation.*'(eval|val)_loss'"):
        trained(framework, tmp_path, **epochwise, callback={"monitor": "x_loss"})
    run = runs_of(framework).make(tmp_path, How(**epochwise, callback={"reward": "accuracy"}))
    with pytest.raises(ValueError, match=r"is for Control\(reward='given'\).*'neg_loss'"):
        run.train()
    assert run.losses == [], "training began"
