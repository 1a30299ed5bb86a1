"""Pictures of a trace, its CSV, its TensorBoard events; every number in them is read back."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib import image

from adaptiverl import AdaptiveAdamW, Control, plots
from adaptiverl.layout import TRACE_COLUMNS
from adaptiverl.trace import Trace

STEPS = 240


@pytest.fixture(scope="module")
def trace() -> Trace:
    """A small real run: a regression, one loss of which is not a number."""
    torch.manual_seed(1)
    inputs = torch.randn(512, 8)
    targets = (inputs @ torch.randn(8, 1)).tanh() + 0.3 * torch.randn(512, 1)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    optimizer = AdaptiveAdamW(model.parameters(), lr=1e-2, control=Control(every=4))
    for step in range(STEPS):
        rows = torch.randint(512, (16,))
        loss = (model(inputs[rows]) - targets[rows]).square().mean()
        loss.backward()
        optimizer.observe(loss * math.nan if step == 99 else loss)
        optimizer.step()
        optimizer.zero_grad()
    return optimizer.trace()


def made_up(rows: int = 6, **columns: Any) -> dict[str, list[float]]:
    """A trace of plain lists, α doubling at every update."""
    made = {name: [0.5] * rows for name in TRACE_COLUMNS}
    made["step"] = [10.0 * (i + 1) for i in range(rows)]
    made["lr"] = [1e-3 * 2**i for i in range(rows)]
    return made | columns


def lines(axes: Any, color: str) -> list[float]:
    """The heights of the one line of that colour."""
    (line,) = (line for line in axes.get_lines() if line.get_color() == color)
    return [float(y) for y in line.get_ydata()]


# --- CSV ------------------------------------------------------------------------------------------


def test_csv_reads_back_to_the_last_bit(trace: Trace, tmp_path: Path) -> None:
    trace.to_csv(tmp_path / "trace.csv")
    with (tmp_path / "trace.csv").open(newline="") as stream:
        header, *rows = csv.reader(stream)
    assert tuple(header) == TRACE_COLUMNS
    assert len(rows) == STEPS // 4
    assert [row[0] for row in rows] == [str(step) for step in range(4, STEPS + 1, 4)]
    read = torch.tensor([[float(cell) for cell in row] for row in rows], dtype=torch.float64)
    for i, name in enumerate(TRACE_COLUMNS):
        torch.testing.assert_close(read[:, i], trace[name], rtol=0, atol=0, equal_nan=True)
    assert trace["loss"].isnan().sum() == 1


def test_csv_of_an_empty_trace_is_its_header(tmp_path: Path) -> None:
    Trace(torch.zeros(0, len(TRACE_COLUMNS), dtype=torch.float64)).to_csv(str(tmp_path / "t.csv"))
    assert (tmp_path / "t.csv").read_text() == ",".join(TRACE_COLUMNS) + "\n"


# --- knobs ----------------------------------------------------------------------------------------


def test_knobs_draws_every_column_and_saves_the_picture(trace: Trace, tmp_path: Path) -> None:
    figure = plots.knobs(trace, tmp_path / "knobs.png", title="costs $5, not $6")
    loss, rate, momentum, noise, plateau = figure.axes
    assert lines(rate, plots.BLUE) == trace["lr"].tolist()
    assert lines(momentum, plots.GREEN) == trace["momentum"].tolist()
    assert lines(noise, plots.ORANGE) == trace["noise"].tolist()
    assert lines(plateau, plots.GREY) == trace["plateau"].tolist()
    assert lines(loss, "black") == trace["loss_mean"].tolist()
    assert len(lines(loss, plots.RED)) == 1, "the loss that is not finite is marked"
    pixels = image.imread(tmp_path / "knobs.png")
    assert pixels.shape[0] > pixels.shape[1] > 1000
    assert pixels.std() > 0.05, "the picture is blank"


def test_one_spike_does_not_flatten_the_curve() -> None:
    losses = [2.0 - 0.01 * i for i in range(200)]
    losses[120] = 1e9
    columns = made_up(200, loss=losses, loss_mean=[1.0] * 200, lr=[1e-3] * 200)
    low, high = plots.knobs(columns).axes[0].get_ylim()
    assert low < 0.01
    assert 2.0 < high < 20


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"loss": [math.nan] * 6, "loss_mean": [0.0] * 6},
        {"lr": [0.0] * 6},
        {"lr": [1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 0.0]},
        {"lr": [10.0**-i for i in range(6)]},
    ],
)
def test_odd_traces_are_drawn(columns: dict[str, Any], tmp_path: Path) -> None:
    plots.knobs(made_up(**columns), tmp_path / "knobs.svg")
    assert (tmp_path / "knobs.svg").stat().st_size > 10_000


def test_one_update_is_drawn(tmp_path: Path) -> None:
    plots.knobs(made_up(1), tmp_path / "knobs.png")
    assert image.imread(tmp_path / "knobs.png").std() > 0.05


@pytest.mark.parametrize("draw", [plots.knobs, plots.diagnostics])
def test_an_empty_trace_and_a_missing_column_are_refused(draw: Any) -> None:
    with pytest.raises(ValueError, match=r"empty: the knobs have not been updated yet.*every"):
        draw({name: [] for name in TRACE_COLUMNS})
    with pytest.raises(ValueError, match=r"lacks the columns .*lr.*; it has step"):
        draw({"step": [1.0]})


# --- diagnostics ----------------------------------------------------------------------------------


def test_diagnostics_correlations_by_hand(tmp_path: Path) -> None:
    # Δ log α is (2, -1, 1) times log 2, and a correlation knows no units.
    columns = made_up(
        4,
        lr=[1.0, 4.0, 2.0, 4.0],
        reward_direction=[0.7, 1.0, -1.0, 0.0],
        loss_direction=[-0.7, -1.0, 1.0, 0.5],
    )
    change = [2.0, -1.0, 1.0]

    def pearson(x: list[float], y: list[float]) -> float:
        x, y = ([v - sum(u) / len(u) for v in u] for u in (x, y))
        dot = sum(a * b for a, b in zip(x, y, strict=True))
        return dot / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))

    found = plots.diagnostics(columns, tmp_path / "diagnostics.png")
    assert found.reward == pytest.approx(pearson([1.0, -1.0, 0.0], change), rel=1e-12)
    cooling = [-c for c in change]
    assert found.loss == pytest.approx(pearson([0.0, 1.0, 0.5], cooling), rel=1e-12)
    left, right = found.figure.axes
    assert lines(left, plots.BLUE) == pytest.approx([c * math.log(2) for c in change])
    assert f"correlation {found.reward:+.2f}" in left.texts[0].get_text()
    assert f"correlation {found.loss:+.2f}" in right.texts[0].get_text()
    assert image.imread(tmp_path / "diagnostics.png").std() > 0.03


def test_both_correlations_are_positive_on_real_training(trace: Trace) -> None:
    found = plots.diagnostics(trace)
    # Not near 1: the reflex to the loss that is not a number moves α against the sensors.
    assert 0.5 < found.reward < 0.99
    assert 0.5 < found.loss < 0.99


def test_a_correlation_that_does_not_exist_is_said_so() -> None:
    found = plots.diagnostics(made_up(lr=[1e-3] * 6))
    assert math.isnan(found.reward)
    assert math.isnan(found.loss)
    assert "undefined" in found.figure.axes[0].texts[0].get_text()


def test_updates_at_a_rate_of_zero_are_left_out() -> None:
    rates = [1.0, 2.0, 4.0, 1.0, 0.5, 0.0]
    directions = [0.0, 1.0, 1.0, -1.0, -0.5, 1.0]
    whole = plots.diagnostics(made_up(lr=rates, reward_direction=directions))
    part = plots.diagnostics(made_up(5, lr=rates[:5], reward_direction=directions[:5]))
    assert whole.reward == part.reward


def test_one_update_has_no_change() -> None:
    with pytest.raises(ValueError, match="one update, and a change of α needs two"):
        plots.diagnostics(made_up(1))


# --- TensorBoard ----------------------------------------------------------------------------------


class Writer:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars.append((tag, value, step))


def test_tensorboard_gets_every_update_once(trace: Trace) -> None:
    writer = Writer()
    middle = {name: trace[name][:20] for name in trace}
    last = plots.write_tensorboard(middle, writer, prefix="run")
    assert last == 80
    last = plots.write_tensorboard(trace, writer, prefix="run", since=last)
    assert last == STEPS
    again = plots.write_tensorboard(trace, writer, prefix="run", since=last)
    assert again == STEPS
    rates = [(value, step) for tag, value, step in writer.scalars if tag == "run/lr"]
    assert rates == list(
        zip(trace["lr"].tolist(), [int(s) for s in trace["step"].tolist()], strict=True)
    )
    assert len(writer.scalars) == (len(TRACE_COLUMNS) - 1) * STEPS // 4


def test_tensorboard_skips_a_column_without_numbers() -> None:
    writer = Writer()
    assert plots.write_tensorboard(made_up(reward=[math.nan] * 6), writer) == 60
    assert {tag for tag, _, _ in writer.scalars} == {
        f"adaptiverl/{name}" for name in TRACE_COLUMNS if name not in ("step", "reward")
    }
    assert plots.write_tensorboard({name: [] for name in TRACE_COLUMNS}, writer, since=7) == 7


def test_tensorboards_own_reader_finds_the_trace(trace: Trace, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        plots.write_tensorboard(trace, writer)
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0})
    events.Reload()
    assert set(events.Tags()["scalars"]) == {f"adaptiverl/{n}" for n in TRACE_COLUMNS[1:]}
    for name in TRACE_COLUMNS[1:]:
        scalars = events.Scalars(f"adaptiverl/{name}")
        assert [event.step for event in scalars] == trace["step"].tolist()
        values = torch.tensor([event.value for event in scalars])
        torch.testing.assert_close(values, trace[name].float(), rtol=0, atol=0, equal_nan=True)


# --- without matplotlib ---------------------------------------------------------------------------


def test_without_matplotlib_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install matplotlib$"):
        plots.knobs(made_up())
    with pytest.raises(ImportError, match=r"pip install matplotlib$"):
        plots.diagnostics(made_up())


def test_knobs_draws_the_arms_where_there_are_some(trace: Trace) -> None:
    columns = {name: trace[name].tolist() for name in trace}
    assert len(plots.knobs(columns).axes) == 5
    columns["arm"] = [float(n % 3) for n in range(len(columns["step"]))]
    *_, plateau, strip = plots.knobs(columns).axes
    assert lines(strip, plots.RED) == columns["arm"]
    assert (strip.get_xlabel(), plateau.get_xlabel()) == ("step", "")
    assert strip.get_yticks().tolist() == [0, 1, 2]
