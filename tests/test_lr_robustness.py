"""bench/lr_robustness: paired runs, a file that survives interruptions, figures by hand."""

from __future__ import annotations

import gzip
import math
import struct
import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training import assert_differ, assert_same

# bench/ is not part of the wheel. At the end of the path, so that an installed adaptiverl wins
# over the source tree.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from bench.demo.model import GPT, GPTConfig
from bench.demo.text import load_text
from bench.lr_robustness import cells, cli, fingerprint, runner
from bench.lr_robustness.cells import Cell, Outcome
from bench.lr_robustness.figures import Cell as Mean
from bench.lr_robustness.figures import Estimate, Series, ratio, tables
from bench.lr_robustness.methods import METHODS, Method, Stepper
from bench.lr_robustness.methods.base import Scheduled, adamw, schedule
from bench.lr_robustness.methods.loss_driven import GreedyAdamW, PlateauAdamW
from bench.lr_robustness.methods.published import Prodigy
from bench.lr_robustness.picture import draw
from bench.lr_robustness.plan import plan
from bench.lr_robustness.report import report
from bench.lr_robustness.rows import COLUMNS, Row, Rows, RowsError, newest, read, write
from bench.lr_robustness.tasks import QUICK, TASKS, fashion
from bench.lr_robustness.tasks.base import Problem, Task, shuffled
from bench.lr_robustness.tasks.characters import Characters
from bench.lr_robustness.tasks.digits import DigitsMLP, mislabelled

ON_CPU = [task for task in TASKS.values() if task.device == "cpu"]
TINY = DigitsMLP(name="tiny", title="digits", seconds=0.5, steps=5, batch=32)
TINY_TASKS = {task.name: task for task in (TINY, replace(TASKS["sines"], name="small", steps=5))}
RATES = ["--rates", "1e-3", "1e-2"]


def started(name: str, parameters: Sequence[nn.Parameter], rate: float = 1e-2) -> Any:
    return METHODS[name].start(parameters, rate, horizon=100, seed=0)


def parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values))


def skip_if_missing(item: Task | Method) -> None:
    reason = item.missing()
    if reason is not None:
        pytest.skip(reason)


# --- Tasks ------------------------------------------------------------------------------------


def contents(problem: Problem, steps: int) -> tuple[list[Tensor], list[Any], list[Any]]:
    """The weights, the batches and the held-out set of a problem."""
    weights = [p.detach().clone() for p in problem.model.parameters()]
    return weights, [problem.batch(step) for step in range(steps)], list(problem.held_out)


@pytest.mark.parametrize("name", [task.name for task in ON_CPU])
def test_a_task_is_a_function_of_its_seed(name: str) -> None:
    skip_if_missing(TASKS[name])
    task = replace(TASKS[name], steps=3)
    first, again, other = (contents(task.start(seed), 3) for seed in (1, 1, 2))
    assert_same(first, again)
    for mine, theirs in zip(first[:2], other[:2], strict=True):
        assert_differ(mine, theirs)
    assert_same(first[2], other[2])
    assert_differ(first[1][0], first[1][1])


@dataclass(frozen=True, kw_only=True)
class Watched(DigitsMLP):
    """Notes the weights at the start and the batches that are asked for."""

    seen: Any = None

    def start(self, seed: int) -> Problem:
        problem = super().start(seed)
        self.seen.extend(p.detach().clone() for p in problem.model.parameters())

        def batch(step: int) -> tuple[Tensor, Tensor]:
            self.seen.extend(problem.batch(step))
            return problem.batch(step)

        return replace(problem, batch=batch)


def test_every_method_and_rate_starts_and_goes_on_alike() -> None:
    seen: list[list[Tensor]] = []
    for method, rate in (("cosine", 1e-3), ("loss", 1e-1)):
        seen.append([])
        task = Watched(name="w", title="", seconds=0, steps=5, batch=32, wrong=0.5, seen=seen[-1])
        cells.run(Cell(task, METHODS[method], rate, seed=3))
    assert len(seen[0]) == 4 + 2 * 5
    assert_same(*seen)


def test_epochs_hold_every_example_once() -> None:
    order = shuffled(count=10, steps=4, batch=5, seed=0).flatten().tolist()
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10] != order[10:]


def test_wrong_labels() -> None:
    labels = torch.full((20_000,), 3)
    assert torch.equal(mislabelled(labels, 0.0, 0), labels)
    # A tenth of those drawn at random are right by chance.
    share = (mislabelled(labels, 0.1, 0) != labels).double().mean()
    assert share == pytest.approx(0.09, abs=0.01)


def test_held_out_losses_are_taken_without_dropout() -> None:
    model = nn.Sequential(nn.Dropout(0.5))
    ones = torch.ones(3, 3)  # half of nine is no number that dropout can leave
    problem = Problem(
        model, lambda step: (ones, ones), lambda x, y: model(x).mean(), [(ones, ones)]
    )
    assert problem.held_out_loss() == 1
    assert problem.loss(0) != 1


@pytest.mark.parametrize(
    ("name", "millions"),
    [("gpt-31k", 0.031), ("gpt-0.2m", 0.2), ("gpt-10m", 10), ("gpt-124m", 124)],
)
def test_a_gpt_is_as_large_as_its_name_says(name: str, millions: float) -> None:
    task = TASKS[name]
    assert isinstance(task, Characters)
    vocabulary = len(load_text(None, task.context).vocabulary)
    with torch.device("meta"):
        model = GPT(GPTConfig(vocabulary, task.context, task.layers, task.heads, task.width))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(millions * 1e6, rel=0.1)


def test_what_cannot_run_here_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fashion, "FOLDER", tmp_path / "fashion")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["--tasks", "fashion-cnn", "gpt-10m", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "fashion-cnn is left out" in said
    assert "install Debian's dataset-fashion-mnist" in said
    assert "gpt-10m is left out: it needs a CUDA device" in said
    assert "no task is left to run" in said


def test_idx_files(tmp_path: Path) -> None:
    path = tmp_path / "two.gz"
    path.write_bytes(gzip.compress(b"\0\0\x08\x02" + struct.pack(">2i", 2, 3) + bytes(range(6))))
    assert fashion.read_idx(path).tolist() == [[0, 1, 2], [3, 4, 5]]
    path.write_bytes(gzip.compress(b"\0\0\x0d\x01" + bytes(8)))
    with pytest.raises(ValueError, match=r"two\.gz is not an idx file of bytes"):
        fashion.read_idx(path)


# --- Methods ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_with_the_shared_settings(name: str) -> None:
    skip_if_missing(METHODS[name])
    weight = parameter(1.0, 2.0)
    stepper = started(name, [weight])
    (group,) = stepper.optimizer.param_groups
    assert (tuple(group["betas"]), group["weight_decay"]) == ((0.9, 0.999), 0.01)
    for _ in range(3):
        loss = weight.square().sum()
        loss.backward()
        stepper.step(loss)
        assert weight.grad is None
    stepper.finish()
    assert 0 < weight.square().sum() < 5


@pytest.mark.parametrize(
    ("decay", "at"),
    [
        ("none", {0: 0.2, 4: 1.0, 5: 1.0, 99: 1.0, 150: 1.0}),
        ("cosine", {0: 0.2, 4: 1.0, 5: 1.0, 52: 0.508267, 100: 0.0, 150: 0.0}),
        ("linear", {0: 0.2, 4: 1.0, 5: 1.0, 24: 0.8, 62: 0.4, 100: 0.0, 150: 0.0}),
        ("cooldown", {0: 0.2, 4: 1.0, 60: 1.0, 70: 0.75, 90: 0.25, 100: 0.0, 150: 0.0}),
    ],
)
def test_schedules_by_hand(decay: Any, at: dict[int, float]) -> None:
    rate = schedule(2.0, horizon=100, decay=decay)
    assert {step: rate(step) / 2 for step in at} == pytest.approx(at)


def test_a_schedule_sets_the_rate_of_the_step_it_is_for() -> None:
    weight = parameter(1.0)
    stepper = Scheduled(adamw([weight], 1.0), [0.25, 0.5].__getitem__)
    for expected in (0.75, 0.25):
        weight.grad = torch.ones(1)
        stepper.optimizer.param_groups[0]["weight_decay"] = 0
        stepper.step(torch.zeros(()))
        # A constant gradient makes AdamW's step the rate itself.
        assert weight.item() == pytest.approx(expected)


def rate_after(method: Method, losses: Sequence[float]) -> float:
    """The rate that a loss-driven method has come to, from 1."""
    weight = parameter(1.0)
    stepper: Any = method.start([weight], 1e-2, horizon=20, seed=0)
    for loss in losses:
        weight.grad = torch.ones(1)
        stepper.step(torch.tensor(loss))
    return stepper.optimizer.param_groups[0]["lr"] / 1e-2


def test_schedulers_that_react_are_told_the_loss() -> None:
    plateau = PlateauAdamW(name="p", title="", beta=0.5, patience=5)
    assert rate_after(plateau, [1.0] * 8) == pytest.approx(0.5)
    assert rate_after(plateau, [0.9**n for n in range(8)]) == 1


def test_greedy_goes_both_ways() -> None:
    greedy = GreedyAdamW(name="g", title="", beta=0.5)
    skip_if_missing(greedy)
    assert rate_after(greedy, [0.9**n for n in range(12)]) == pytest.approx(1 / 0.95)
    assert rate_after(greedy, [1.0] * 13) == pytest.approx(0.95)


def test_schedule_free_is_judged_at_its_average() -> None:
    skip_if_missing(METHODS["schedule-free"])
    weight = parameter(1.0, -2.0)
    stepper = started("schedule-free", [weight])
    for _ in range(5):
        weight.grad = torch.ones(2)
        stepper.step(torch.zeros(()))
    trained = weight.detach().clone()
    stepper.finish()
    assert not torch.equal(weight, trained)


def test_prodigy_is_at_its_default_where_adamw_is(capsys: pytest.CaptureFixture[str]) -> None:
    skip_if_missing(METHODS["prodigy"])
    assert isinstance(METHODS["prodigy"], Prodigy)
    group = started("prodigy", [parameter(1.0)], rate=1e-3).optimizer.param_groups[0]
    assert (group["d0"], group["lr"]) == (pytest.approx(1e-6), 1.0)
    assert capsys.readouterr().out == ""


# --- Fingerprints -----------------------------------------------------------------------------


def test_comments_and_layout_do_not_matter() -> None:
    plain = 'def f(x):\n    if x:\n        y = f"{x + 1} b"\n    return y\n'
    told = (
        '"""Doc."""\n\ndef f(\n    x\n):\n    """More."""\n    if x:  # why\n\n'
        '        y = f"{x + 1} b"\n    return y\n'
    )
    assert fingerprint.python_code(plain) == fingerprint.python_code(told)
    other = plain.replace("    return", "        return")
    assert fingerprint.python_code(plain) != fingerprint.python_code(other)
    assert fingerprint.python_code(plain) != fingerprint.python_code(plain.replace("1", "2"))
    assert fingerprint.c_code("a = 1; // b\n/* c\n*/ d") == fingerprint.c_code("a=1;d")
    assert fingerprint.c_code("a = 1") != fingerprint.c_code("a = 2")


def test_a_fingerprint_is_of_the_task_the_method_and_the_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs = [
        (TINY, METHODS["cosine"]),
        (TINY, METHODS["linear"]),
        (replace(TINY, steps=6), METHODS["cosine"]),
        (replace(TINY, wrong=0.1), METHODS["cosine"]),
        (TINY_TASKS["small"], METHODS["cosine"]),
    ]
    prints = [fingerprint.fingerprint(*pair) for pair in pairs]
    assert len(set(prints)) == len(pairs)
    assert prints == [fingerprint.fingerprint(*pair) for pair in pairs]
    assert fingerprint.fingerprint(replace(TINY, seconds=9.0), METHODS["cosine"]) == prints[0]
    ours = fingerprint.fingerprint(TINY, METHODS["loss"])
    real = fingerprint._code
    law = fingerprint.ROOT / "csrc/law/loss.h"
    assert law.is_file()
    monkeypatch.setattr(fingerprint, "_code", lambda path: real(path) + "x" * (path == law))
    assert fingerprint.fingerprint(TINY, METHODS["loss"]) != ours
    assert fingerprint.fingerprint(TINY, METHODS["cosine"]) == prints[0]


# --- The file ---------------------------------------------------------------------------------

ROW = Row(
    task="tiny",
    method="cosine",
    factor=1.0,
    rate=1e-3,
    seed=0,
    initial=2.0,
    final=1.0,
    seconds=0.5,
    fingerprint="one",
    steps=5,
    device="a processor, with a comma",
    torch="2",
    commit="abc",
)


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [ROW, replace(ROW, seed=1, final=math.inf), replace(ROW, seed=2, final=0.1 + 0.2)]
    with Rows(tmp_path / "deep/rows.csv") as store:
        for row in rows:
            store.append(row)
    assert read(tmp_path / "deep/rows.csv") == rows
    write(rows, tmp_path / "copy.csv")
    assert (tmp_path / "copy.csv").read_bytes() == (tmp_path / "deep/rows.csv").read_bytes()


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_torn_last_line_is_dropped_and_written_over(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "rows.csv"
    write([ROW, replace(ROW, seed=1)], path)
    path.write_bytes(path.read_bytes()[:-cut])
    assert read(path) == [ROW]
    with Rows(path) as store:
        assert store.rows == [ROW]
        store.append(replace(ROW, seed=2))
    assert read(path) == [ROW, replace(ROW, seed=2)]


def test_a_torn_heading_is_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("task,meth")
    with Rows(path) as store:
        store.append(ROW)
    assert read(path) == [ROW]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n", r"has the columns a, b; expected task, .* move it away"),
        (f"{','.join(COLUMNS)}\ntiny,cosine\n", r"line 2: 'tiny,cosine' is not a row"),
        (
            f"{','.join(COLUMNS)}\n{','.join(map(str, astuple(replace(ROW, device='d'))))}\n"
            f"{','.join(map(str, astuple(replace(ROW, device='d')))).replace('0.001', 'x')}\n",
            r"line 3: .* is not a row .*take the line out",
        ),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(RowsError, match=message):
        read(path)
    with pytest.raises(RowsError, match=message):
        Rows(path)
    assert path.read_text() == text


def test_of_one_fingerprint_the_last_row_counts() -> None:
    old, new = replace(ROW, fingerprint="old"), replace(ROW, fingerprint="new")
    other = replace(ROW, method="linear", fingerprint="old")
    better = replace(new, final=0.5)
    assert newest([replace(old, seed=1), old, other, new, better]) == [other, better]


@pytest.mark.parametrize(
    ("final", "diverged"),
    [(1.99, False), (2.0, False), (2.01, True), (math.nan, True), (math.inf, True)],
)
def test_what_diverged_means(final: float, diverged: bool) -> None:
    assert replace(ROW, initial=2.0, final=final).diverged is diverged


# --- Running ----------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """Two tasks of five steps, one process; the cells that are run."""
    ran: list[Cell] = []

    def run(cell: Cell) -> Outcome:
        ran.append(cell)
        return cells.run(cell)

    monkeypatch.setattr(cli, "TASKS", TINY_TASKS)
    monkeypatch.setattr(runner, "run", run)
    return ran


def command(out: Path, *more: str) -> list[str]:
    return ["--out", str(out), "--workers", "1", "--methods", "constant", "cosine", *RATES, *more]


def test_seeds_come_one_by_one_and_long_tasks_first() -> None:
    quick, slow = replace(TINY, name="quick", seconds=1), replace(TINY, name="slow", seconds=2)
    methods = [METHODS["constant"], METHODS["cosine"]]
    order = plan([quick, slow], methods, [1e-3], [0, 1], factors=[2.0])
    assert [(c.seed, c.task.name, c.method.name, c.factor) for c in order] == [
        (seed, task, method, factor)
        for seed in (0, 1)
        for task in ("slow", "quick")
        for method, factor in (("constant", 1), ("cosine", 1), ("cosine", 2))
    ]


def test_everything_from_the_command_to_the_files(
    tiny: list[Cell], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, results = tmp_path / "docs/picture.png", tmp_path / "results"
    more = ["--save", "--results", str(results), "--picture", str(picture)]
    assert cli.main(command(tmp_path / "out", "--horizon-factor", "2", *more)) == 0
    assert len(tiny) == 2 * (1 + 2) * 2 * 3
    rows = read(tmp_path / "out/rows.csv")
    assert len(rows) == len(tiny)
    assert {row.steps for row in rows} == {5}
    assert len({(row.task, row.seed, row.initial) for row in rows}) == 2 * 3
    (csv,), (page,) = results.glob("lr-robustness-2*.csv"), results.glob("lr-robustness-2*.md")
    assert read(csv) == rows
    said = capsys.readouterr().out
    assert page.read_text(encoding="utf-8") in said
    assert "AdamW cosine to 0, told 2·T" in said
    assert picture.read_bytes()[:4] == (tmp_path / "out/picture.png").read_bytes()[:4] == b"\x89PNG"
    assert cli.main(["--report", str(csv)]) == 0
    again = capsys.readouterr().out
    assert [line for line in said.splitlines() if line.startswith("| AdamW")] == [
        line for line in again.splitlines() if line.startswith("| AdamW")
    ]


def test_a_finished_run_is_not_run_again(tiny: list[Cell], tmp_path: Path) -> None:
    assert cli.main(command(tmp_path, "--seeds", "0")) == 0
    first = list(tiny)
    tiny.clear()
    assert cli.main(command(tmp_path, "--seeds", "0")) == 0
    assert tiny == []
    assert cli.main(command(tmp_path, "--seeds", "0", "1")) == 0
    assert [replace(cell, seed=0) for cell in tiny] == first
    assert {cell.seed for cell in tiny} == {1}


def test_an_interrupted_run_goes_on_where_it_was(
    tiny: list[Cell],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    going = runner.run

    def interrupted(cell: Cell) -> Outcome:
        if len(tiny) == 3:
            raise KeyboardInterrupt
        return going(cell)

    monkeypatch.setattr(runner, "run", interrupted)
    assert cli.main(command(tmp_path)) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert len(read(tmp_path / "rows.csv")) == 3
    with (tmp_path / "rows.csv").open("a") as file:
        file.write("tiny,cosine,1.0,0.0")
    monkeypatch.setattr(runner, "run", going)
    assert cli.main(command(tmp_path)) == 0
    assert len(tiny) == 24
    keys = [row.key for row in read(tmp_path / "rows.csv")]
    assert len(keys) == len(set(keys)) == 24


def test_rows_of_another_definition_stay_and_do_not_count(
    tiny: list[Cell],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(command(tmp_path)) == 0
    old = read(tmp_path / "rows.csv")
    tiny.clear()
    monkeypatch.setattr(cli, "TASKS", TINY_TASKS | {"tiny": replace(TINY, steps=6)})
    capsys.readouterr()
    assert cli.main(command(tmp_path)) == 0
    assert {cell.task.name for cell in tiny} == {"tiny"}
    assert len(tiny) == 12
    rows = read(tmp_path / "rows.csv")
    assert rows[:24] == old
    assert len(rows) == 36
    said = capsys.readouterr()
    assert "12 rows are of an earlier definition" in said.err
    assert "6 steps" in said.out
    assert "24 runs, seeds" in said.out


@dataclass(frozen=True, kw_only=True)
class Broken(Method):
    """Works from one of the rates only."""

    def start(
        self, parameters: Sequence[nn.Parameter], rate: float, horizon: int, seed: int
    ) -> Stepper:
        if rate > 5e-3:
            raise ZeroDivisionError("far too high")
        return METHODS["constant"].start(parameters, rate, horizon, seed)


def test_a_failing_run_is_told_and_tried_again(
    tiny: list[Cell],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cli, "METHODS", {"broken": Broken(name="broken", title="Broken")})
    arguments = ["--out", str(tmp_path), "--workers", "1", "--tasks", "tiny", *RATES]
    for attempts in (6, 9):
        assert cli.main(arguments) == 1
        said = capsys.readouterr().err
        assert "ZeroDivisionError: far too high" in said
        assert "3 runs failed, the first of them tiny broken 1.0 0.01 0" in said
        assert len(read(tmp_path / "rows.csv")) == 3
        assert len(tiny) == attempts


def test_workers_give_the_same_losses() -> None:
    two = plan([TINY], [METHODS["constant"], METHODS["loss"]], [1e-2], [0])
    finals: list[dict[str, float]] = []
    for workers in (1, 2):
        outcomes: dict[str, float] = {}

        def note(cell: Cell, outcome: Outcome, into: dict[str, float] = outcomes) -> None:
            into[cell.method.name] = outcome.final

        assert runner.run_all(two, workers, note) == []
        finals.append(outcomes)
    assert finals[0] == finals[1]
    assert finals[0].keys() == {"constant", "loss"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "digits"], "no task is called 'digits'; there are tiny, small"),
        (["--methods", "sgd"], "no method is called 'sgd'; there are constant, cosine"),
        (["--quick", "--tasks", "tiny"], "--quick chooses the tasks"),
        (["--report", "nowhere.csv"], "nowhere.csv cannot be read"),
        (["--rates", "0"], "must be a finite number above 0, got '0'"),
        (["--rates", "high"], "argument --rates: must be a finite number above 0, got 'high'"),
        (["--horizon-factor", "1"], "1 is the right horizon"),
        (["--seeds", "-1"], "must be a whole number from 0"),
        (["--seeds", "1.5"], "must be a whole number from 0"),
        (["--out", __file__], "rows.csv cannot be written"),
        (["--workers", "0"], "must be a whole number from 1 to 2^62, got '0'"),
    ],
)
@pytest.mark.usefixtures("tiny")
def test_wrong_arguments_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status: Any = cli.main(arguments)
    except SystemExit as leaving:
        status = leaving.code
    assert status == 2
    assert message in capsys.readouterr().err


def test_the_quick_form_has_three_tasks_that_are_there() -> None:
    assert len(QUICK) == 3
    assert all(TASKS[name].device == "cpu" for name in QUICK)


# --- Figures ----------------------------------------------------------------------------------


def rows_of(method: str, rate: float, *finals: float, task: str = "tiny") -> list[Row]:
    row = replace(ROW, task=task, method=method, rate=rate)
    return [replace(row, seed=seed, final=final) for seed, final in enumerate(finals)]


HAND = [
    *rows_of("constant", 1e-3, 1.3, 1.3, 1.3),
    *rows_of("constant", 1e-2, 1.4, 1.4, 1.4),
    *rows_of("cosine", 1e-3, 1.4, 1.4, 1.4),
    *rows_of("cosine", 1e-2, 0.9, 1.0, 1.1),
    *rows_of("cooldown", 1e-3, 0.7, 0.8, 0.9),
    *rows_of("cooldown", 1e-2, 1.0, 1.0, 1.3),
    *rows_of("schedule-free", 1e-3, 1.0, 1.0, 1.0),
    *rows_of("schedule-free", 1e-2, 1.5, 1.5, 1.5),
    *rows_of("alignment", 1e-3, 1.1, 1.3, 1.5),
    *rows_of("alignment", 1e-2, 0.9, 1.0, 1.1),
    *rows_of("alignment-open", 1e-3, 1.3, 1.3, 1.3),
    *rows_of("alignment-open", 1e-2, 1.2, 1.0, 2.5),
]


def test_means_and_paired_ratios_by_hand() -> None:
    (table,) = tables(HAND)
    cell = table.cells[Series("cosine"), 1e-2]
    assert (cell.mean, cell.error) == pytest.approx((1.0, 0.1 / math.sqrt(3)))
    assert table.best(Series("cosine")) == 1e-2
    assert table.worst(Series("cosine")) == 1e-3
    # (1.1, 1.3, 1.5) over (0.9, 1.0, 1.1): what is left over is (−0.07, 0, 0.07).
    worst = table.worst_over_best(Series("alignment"), ["cosine"])
    assert worst == pytest.approx((1.3, 0.07 / math.sqrt(3)))
    # The best of three is cooldown at 1e-3: what is left over is (−0.0375, 0, 0.0375).
    best = table.worst_over_best(Series("alignment"), ["cosine", "cooldown", "schedule-free"])
    assert best == pytest.approx((1.625, 0.0375 / math.sqrt(3) / 0.8))
    assert table.regret(Series("alignment")) == pytest.approx((0.0, 0.0))
    assert table.regret(Series("constant")) == pytest.approx((0.4, 0.14 / math.sqrt(3)))
    assert table.diverged(Series("alignment-open")) == (1, 6)


def test_only_seeds_that_both_have_are_compared() -> None:
    above, below = Mean({0: 2.0, 1: 4.0, 2: 90.0}, 0), Mean({0: 1.0, 1: 2.0, 3: 70.0}, 0)
    assert ratio(above, below) == Estimate(2.0, 0.0)
    assert ratio(Mean({5: 1.0}, 0), below) is None
    single = ratio(Mean({0: 3.0}, 0), below)
    assert single is not None
    assert single.value == 3
    assert math.isnan(single.error)


def line_of(text: str, title: str, heading: str) -> list[str]:
    """The cells of a line under a heading."""
    part = text[text.index(heading) :]
    line = next(line for line in part.splitlines() if line.startswith(f"| {title} "))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_the_report_by_hand() -> None:
    text = report(HAND, "A day.")
    cosine = line_of(text, "AdamW cosine to 0", "## tiny")
    assert cosine == ["1.400(0)", "**1.000(58)**", "1.400(81)", "0.0(0) %", "0 of 6"]
    assert line_of(text, "ours: alignment, no horizon", "## tiny") == [
        "1.300(0)",
        "1.57(47)†",
        "1.57(40)",
        "+57(40) %",
        "1 of 6",
    ]
    assert line_of(text, "ours: alignment, horizon", "## Worst") == ["1.300(40)"]
    assert line_of(text, "tiny", "## The figures") == [
        "1.300(40) ✗",
        "1.625(27) ✗",
        "0.0(0) % ✓",
        "1 ✗",
        "1.21(36) ✗",
    ]
    assert "best-tuned cosine, at most 1.03: reached on 0 of 1 tasks, not on tiny." in text
    assert "best rate, at most 1 %: reached on 1 of 1 tasks." in text
    assert text.endswith(
        "36 runs, seeds 0, 1, 2; 0 minutes of runs; a processor, with a comma; "
        "torch 2; commit abc. A day.\n"
    )


def test_figures_without_their_runs_are_left_open() -> None:
    rows = [row for row in HAND if (row.method, row.rate) != ("alignment", 1e-3)]
    text = report([*rows, *rows_of("plateau", 1e-3, 1.0, math.nan, 1.0)])
    found = line_of(text, "tiny", "## The figures")
    assert found == ["–", "–", "0.0(0) % ✓", "1 ✗", "1.21(36) ✗"]
    assert "best-tuned cosine, at most 1.03: not measured." in text
    plateau = line_of(text, "AdamW, ReduceLROnPlateau", "## tiny")
    assert plateau == ["diverged†", "–", "–", "–", "1 of 3"]


def test_a_line_that_overflows_has_no_finite_ratio() -> None:
    text = report(
        [*HAND, *rows_of("linear", 1e-3, 1, 1, 1), *rows_of("linear", 1e-2, 1, math.inf, 1)]
    )
    linear = line_of(text, "AdamW linear to 0", "## tiny")
    assert linear == ["1.000(0)", "diverged†", "∞", "+∞ %", "1 of 6"]


def test_the_picture_has_every_line(tmp_path: Path) -> None:
    rows = [*HAND, *rows_of("cosine", 1e-3, 50.0, task="other"), *rows_of("gone", 1e-3, math.nan)]
    draw(rows, tmp_path / "all.png")
    draw([row for row in rows if row.method != "cooldown"], tmp_path / "fewer.png")
    draw(
        [replace(row, factor=2.0) for row in rows_of("linear", 1e-3, 1.0)] + rows,
        tmp_path / "a.png",
    )
    pictures = [(tmp_path / name).read_bytes() for name in ("all.png", "fewer.png", "a.png")]
    assert pictures[0] != pictures[1]
    assert pictures[0] == pictures[2]
