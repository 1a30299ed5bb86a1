"""bench/alignment_variants: the law is the project's, the training AdamW's, the tables right."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import law_twin
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tolerances import assert_close
from torch import Tensor, nn
from training import assert_differ, assert_same

# bench/ is not part of the wheel. At the end of the path, so that an installed adaptiverl wins
# over the source tree.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from adaptiverl import AdaptiveAdamW, Control
from adaptiverl.law import alignment, knobs
from adaptiverl.law.numbers import hold_by
from adaptiverl.layout import State
from bench.alignment_variants import cli, data, run
from bench.alignment_variants.cells import Cells
from bench.alignment_variants.laws import base
from bench.alignment_variants.laws.base import Law, Schedule, Setting
from bench.alignment_variants.laws.prototype import Prototype, PrototypeAgain, Tracking
from bench.alignment_variants.laws.search import Final
from bench.alignment_variants.report import BEGIN, END, Board, PageError, placed, report
from bench.alignment_variants.rows import Row, RowsError, read, write
from bench.alignment_variants.sensor import Reading, Sensor, Sums
from bench.alignment_variants.tasks import TASKS, Task
from bench.alignment_variants.variants import SCHEDULES, VARIANTS

Floats = NDArray[np.float64]
SMALL = replace(TASKS["digits"], steps=40)


def sums_of(cosines: Floats) -> Sums:
    """Sums that have these cosines, at scales that differ from cell to cell."""
    gg, uu = np.exp2(2.0 * np.arange(len(cosines))), np.full(len(cosines), 9.0)
    return Sums(cosines * np.sqrt(gg * uu), gg, uu)


PARTS = (0.0, 0.4, -0.3, 0.1)
"""A plateau of noise, updates that point downhill, ones that overshoot, and noise again"""


def course(steps: int, cells: int, parts: Sequence[float] = PARTS) -> list[Sums]:
    """Noise around the mean cosine of each part; all are equally long."""
    generator = np.random.default_rng(4)
    levels = np.repeat(parts, -(-steps // len(parts)))
    return [sums_of(level + generator.normal(0, 0.3, cells)) for level in levels[:steps]]


def with_gaps(sums: list[Sums]) -> list[Sums]:
    """The same with steps that have nothing to read, and with gradients that are not finite."""
    gaps = [Sums(*(array.copy() for array in each)) for each in sums]
    for step in (0, 30, 31):
        gaps[step].uu[:] = 0.0
    gaps[40].gg[1] = 0.0
    for step, value in ((50, math.nan), (51, math.inf), (120, math.nan)):
        gaps[step].gu[0] = gaps[step].gg[0] = value
    return gaps


def rates_of(law: Law, readings: list[Reading], setting: Setting) -> Floats:
    """The rates of every step, (steps, cells)."""
    law.begin(setting)
    return np.array([law.next_rates(step, reading) for step, reading in enumerate(readings, 1)])


def read_by_sensor(sums: list[Sums]) -> list[Reading]:
    sensor = Sensor(len(sums[0].gu))
    return [sensor.read(each) for each in sums]


# --- The law ----------------------------------------------------------------------------------


def twin(control: Control, rate: float, sums: list[Sums], cell: int) -> list[State]:
    """What `adaptiverl.law` makes of one cell's sums."""
    read, state = law_twin.numbers(control, rate, 0.9), law_twin.start(control, rate, 0.9)
    states = []
    for each in sums:
        state.step += 1
        state.aligned_gu, state.aligned_gg, state.aligned_uu = (
            float(array[cell]) for array in each
        )
        state.aligned_pending = 1.0
        alignment.sense(state, read)
        knobs.read_knobs(state, read)
        states.append(replace(state))
    return states


LONG_COOLDOWN = partial(Final, anneal=base.cooldown(0.7), latest=1 - 0.7)


@pytest.mark.parametrize(
    ("make", "control", "by_clock"),
    [
        (Final, Control.find_lr(500), False),
        (Final, Control.find_lr(150), True),
        (LONG_COOLDOWN, replace(Control.find_lr(240), cooldown=0.7), True),
        (VARIANTS["final-open-1/2"].law, Control.find_lr(None), False),
    ],
)
def test_the_final_law_is_the_project_s(
    make: Callable[[], Any], control: Control, by_clock: bool
) -> None:
    start = np.array([1e-3, 0.1, 10.0])
    sums = with_gaps(course(400, len(start)))
    law = make()
    steps = control.horizon or 400
    rates = rates_of(law, read_by_sensor(sums), Setting(start, steps, 0.9))
    for cell, rate in enumerate(start):
        states = twin(control, rate, sums, cell)
        assert_close(rates[:, cell], [state.lr for state in states], "law")
        assert_close(law.log_rate[cell], states[-1].log_lr, "law")
        assert_close(law.overshoot[cell], states[-1].overshoot, "law", scale=1.0)
        assert_close(law.doubted[cell], states[-1].log_lr_doubted, "law")
        held = [state.step for state in states if state.held]
        assert law.held_at[cell] == held[0]
        assert (held[0] >= hold_by(control)) == by_clock


def test_without_evidence_nothing_is_held_before_the_cooldown() -> None:
    downhill = [sums_of(np.array([0.5]))] * 100
    for control, expected in ((Control.find_lr(100), 60), (Control.find_lr(None), math.nan)):
        law = VARIANTS["final" if control.horizon else "final-open-1/2"].law()
        rates_of(law, read_by_sensor(downhill), Setting(np.array([1e-3]), 100, 0.9))
        held = [state.step for state in twin(control, 1e-3, downhill, 0) if state.held]
        np.testing.assert_array_equal(law.held_at, [expected])
        assert held[:1] == ([] if math.isnan(expected) else [expected])


def test_the_optimizer_sets_the_rates_that_the_lab_does() -> None:
    task = SMALL
    cells, law = Cells(task, [0.5], [7]), Recorded(Final())
    cells.train(law)
    parameters: list[Tensor] = [nn.Parameter(p) for p in task.start(7)]
    optimizer = AdaptiveAdamW(
        parameters, lr=0.5, weight_decay=0.01, control=Control.find_lr(task.steps)
    )
    (x, y), rates = task.load().train, []
    for index in task.batches(7):
        task.loss(parameters, x[index], y[index]).backward()
        optimizer.step()
        optimizer.zero_grad()
        rates.append(optimizer.knobs()["lr"])
    # The optimizer's sums are of float64, the lab's of float32, and α is what they add up to.
    assert_close(np.log(rates[:-1]), np.log(np.array(law.rates)[:-1, 0]), "step_float32")
    assert max(rates) > 5 * rates[0]
    assert rates[-1] == law.rates[-1][0] == 0


class Recorded(Law):
    """Another law, whose rates are kept."""

    def __init__(self, law: Law) -> None:
        self.law, self.rates = law, list[Floats]()

    def begin(self, setting: Setting) -> None:
        self.law.begin(setting)

    def next_rates(self, step: int, reading: Reading) -> Floats:
        self.rates.append(self.law.next_rates(step, reading))
        return self.rates[-1]

    @property
    def found(self) -> Floats:
        return self.law.found


def test_every_variant_is_another() -> None:
    # After the plateau and the slope, so slight an overshoot that marks climb on from look to look.
    start, steps = np.full(48, 1e-2), 1200
    readings = read_by_sensor(course(steps, len(start), (0.0, 0.4, *[-0.07] * 6, -0.3, 0.1)))
    setting = Setting(start, steps, 0.9)
    makers = {name: variant.law for name, variant in VARIANTS.items()} | SCHEDULES
    courses = {name: rates_of(make(), readings, setting) for name, make in makers.items()}
    names = list(courses)
    for index, name in enumerate(names):
        assert np.isfinite(courses[name]).all(), name
        assert np.ptp(courses[name]) > 0, name
        for other in names[:index]:
            assert not np.array_equal(courses[name], courses[other]), f"{name} is {other}"


def given(directions: list[float]) -> list[Reading]:
    """Of one cell, x as it is given."""
    nothing, there = np.zeros(1), np.ones(1, dtype=bool)
    return [Reading(np.array([x]), np.array([x]), nothing, nothing, there) for x in directions]


def log_rates(law: Any, directions: list[float], steps: int = 1000) -> list[float]:
    """log α/α₀ after each reading, α₀ the law's start."""
    law.begin(Setting(np.ones(1), steps, 0.9))
    found = []
    for step, reading in enumerate(given(directions), 1):
        law.next_rates(step, reading)
        found.append(float(law.log_rate[0]) - math.log(0.01))
    return found


def test_the_prototype_by_hand() -> None:
    # e: 1, then 0.6, 0.28, 0.024, −0.18: held at the fifth step, which still moves.
    law = Prototype()
    moved = log_rates(law, [1.0, -1.0, -1.0, -1.0, -1.0, 1.0])
    assert moved == pytest.approx([0.11, 0.02, -0.07, -0.16, -0.25, -0.25])
    assert law.held_at == 5


def test_the_prototype_that_looks_again() -> None:
    # Held at e = −0.18; then x = 1 brings e to 0.055, 0.24, 0.40, and the rate is let go.
    directions = [1.0, -1.0, -1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0]
    law = PrototypeAgain()
    moved = log_rates(law, directions)
    assert moved[4:] == pytest.approx([-0.25, -0.25, -0.25, -0.25, -0.14])
    assert not law.held.any()
    # In the cooldown it does not look again.
    assert log_rates(law, directions, steps=9)[4:] == pytest.approx([-0.25] * 5)


def test_tracking_by_hand() -> None:
    assert log_rates(Tracking(), [1.0, 0.5, -1.0]) == pytest.approx([0.05, 0.075, 0.025])


def test_bounds_hold() -> None:
    assert log_rates(Tracking(), [-1.0] * 200)[-1] == pytest.approx(math.log(1e-4 / 0.01))


def test_anneals_by_hand() -> None:
    held_at = np.array([math.nan, 20.0])
    assert [base.cooldown(0.4)(step, 100, held_at) for step in (1, 60, 80, 100)] == pytest.approx(
        [1, 1, 0.5, 0]
    )
    np.testing.assert_allclose(base.linear_from_hold(60, 100, held_at), [1, 0.5])
    np.testing.assert_allclose(base.cosine_from_hold(40, 100, held_at), [1, 0.8535534], rtol=1e-6)
    np.testing.assert_allclose(base.cosine_from_hold(100, 100, held_at), [1, 0], atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("constant", {1: 0.2, 5: 1.0, 100: 1.0}),
        ("cosine", {1: 0.2, 6: 1.0, 53: 0.508267, 100: 0.0002734}),
        ("cooldown", {1: 0.2, 61: 1.0, 81: 0.5, 100: 0.025}),
    ],
)
def test_schedules_by_hand(kind: Any, expected: dict[int, float]) -> None:
    law = Schedule(kind)
    law.begin(Setting(np.array([2.0]), 100, 0.9))
    (reading,) = given([0.0])
    rates = {step: float(law.next_rates(step, reading)[0]) / 2 for step in expected}
    assert rates == pytest.approx(expected, rel=1e-3)


# --- Training ---------------------------------------------------------------------------------


def test_a_cell_is_trained_as_torch_s_adamw_trains_it() -> None:
    cells = Cells(SMALL, [1e-3, 1e-2], [0, 5])
    cells.train(SCHEDULES["cooldown"]())
    law = SCHEDULES["cooldown"]()
    law.begin(Setting(np.array([1e-2]), SMALL.steps, 0.9))
    parameters: list[Tensor] = [nn.Parameter(p) for p in SMALL.start(5)]
    optimizer = torch.optim.AdamW(parameters, lr=1.0, weight_decay=0.01)
    (x, y), (reading,) = SMALL.load().train, given([0.0])
    for step, index in enumerate(SMALL.batches(5), 1):
        optimizer.param_groups[0]["lr"] = float(law.next_rates(step, reading)[0])
        optimizer.zero_grad()
        SMALL.loss(parameters, x[index], y[index]).backward()
        optimizer.step()
    assert cells.names[3] == (1e-2, 5)
    alone = torch.cat([p.detach().flatten() for p in parameters])
    # Products of matrices in batches round otherwise, 40 steps long.
    torch.testing.assert_close(cells.flat[3], alone, rtol=1e-3, atol=1e-5)
    assert_differ(cells.flat[2], cells.flat[3])
    held_out = SMALL.loss(parameters, *SMALL.load().held_out)
    assert cells.held_out_losses()[3] == pytest.approx(held_out.item(), rel=1e-4)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_a_function_of_its_seed(name: str) -> None:
    task = runnable(name)
    assert_same(task.start(1), task.start(1))
    assert_differ(task.start(1), task.start(2))
    batches = task.batches(1)
    assert batches.shape == (task.steps, task.batch)
    assert torch.equal(batches, task.batches(1))
    assert not torch.equal(batches, task.batches(2))
    assert int(batches.max()) < len(task.load().train[0])


def runnable(name: str) -> Task:
    reason = TASKS[name].missing()
    if reason is not None:
        pytest.skip(reason)
    return TASKS[name]


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_learnt_side_by_side_as_alone(name: str) -> None:
    task = replace(runnable(name), steps=3)
    together, alone = Cells(task, [1e-3], [1, 2]), Cells(task, [1e-3], [2])
    before = together.train_losses()
    for cells in (together, alone):
        cells.train(Schedule("constant"))
    torch.testing.assert_close(together.flat[1], alone.flat[0], rtol=1e-3, atol=1e-5)
    assert (together.train_losses() < before).all()


@pytest.mark.parametrize(
    ("name", "classes"), [("digits", 10), ("digits-cnn", 10), ("gpt", None), ("logreg", 2)]
)
def test_training_starts_where_nothing_is_known(name: str, classes: int | None) -> None:
    task = TASKS[name]
    expected = math.log(classes or data.sources().characters)
    loss = Cells(task, [1e-3], [0]).held_out_losses()[0]
    assert loss == pytest.approx(expected, rel=0.1)


def test_held_out_examples_are_not_trained_on() -> None:
    (train, _), (held_out, _) = data.digits()
    assert len(train) + len(held_out) == 1797
    distances = torch.cdist(held_out, train).min(1).values
    assert float((distances == 0).double().mean()) < 0.01


def test_a_tenth_of_the_labels_is_drawn_anew() -> None:
    (_, right), (_, held_out) = data.digits()
    (_, noisy), (_, same) = data.mislabelled_digits()
    # A tenth of those drawn are right by chance.
    assert float((right != noisy).double().mean()) == pytest.approx(0.09, abs=0.02)
    assert torch.equal(held_out, same)


def test_a_text_s_targets_are_one_character_on() -> None:
    x, y = data.characters().train
    assert x.shape == y.shape == (len(x), data.CONTEXT)
    assert torch.equal(x[:, 1:], y[:, :-1])


# --- Rows and tables --------------------------------------------------------------------------

ROW = Row("moons", "final", 1e-3, 0, held_out=0.4, train=0.3, found=1e-2, held_at=12.0, made="now")


def table_rows() -> list[Row]:
    """Two seeds; the best cosine is 0.2 and 0.4, the worst cell of the final law 0.4 and 0.5."""
    losses = {
        ("cosine", 1e-3): (0.2, 0.4),
        ("cosine", 1e-2): (0.5, 0.6),
        ("final", 1e-3): (0.4, 0.5),
        ("final", 1e-2): (0.3, 0.3),
    }
    return [
        replace(ROW, law=law, rate=rate, seed=seed, held_out=loss)
        for (law, rate), pair in losses.items()
        for seed, loss in enumerate(pair)
    ]


def test_figures_by_hand() -> None:
    board = Board(table_rows())
    worst, mean = board.worst_over("final", "cosine"), board.mean_over("final", "cosine")
    assert worst is not None
    assert mean is not None
    assert worst.value == pytest.approx(0.9 / 0.6)
    # Rests a − R·b are 0.1 and −0.1: their standard error is 0.1, of a mean of 0.3.
    assert worst.error == pytest.approx(0.1 / 0.3)
    assert mean.value == pytest.approx(0.75 / 0.6)
    assert board.worst_over("final", "constant") is None


def test_a_report_shows_them() -> None:
    text = report([*table_rows(), replace(ROW, law="tracking", held_out=math.inf, found=1e-3)])
    assert "| law | moons † |" in text
    assert "| **final** | 1.50(33) |" in text
    cells = "0.450 | 0.300 | 1.50(33) | 1.25(33) | 0.500 | 0.300 | -2.0 (-2.0 to -2.0) | 12"
    assert f"| **final** | {cells} |" in text
    assert "| tracking | diverged | – | diverged |" in text
    assert "9 runs, seeds 0, 1; made now" in text


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [ROW, replace(ROW, held_out=math.inf, found=0.1 + 0.2, made="a, b")]
    write(rows, tmp_path / "deep" / "rows.csv")
    # By their text: NaN, of what was not measured, equals nothing.
    assert [*map(repr, read(tmp_path / "deep" / "rows.csv"))] == [*map(repr, rows)]


@pytest.mark.parametrize(
    ("text", "problem"), [("a,b\n1,2\n", "is not a file of rows"), ("", "has no rows")]
)
def test_what_is_no_file_of_rows_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(RowsError, match=problem):
        read(tmp_path / "rows.csv")


def test_tables_go_between_the_markers() -> None:
    page = f"# Mine\n\n{BEGIN}\nold\n{END}\n\nmine too\n"
    assert placed("new\n", page) == f"# Mine\n\n{BEGIN}\n\nnew\n\n{END}\n\nmine too\n"
    assert placed("new\n", placed("old\n", None)) == placed("new\n", None)
    with pytest.raises(PageError, match="has no lines"):
        placed("new\n", f"# Mine\n{END}\n{BEGIN}\n")


# --- The command ------------------------------------------------------------------------------


def test_the_command_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "TASKS", {"digits": SMALL, "moons": replace(TASKS["moons"], steps=20)})
    page, rows, copy = (tmp_path / name for name in ("page.md", "rows.csv", "copy.md"))
    request = [
        "--quick",
        "--variants",
        "final",
        "once-open-1",
        "--rates",
        "1e-2",
        "--seeds",
        "1",
        "2",
    ]
    assert cli.main([*request, "--out", str(page), "--rows", str(rows)]) == 0
    kept = read(rows)
    assert {row.task for row in kept} == {"digits"}
    assert len(kept) == 2 * (3 * len(cli.BASELINE_RATES) + 2)
    assert page.read_text() == placed(report(kept), None)
    said = capsys.readouterr()
    assert "### digits" in said.out
    assert "digits once-open-1: worst run" in said.err
    monkeypatch.setattr(run, "Cells", None)  # nothing is trained for a report
    assert cli.main(["--report", str(rows), "--out", str(copy)]) == 0
    assert copy.read_text() == page.read_text()


def test_long_tasks_get_the_main_variants_unless_others_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cli, "TASKS", {"gru": TASKS["gru"]})
    monkeypatch.setattr(cli, "run", lambda task, name, *rest: [replace(ROW, task="gru", law=name)])
    asked: list[list[Row]] = []
    monkeypatch.setattr(cli, "_publish", lambda rows, page: asked.append(rows))
    assert cli.main([]) == cli.main(["--variants", "size-0.2"]) == 0
    main = [name for name, variant in VARIANTS.items() if variant.is_main]
    assert [[row.law for row in rows] for rows in asked] == [
        [*SCHEDULES, *main],
        [*SCHEDULES, "size-0.2"],
    ]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--tasks", "mnist"], "no task is called 'mnist'; there are digits, auto"),
        (["--variants", "best"], "no variant is called 'best'; there are prototype"),
        (["--quick", "--tasks", "sin"], "give it or --tasks, not both"),
        (["--report", "nowhere.csv"], "nowhere.csv cannot be read"),
    ],
)
def test_bad_requests_are_refused(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    assert problem in capsys.readouterr().err


def test_somebody_s_page_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Mine\n")
    monkeypatch.setattr(cli, "run", None)
    assert cli.main(["--quick", "--out", str(page)]) == 2
    assert "page.md: it has no lines" in capsys.readouterr().err
    assert page.read_text() == "# Mine\n"


@pytest.mark.parametrize("bad", [["--rates", "0"], ["--rates", "x"], ["--seeds", "-1"]])
def test_arguments_out_of_range(bad: list[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(bad)


def test_a_task_without_its_data_is_left_out_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data, "FOLDER", tmp_path)
    assert cli.main(["--tasks", "fashion-mlp"]) == 2
    said = capsys.readouterr().err
    assert "fashion-mlp is left out" in said
    assert "install Debian's dataset-fashion-mnist" in said
    assert "no task is left to run" in said
