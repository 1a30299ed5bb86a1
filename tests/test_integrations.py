"""What the integrations share, and what they say where their framework is missing."""

from __future__ import annotations

import contextlib
import importlib
import subprocess
import sys

import pytest
import torch

from adaptiverl import AdaptiveAdamW, Control
from adaptiverl.integrations.checks import UpdateWatch
from adaptiverl.integrations.steering import knob_logs, rate_in_effect, rescaled, steered
from adaptiverl.terms import Mode

NEEDS = {
    "huggingface": ("transformers", "transformers"),
    "accelerate": ("accelerate", "accelerate"),
    "lightning": ("lightning", "lightning or pytorch-lightning"),
}


def make_optimizer() -> AdaptiveAdamW:
    return AdaptiveAdamW([torch.nn.Parameter(torch.ones(2))], lr=0.5, control=Control(every=1))


class Wrapper:
    """As Accelerate's: it forwards nothing."""

    def __init__(self, optimizer: object) -> None:
        self.optimizer = optimizer


def test_the_knobs_under_their_names_in_logs() -> None:
    optimizer = make_optimizer()
    optimizer.param_groups[0]["lr"] = 0.25
    assert knob_logs(Wrapper(optimizer)) == {
        "adaptive/lr": 0.25,
        "adaptive/alpha": 0.5,
        "adaptive/momentum": pytest.approx(0.9),
        "adaptive/noise": 0.0,
    }


@pytest.mark.parametrize("mode", ["replace", "modulate"])
@pytest.mark.parametrize("after", [0.5, 0.25, 0.0], ids=["constant", "falling", "ended"])
def test_the_rate_that_a_step_used_though_the_scheduler_went_on(mode: Mode, after: float) -> None:
    param = torch.nn.Parameter(torch.ones(2))
    optimizer = AdaptiveAdamW([param], lr=0.5, control=Control(mode=mode, every=1))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: after / 0.5 if n else 1.0)
    for loss in (1.0, 0.5):
        param.grad = torch.ones(2)
        optimizer.step(loss=loss)
    used = optimizer.knobs()["lr"]
    assert used != 0.5, "the controller moved it"
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == after
    logs = knob_logs(optimizer)
    assert rate_in_effect(Wrapper(optimizer), 0.5, logs) == pytest.approx(used, rel=1e-12)


def test_the_optimizer_is_found_inside_wrappers() -> None:
    optimizer = make_optimizer()
    assert steered(optimizer, "") is optimizer
    assert steered(Wrapper(Wrapper(optimizer)), "") is optimizer
    with pytest.raises(
        TypeError, match=r"expected an AdaptiveAdamW, got Wrapper around SGD: wrap ours"
    ):
        steered(Wrapper(torch.optim.SGD([torch.ones(1)])), "wrap ours")


def test_a_share_of_half_precision_is_rescaled_in_single() -> None:
    loss = torch.tensor(1.0078125, dtype=torch.bfloat16, requires_grad=True)
    share = rescaled(loss, 3)
    assert share.dtype == torch.float32
    assert not share.requires_grad
    assert share.item() == 3 * 1.0078125
    assert rescaled(torch.tensor(0.1, dtype=torch.float64), 3).item() == 0.1 * 3


def test_a_run_whose_knobs_had_moved_before_is_not_told_of_a_late_update() -> None:
    param = torch.nn.Parameter(torch.ones(2))
    optimizer = AdaptiveAdamW([param], lr=0.5, control=Control(every=None))
    for late in (True, False):
        watch = UpdateWatch(optimizer, "x", "y", evaluates=True)
        optimizer.update(1.0)
        watch.updated(6)
        with pytest.warns(UserWarning, match="too late") if late else contextlib.nullcontext():
            watch.look(6)


@pytest.mark.parametrize("module", NEEDS)
def test_a_missing_framework_is_named_with_its_remedy(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    framework, named = NEEDS[module]
    for name in (framework, "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"adaptiverl.integrations.{module}", raising=False)
    with pytest.raises(ImportError, match=rf"needs {named},? .*pip install .*'{framework}>="):
        importlib.import_module(f"adaptiverl.integrations.{module}")


def test_lightning_under_its_other_name_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    package = pytest.importorskip("pytorch_lightning", reason="pytorch-lightning is not installed")
    monkeypatch.setitem(sys.modules, "lightning", None)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    monkeypatch.delitem(sys.modules, "adaptiverl.integrations.lightning", raising=False)
    module = importlib.import_module("adaptiverl.integrations.lightning")
    assert issubclass(module.AdaptiveCallback, package.Callback)
    del sys.modules["adaptiverl.integrations.lightning"]  # The usual one comes back, if it was in.


def test_nothing_large_is_imported_before_it_is_asked_for() -> None:
    """Beside what torch brings along by itself, some triton maybe."""
    code = (
        "import sys, torch; alone = set(sys.modules); "
        "import adaptiverl.plots, adaptiverl.integrations.steering; "
        "print(*(set(sys.modules) - alone))"
    )
    command = [sys.executable, "-I", "-c", code]  # from where it is installed
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = set(run.stdout.split())
    assert "adaptiverl.plots" in imported
    large = {"triton", "matplotlib", "transformers", "accelerate", "lightning", "pytorch_lightning"}
    assert not imported & large
