"""`integrations.accelerate`: a loop as Accelerate's users write it, observed through `backward`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from host_waits import AT_HOME, HostWaits
from tiny_models import Tokens, overflow, tiny_gpt2
from torch.utils.data import DataLoader

import adaptiverl
from adaptiverl import AdaptiveAdamW, Control

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
pytest.importorskip("transformers", reason="transformers, for the model, is not installed")

from adaptiverl.integrations.accelerate import knob_logs, observe_backward  # noqa: E402

QUICK = Control(mode="modulate", every=2, noise_bounds=(0.01, 0.1))
KNOBS = ("adaptive/lr", "adaptive/alpha", "adaptive/momentum", "adaptive/noise")


@pytest.fixture(autouse=True)
def _fresh_accelerate_state() -> Iterator[None]:
    """Accelerate keeps one precision per process; each test chooses its own."""
    yield
    accelerate.state.AcceleratorState._reset_state(True)
    accelerate.state.GradientState._reset_state()


class Prepared(NamedTuple):
    accelerator: Any
    model: Any
    optimizer: Any
    scheduler: Any
    loader: Any


def prepare(
    batch: int = 4,
    scaler: Any = None,
    fused: bool | None = None,
    dropout: float = 0.0,
    **arguments: Any,
) -> Prepared:
    accelerator = accelerate.Accelerator(cpu=True, **arguments)
    # Accelerate makes a scaler only where there is a GPU.
    accelerator.scaler = scaler
    model = tiny_gpt2(dropout)
    optimizer = AdaptiveAdamW(model.parameters(), lr=1e-2, control=QUICK, fused=fused)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, total_iters=10)
    loader = DataLoader(Tokens(24), batch_size=batch)
    prepared = Prepared(accelerator, *accelerator.prepare(model, optimizer, scheduler, loader))
    observe_backward(accelerator, prepared.optimizer)
    return prepared


def train(prepared: Prepared, epochs: int = 1) -> tuple[list[float], list[dict[str, float]]]:
    """The losses of every micro-batch, and the knobs after every step."""
    accelerator, model, optimizer, scheduler, loader = prepared
    losses, knobs = [], []
    for _ in range(epochs):
        for batch in loader:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            losses.append(loss.item())
            if accelerator.sync_gradients:
                knobs.append(optimizer.optimizer.knobs())
    return losses, knobs


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_controller_hears_what_goes_backward(precision: str) -> None:
    losses, knobs = train(prepare(mixed_precision=precision))
    assert [k["loss"] for k in knobs] == losses
    assert len(set(losses)) == 6
    assert knobs[-1]["updates"] == 3


def test_accumulated_micro_batches_are_one_loss() -> None:
    losses, knobs = train(prepare(gradient_accumulation_steps=4))
    # 6 micro-batches: a step of four, and one of the two that are left.
    assert [k["loss"] for k in knobs] == pytest.approx([sum(losses[:4]) / 4, sum(losses[4:]) / 2])


@pytest.mark.parametrize("fused", [None, True])
def test_scaled_losses_are_heard_unscaled_and_skipped_steps_not_at_all(fused: bool | None) -> None:
    prepared = prepare(scaler=torch.amp.GradScaler("cpu"), fused=fused)
    overflow(prepared.model, {1, 2, 4})
    losses, knobs = train(prepared)
    assert [k["step"] for k in knobs] == [1, 1, 1, 2, 2, 3]
    assert [knobs[i]["loss"] for i in (0, 3, 5)] == [losses[i] for i in (0, 3, 5)]
    # Accelerate takes a fused step for done, so its scheduler goes on, as with AdamW(fused=True).
    assert {**knobs[4], "lr": 0} == {**knobs[3], "lr": 0}


def test_a_skipped_step_takes_all_its_micro_batches_along() -> None:
    scaler = torch.amp.GradScaler("cpu")
    prepared = prepare(batch=2, scaler=scaler, gradient_accumulation_steps=2)
    overflow(prepared.model, {2, 5})
    losses, knobs = train(prepared)
    assert [k["step"] for k in knobs] == [1, 1, 1, 2, 3, 4]
    for step in (0, 3, 4, 5):
        expected = (losses[2 * step] + losses[2 * step + 1]) / 2
        assert knobs[step]["loss"] == pytest.approx(expected, rel=1e-7)


def test_knobs_are_in_tensorboard(tmp_path: Path) -> None:
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is not installed",
    )
    prepared = prepare(log_with="tensorboard", project_dir=tmp_path)
    accelerator, model, optimizer, _, loader = prepared
    accelerator.init_trackers("run")
    expected = []
    for step, batch in enumerate(loader):
        loss = model(**batch).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        accelerator.log({"loss": loss.item(), **knob_logs(optimizer)}, step=step)
        knobs = optimizer.optimizer.knobs()
        expected.append([knobs[k] for k in ("lr", "alpha", "momentum", "noise")])
    accelerator.end_training()
    events = accumulators.EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    seen = [[event.value for event in events.Scalars(name)] for name in KNOBS]
    torch.testing.assert_close(torch.tensor(seen), torch.tensor(expected).T)
    assert len({tuple(row) for row in expected}) == 4, "three updates, so four sets of knobs"


def test_save_and_resume_is_exact(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"gradient_accumulation_steps": 2, "dropout": 0.1}
    whole = prepare(**arguments)
    train(whole)
    whole.accelerator.save_state(str(tmp_path))
    torch.rand(3)
    resumed = prepare(**arguments)
    resumed.accelerator.load_state(str(tmp_path))
    losses, knobs = train(resumed)
    resumed_bits = [p.clone() for p in resumed.model.parameters()]
    resumed.accelerator.load_state(str(tmp_path))
    whole.accelerator.load_state(str(tmp_path))
    assert train(whole) == (losses, knobs)
    for ours, theirs in zip(resumed_bits, whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_an_optimizer_that_is_none_of_ours() -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    optimizer = accelerator.prepare(torch.optim.AdamW(tiny_gpt2().parameters()))
    with pytest.raises(
        TypeError, match=r"expected an AdaptiveAdamW, got AcceleratedOptimizer around AdamW"
    ):
        observe_backward(accelerator, optimizer)


def test_epochwise_control_is_told_by_hand() -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    control = Control(every=None)
    optimizer = accelerator.prepare(AdaptiveAdamW(tiny_gpt2().parameters(), control=control))
    with pytest.raises(ValueError, match=r"optimizer\.optimizer\.update\(loss\)"):
        observe_backward(accelerator, optimizer)
    optimizer.optimizer.update(2.0)
    assert optimizer.optimizer.knobs()["updates"] == 1


@pytest.mark.parametrize("early", [True, False], ids=["prepared before", "prepared after"])
@pytest.mark.parametrize("named", ["one cycle", "linear", "endless"])
@pytest.mark.parametrize("horizon", [3, 8])
def test_a_horizon_that_is_not_a_prepared_schedulers(early: bool, named: str, horizon: int) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    accelerator = accelerate.Accelerator(cpu=True)
    control = dataclasses.replace(Control.find_lr(horizon), mode="modulate")
    model = torch.nn.Linear(2, 1)
    optimizer = accelerator.prepare(AdaptiveAdamW(model.parameters(), lr=1e-2, control=control))
    scheduler = {
        "one cycle": lambda: torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=8),
        "linear": lambda: transformers.get_linear_schedule_with_warmup(optimizer, 0, 8),
        "endless": lambda: transformers.get_constant_schedule_with_warmup(optimizer, 0),
    }[named]()
    prepared = accelerator.prepare(scheduler) if early else None
    other = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])
    accelerator.prepare(torch.optim.lr_scheduler.OneCycleLR(other, 1e-2, total_steps=5))
    observe_backward(accelerator, optimizer)
    prepared = prepared or accelerator.prepare(scheduler)
    wrong = horizon == 3 and named != "endless"
    message = (
        r"horizon=3\) and a run of 8 steps \(its prepared scheduler's\): the search.*step 2 at most"
        r"\. Give horizon=8"
    )
    warns = pytest.warns(UserWarning, match=message) if wrong else contextlib.nullcontext()
    with warns:
        accelerator.backward(model(torch.ones(1, 2)).sum())
    optimizer.step()
    prepared.step()
    accelerator.backward(model(torch.ones(1, 2)).sum())  # said once


@pytest.mark.parametrize("control", [Control(), Control(mode="modulate"), Control.frozen()])
def test_a_scheduler_under_the_default_control_is_warned_of_once(control: Control) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    model = torch.nn.Linear(2, 1)
    frozen, tuned = [[p] for p in model.parameters()]
    groups: list[dict[str, Any]] = [{"params": frozen}, {"params": tuned, "lr": torch.tensor(3e-2)}]
    optimizer = accelerator.prepare(AdaptiveAdamW(groups, lr=1e-2, control=control))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda _: 1.0, lambda n: 1 / (n + 1)])
    observe_backward(accelerator, optimizer)
    for step in range(4):
        # The first group's rate stays; the second one's, a tensor, is halved after the first step.
        message = r"a scheduler moved lr of parameter group 1 from 0\.03 to 0\.015"
        warned = step == 1 and control.mode == "replace"
        warns = pytest.warns(UserWarning, match=message) if warned else contextlib.nullcontext()
        with warns:
            accelerator.backward(model(torch.ones(1, 2)).sum())
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


def test_the_wrapper_hides_our_methods() -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    model = torch.nn.Linear(2, 1)
    prepared = accelerator.prepare(AdaptiveAdamW(model.parameters()))
    for name in ("observe", "update", "knobs", "trace"):
        assert not hasattr(prepared, name)
    loss = model(torch.ones(1, 2)).sum()
    accelerator.backward(loss)
    with pytest.raises(TypeError, match="unexpected keyword argument 'loss'"):
        prepared.step(loss=loss)
    prepared.optimizer.observe(loss)
    prepared.step()
    assert prepared.optimizer.knobs()["loss"] == loss.item()


def test_nothing_of_ours_reads_a_value() -> None:
    accelerator, model, optimizer, scheduler, loader = prepare(gradient_accumulation_steps=2)
    with HostWaits(adaptiverl) as waits:
        for batch in loader:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        assert waits.of("adaptiverl").keys() <= AT_HOME
        loss.item()
        assert waits.of("other").total() > 0, "the count works"
