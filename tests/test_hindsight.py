"""Schedules in hindsight: their run is AdaptiveAdamW's, and the derivatives are exact."""

from __future__ import annotations

import math
import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tolerances import assert_close
from torch import Tensor, nn
from torch.nn import functional as F

from adaptiverl import AdaptiveAdamW, Control, hindsight
from adaptiverl.hindsight import Schedule, Training, command, smoothing
from adaptiverl.hindsight.cosines import cosine
from adaptiverl.hindsight.hypergradients import agreed

STEPS = 12
POINTS = torch.linspace(-1, 1, 60, dtype=torch.float64).view(3, 20).T.sin()


def truth(x: Tensor) -> Tensor:
    return x.sum(-1, keepdim=True).tanh()


def make(
    seed: int, dtype: torch.dtype = torch.float64, steps: int = STEPS
) -> tuple[nn.Module, Any]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).to(dtype)
    x = torch.randn(steps, 8, 3, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return model, lambda step: (x[step], truth(x[step]))


def error(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(x), y)


def training(seeds: tuple[int, ...] = (0, 1), steps: int = STEPS, **more: Any) -> Training:
    held_out = [(POINTS, truth(POINTS))]
    return hindsight.training_of(
        lambda seed: make(seed, steps=steps), error, held_out, steps, seeds, **more
    )


def bent(noise: float) -> Schedule:
    """One whose knobs all differ."""
    flat = Schedule.constant(0.05, STEPS, noise=noise, knots=3)
    steps = torch.linspace(0, 1, len(flat.places), dtype=torch.float64)[:, None]
    return replace(flat, knots=flat.knots + steps * torch.tensor([0.5, -0.4, 0.3]))


# The run ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_the_run_is_the_optimizer_s(noise: float) -> None:
    schedule = bent(0.0)
    knobs = schedule.knobs()
    knobs[:, 2] = noise
    still = replace(Control.frozen(), noise_bounds=(noise, noise))
    losses = hindsight.final_losses(training(weight_decay=0.1, seed=7), knobs)
    for seed in (0, 1):
        model, batch = make(seed)
        optimizer = AdaptiveAdamW(model.parameters(), 1.0, weight_decay=0.1, control=still, seed=7)
        for step in range(STEPS):
            group = optimizer.param_groups[0]
            group["lr"], group["betas"] = float(knobs[step, 0]), (float(knobs[step, 1]), 0.999)
            optimizer.zero_grad()
            error(model, *batch(step)).backward()
            optimizer.step()
        assert_close(losses[seed], error(model, POINTS, truth(POINTS)).detach(), "unrolled")
    assert losses[0] != losses[1]


def test_the_alignments_are_the_optimizer_s() -> None:
    found = hindsight.smoothing.alignments(training(), Schedule.constant(0.05, STEPS).knobs())
    model, batch = make(1)
    fixed = Control(law="alignment", lr_bounds=(0.05, 0.05), noise_bounds=(0.0, 0.0))
    optimizer = AdaptiveAdamW(model.parameters(), 0.05, control=fixed)
    for step in range(STEPS):
        optimizer.zero_grad()
        error(model, *batch(step)).backward()
        optimizer.step()
        if step > 1:  # the law reads a step's sums at the next one
            assert_close(found[step - 1, 1], optimizer.knobs()["alignment"], "unrolled")


@pytest.mark.parametrize(("segment", "noise"), [(None, 0.0), (1, 0.2), (5, 0.2)])
def test_hypergradients_are_the_finite_differences(segment: int | None, noise: float) -> None:
    task, schedule = training(), bent(noise)
    losses, found = hindsight.hypergradient(task, schedule, segment)
    assert torch.equal(losses, hindsight.final_losses(task, schedule.knobs()))
    step, columns, expected = 1e-5, 3 if noise else 2, torch.zeros_like(found)
    for knot in range(len(schedule.places)):
        for column in range(columns):
            ends = torch.stack([schedule.knots] * 2)
            ends[:, knot, column] += torch.tensor([step, -step])
            knobs = torch.stack([replace(schedule, knots=knots).knobs() for knots in ends])
            up, down = hindsight.final_losses(task, knobs)
            expected[:, knot, column] = (up - down) / (2 * step)
    assert (expected[..., :columns].abs() > 1e-6).all()
    assert found.numpy() == pytest.approx(expected.numpy(), rel=1e-4)
    assert noise or not found[..., 2].any()


def test_dead_units_have_no_derivative() -> None:
    def dead(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x), y) + 0 * sum(p.sum() for p in model.parameters())

    def silent(seed: int) -> tuple[nn.Module, Any]:
        first = nn.Linear(3, 4)
        nn.init.constant_(first.bias, -100.0)
        return nn.Sequential(first, nn.ReLU(), nn.Linear(4, 1)).double(), make(seed)[1]

    task = hindsight.training_of(silent, dead, [(POINTS, truth(POINTS))], STEPS, [0])
    _, found = hindsight.hypergradient(task, Schedule.constant(0.05, STEPS))
    assert found.isfinite().all()
    assert found.any()


# Both ways ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [hindsight.descend, hindsight.smooth])
def test_a_rate_that_is_too_low_gets_better(way: Callable[..., hindsight.Found]) -> None:
    task = training()
    start = Schedule.constant(1e-3, STEPS, knots=2)
    found = way(task, start, rounds=6, pace=0.7)
    assert found.before == pytest.approx(float(hindsight.final_losses(task, start.knobs()).mean()))
    after = hindsight.final_losses(task, found.schedule.knobs()).mean()
    assert found.after == pytest.approx(float(after))
    assert found.after == min(found.losses) < 0.8 * found.before
    assert (found.schedule.knobs()[:, 0] > 1e-3).all()


def test_a_window_s_alignments_move_its_knot() -> None:
    schedule = Schedule.constant(0.1, 9, knots=2)
    assert schedule.places == pytest.approx((0.0, 0.24, 4.0, 8.0))
    found = torch.zeros(9, 1, dtype=torch.float64)
    found[1:5], found[5:] = 1.0, -1.0
    said = smoothing.windowed(schedule, found)
    # Steps 0 to 3 were judged good, 4 to 7 bad; what a knot has in each step is its weight.
    weights = schedule.weights()[:8]
    signs = torch.tensor([1.0] * 4 + [-1.0] * 4, dtype=torch.float64)
    assert said == pytest.approx((weights.T @ signs / weights.sum(0)).numpy())
    assert said[0] == 1
    assert said[-1] == -1


def test_a_wild_run_counts_for_no_more_than_the_median_one() -> None:
    gradient = torch.zeros(4, 2, 3)
    gradient[0, 0, 0], gradient[1, 0, 1], gradient[2, 0, 0] = 1.0, 1.0, -1e6
    gradient[3] = math.nan
    assert agreed(gradient).tolist() == [[0.0, pytest.approx(1 / 3), 0.0], [0.0, 0.0, 0.0]]


def test_the_best_cosine() -> None:
    task = training(steps=30)
    rate, losses = hindsight.best_cosine(task, (1e-4, 3e-2, 1e3))
    assert rate == 3e-2
    assert torch.equal(losses, hindsight.final_losses(task, cosine(3e-2, 30)))
    with pytest.raises(ValueError, match="no finite loss"):
        hindsight.best_cosine(task, (1e300,))


# The schedule -------------------------------------------------------------------------------------


def test_a_schedule_is_linear_between_its_knots(tmp_path: Path) -> None:
    schedule = bent(0.1)
    weights = schedule.weights()
    assert weights.sum(1) == pytest.approx(1.0)
    assert weights @ torch.tensor(schedule.places, dtype=torch.float64) == pytest.approx(
        torch.arange(STEPS, dtype=torch.float64).numpy()
    )
    assert schedule.knobs()[-1].log()[0] == pytest.approx(float(schedule.knots[-1, 0]))
    schedule.save(tmp_path / "a.json")
    assert torch.equal(Schedule.load(tmp_path / "a.json").knots, schedule.knots)
    quiet = Schedule.like(cosine(0.1, STEPS)[:, 0])
    quiet.save(tmp_path / "b.json")
    assert torch.equal(Schedule.load(tmp_path / "b.json").knobs(), quiet.knobs())
    assert not quiet.knobs()[:, 2].any()


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: training(steps=1), "Training.steps must be from 2 .* got 1"),
        (lambda: training(seeds=()), "one seed at least, got none"),
        (lambda: training(seed=-1), r"seed must be from 0 .* got -1"),
        (lambda: Schedule.constant(0.0, 9), "lr must be finite and > 0, got 0.0"),
        (lambda: Schedule.constant(0.1, 9, momentum=1.0), "momentum must be in"),
        (
            lambda: hindsight.hypergradient(training(), Schedule.constant(0.1, 9)),
            "has 9 steps, and the training 12",
        ),
        (
            lambda: hindsight.final_losses(training(), torch.ones(9, 3)),
            r"shape \(12, 3\).* got \(9, 3\)",
        ),
        (
            lambda: hindsight.descend(training(), Schedule.constant(1e300, STEPS)),
            "start from a lower rate",
        ),
        (
            lambda: replace(training(), runs=[*training().runs, hindsight.Run({}, make(0)[1])]),
            r"runs\[2\] has parameters \{\}",
        ),
    ],
)
def test_bad_input(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def frozen_first(seed: int, same: bool = True) -> tuple[nn.Module, Any]:
    model, batch = make(seed)
    first = make(0 if same else seed)[0][0].requires_grad_(False)  # type: ignore[index]
    return nn.Sequential(first, *list(model.children())[1:]), batch


def one_run(make: Any = make, loss: Any = error) -> Training:
    return hindsight.training_of(make, loss, [(POINTS, truth(POINTS))], STEPS, (0, 1))


def test_what_asks_for_no_gradient_is_not_trained() -> None:
    training = one_run(frozen_first)
    assert [list(run.start) for run in training.runs] == [["2.weight", "2.bias"]] * 2
    still = hindsight.final_losses(training, cosine(0.0, STEPS))
    expected = [error(frozen_first(seed)[0], POINTS, truth(POINTS)) for seed in (0, 1)]
    torch.testing.assert_close(still, torch.stack(expected).detach())


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        (
            {"make": lambda seed: frozen_first(seed, same=False)},
            ValueError,
            r"0\.\w+, which is not trained, differs between seeds 0 and 1",
        ),
        ({"make": lambda seed: make(seed)[0]}, TypeError, r"make\(0\) must .* got Sequential"),
        (
            {"make": lambda seed: (make(0)[0].requires_grad_(False), make(seed)[1])},
            ValueError,
            "must have a parameter to be trained, got none",
        ),
        (
            {"make": lambda seed: (make(seed)[0], lambda step: make(seed)[1](step)[0])},
            TypeError,
            r"Run.batch\(0\) must return a tuple of tensors, got Tensor",
        ),
        (
            {"loss": lambda model, x, y: (model(x) - y).square()},
            ValueError,
            r"Training.loss must return a scalar, got shape \(8, 1\)",
        ),
        (
            {"loss": lambda model, x, y: error(model, x, y).detach()},
            ValueError,
            "must depend on the parameters",
        ),
    ],
)
def test_what_the_user_s_functions_give_is_looked_at(
    given: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        hindsight.final_losses(one_run(**given), cosine(0.1, STEPS))


@pytest.mark.parametrize("text", ["nothing", "{}", '{"version": 9}', '{"knots": [[1]]}'])
def test_a_file_that_is_no_schedule(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"a\.json is .* make it again"):
        Schedule.load(path)


SCRIPT = """
import torch
from adaptiverl.hindsight import training_of
def make(seed):
    torch.manual_seed(seed)
    x = torch.randn(10, 4, 2)
    return torch.nn.Linear(2, 1), lambda step: (x[step],)
def small():
    return training_of(make, loss, [(torch.eye(2),)], 10)
def loss(model, x):
    return (model(x) - x.sum(1, keepdim=True)).square().mean()
def nothing():
    return None
"""


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "small.py"
    script.write_text(SCRIPT)
    out = str(tmp_path / "out")
    assert command.main([f"{script}:small", "--rounds", "3", "--out", out]) == 0
    said = capsys.readouterr().out
    assert "best of seven cosines" in said
    schedule = Schedule.load(tmp_path / "out" / "schedule.json")
    assert len(schedule.knobs()) == 10
    for what, message in [
        (f"{script}:nothing", "expected a Training"),
        (f"{script}:gone", "no function 'gone'"),
        ("gone.py:f", "no file 'gone.py'"),
        ("gone", "give FILE.py:FUNCTION"),
        (str(script), "small.py is a file without its function"),
        (f"{script}:loss", "asks for model, x, expected a function without arguments"),
    ]:
        assert command.main([what]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("place", ["small.py", "small.py/below", "taken"])
def test_the_output_is_looked_at_before_the_work(
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "small.py").write_text(SCRIPT)
    (tmp_path / "taken" / "schedule.json").mkdir(parents=True)
    monkeypatch.setattr(command, "report", lambda *_: pytest.fail("it has worked"))
    out = str(tmp_path / place)
    assert command.main([f"{tmp_path / 'small.py'}:small", "--out", out]) == 2
    assert f"--out {out} must be a folder that" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["adaptiverl.__main__", "adaptiverl.hindsight.__main__"])
def test_both_commands_are_the_same(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["hindsight"] if module == "adaptiverl.__main__" else []
    monkeypatch.setattr(sys, "argv", ["", *words, "gone.py:f"])
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("hindsight: there is no file 'gone.py'")
