"""bench/run: paired runs, two engines, a file that survives interruptions, the grid's command."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from training import assert_same

from bench.methods import METHODS, Method, Stepper
from bench.run import cells, fingerprint, grid, processes
from bench.run.cells import Cell, Outcome
from bench.run.fingerprint import c_code, python_code, said
from bench.run.grid import plan
from bench.run.processes import in_processes
from bench.run.rows import COLUMNS, EARLIER, Row, Rows, RowsError, newest, read, write
from bench.run.side_by_side import run_together
from bench.studies.grid import ALIGNMENT, LR_ROBUSTNESS, main
from bench.tasks import LAW_TASKS, TASKS, Problem, Task

TINY = replace(TASKS["digits-mlp"], name="tiny", steps=5)
STUDY = replace(
    LR_ROBUSTNESS,
    tasks={"tiny": TINY, "small": replace(TASKS["sines"], name="small", steps=5)},
)
RATES = ["--rates", "1e-3", "1e-2"]


# --- One run ----------------------------------------------------------------------------------


def test_every_method_and_rate_starts_and_goes_on_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[Any]] = []
    loss = Problem.loss

    def watched(problem: Problem, step: int) -> Any:
        if step == 0:
            seen.append([p.detach().clone() for p in problem.objective.parameters()])
        seen[-1].extend(problem.batch(step))
        return loss(problem, step)

    monkeypatch.setattr(Problem, "loss", watched)
    task = replace(TINY, wrong=0.5)  # type: ignore[call-arg]
    for method, rate in (("cosine", 1e-3), ("loss", 1e-1)):
        cells.run(Cell(task, METHODS[method], rate, seed=3))
    assert len(seen[0]) == 4 + 2 * 5
    assert_same(*seen)


def test_a_method_is_told_its_horizon() -> None:
    outcomes = {f: cells.run(Cell(TINY, METHODS["cosine"], 1e-2, 0, f)).final for f in (1, 2, 0.1)}
    assert len(set(outcomes.values())) == 3


@pytest.mark.parametrize("method", ["constant", "cosine", "schedule-free", "loss", "alignment"])
@pytest.mark.parametrize("name", ["digits", "gru"])
def test_cells_side_by_side_are_cells_alone(name: str, method: str) -> None:
    task = replace(LAW_TASKS[name], steps=8)
    group = [Cell(task, METHODS[method], rate, seed) for rate in (1e-3, 0.1) for seed in (1, 2)]
    together, alone = run_together(group), [cells.run(cell) for cell in group]
    assert len({outcome.final for outcome in together}) == 4
    for one, other in zip(together, alone, strict=True):
        assert one.initial == other.initial
        # Products of matrices in batches round otherwise.
        assert one.final == pytest.approx(other.final, rel=1e-4)


@pytest.mark.parametrize("method", ["schedule-free", "loss", "cosine"])
def test_looking_at_a_run_does_not_change_it(method: str) -> None:
    task = replace(TASKS["digits-mlp"], steps=9)
    cell = Cell(task, METHODS[method], 1e-2, seed=1)
    assert [len(steps) for steps in replace(cell, looks=4).stretches] == [2, 2, 3, 2]
    plain, watched = cells.run(cell), cells.run(replace(cell, looks=4))
    assert plain.curve == ()
    assert (watched.initial, watched.final) == (plain.initial, plain.final)
    assert watched.curve[-1] == plain.final
    assert len(set(watched.curve)) == 4
    # A shorter run of the same schedule is where the longer one was.
    until = cells.run(replace(cell, task=replace(task, steps=4), factor=9 / 4))
    assert watched.curve[1] == pytest.approx(until.final, rel=1e-6)
    together = run_together([replace(cell, looks=4), replace(cell, seed=2, looks=4)])[0]
    assert together.curve == pytest.approx(watched.curve, rel=1e-4)


def test_any_method_is_in_the_company_where_so_many_are_asked_for() -> None:
    two = [METHODS["constant"], METHODS["cosine"]]
    found = grid.jobs(plan([TINY], two, [1e-3], range(5)), lambda cell: "vmap", 4)
    assert [[(c.method.name, c.seed) for c in job] for job in found] == [
        [(m.name, seed) for seed in seeds for m in two] for seeds in ((0, 1), (2, 3), (4,))
    ]


def test_more_seeds_leave_the_first_groups_alone() -> None:
    def groups(seeds: int) -> list[list[tuple[str, float, int]]]:
        two = [METHODS["constant"], METHODS["default"]]
        found = grid.jobs(plan([TINY], two, [1e-3, 1e-2], range(seeds)), lambda cell: "vmap")
        return [[(c.method.name, c.rate, c.seed) for c in job] for job in found]

    few, many = groups(14), groups(30)
    assert [len(job) for job in few] == [28, 14]
    assert few[0] in many
    assert {seed for *_, seed in many[0]} == set(range(14))
    # Whoever has a rate of its own runs once, where others run from each.
    assert few[1] == [("default", 1e-3, seed) for seed in range(14)]


@pytest.mark.parametrize(
    ("name", "classes"), [("digits", 10), ("digits-cnn-32", 10), ("logreg", 2)]
)
def test_training_starts_where_nothing_is_known(name: str, classes: int) -> None:
    assert TASKS[name].start(0).held_out_loss() == pytest.approx(math.log(classes), rel=0.1)


def test_workers_give_the_same_losses() -> None:
    two = plan(
        [replace(STUDY.tasks["small"], steps=2)],
        [METHODS["constant"], METHODS["loss"]],
        [1e-2],
        [0],
    )
    finals = []
    for workers in (1, 2):
        results = {
            cell.key: outcome for cell, outcome in in_processes([[cell] for cell in two], workers)
        }
        assert all(isinstance(outcome, Outcome) for outcome in results.values())
        finals.append({key: outcome.final for key, outcome in results.items()})  # type: ignore[union-attr]
    assert finals[0] == finals[1]
    assert len(finals[0]) == 2


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


# --- Fingerprints -----------------------------------------------------------------------------


def test_comments_and_layout_do_not_matter() -> None:
    plain = 'def f(x):\n    if x:\n        y = f"{x + 1} b"\n    return y\n'
    told = (
        '"""Doc."""\n\ndef f(\n    x\n):\n    """More."""\n    if x:  # why\n\n'
        '        y = f"{x + 1} b"\n    return y\n'
    )
    assert python_code(plain) == python_code(told)
    assert python_code(plain) != python_code(plain.replace("    return", "        return"))
    assert python_code(plain) != python_code(plain.replace("1", "2"))
    assert c_code("a = 1; // b\n/* c\n*/ d") == c_code("a=1;d")
    assert c_code("a = 1") != c_code("a = 2")


def test_a_fingerprint_is_of_the_task_the_method_and_the_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs = [
        (TINY, METHODS["cosine"]),
        (TINY, METHODS["linear"]),
        (replace(TINY, steps=6), METHODS["cosine"]),
        (replace(TINY, wrong=0.1), METHODS["cosine"]),  # type: ignore[call-arg]
        (replace(TINY, net=TASKS["digits-cnn"].net), METHODS["cosine"]),  # type: ignore[attr-defined, call-arg]
        (STUDY.tasks["small"], METHODS["cosine"]),
    ]
    prints = [fingerprint.fingerprint(*pair) for pair in pairs]
    assert len(set(prints)) == len(pairs)
    assert prints == [fingerprint.fingerprint(*pair) for pair in pairs]
    assert fingerprint.fingerprint(replace(TINY, seconds=9.0), METHODS["cosine"]) == prints[0]
    assert not [
        item for item in map(said, [*TASKS.values(), *METHODS.values()]) if " at 0x" in item
    ]
    ours = fingerprint.fingerprint(TINY, METHODS["loss"])
    real = fingerprint._code
    law = next(path for path in fingerprint._project() if path.suffix == ".h")
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
    rows.append(replace(ROW, seed=3, curve=(1.25, math.inf, 1234.0)))
    with Rows(tmp_path / "deep/rows.csv") as store:
        for row in rows:
            store.append(row)
    assert read(tmp_path / "deep/rows.csv") == rows
    write(rows, tmp_path / "copy.csv")
    assert (tmp_path / "copy.csv").read_bytes() == (tmp_path / "deep/rows.csv").read_bytes()


@pytest.mark.parametrize(("kept", "cut"), [(1, 1), (1, 20), (1, 60), (0, 160)])
def test_a_torn_last_line_is_dropped_and_written_over(tmp_path: Path, kept: int, cut: int) -> None:
    path = tmp_path / "rows.csv"
    write([ROW, replace(ROW, seed=1)][: kept + 1], path)
    path.write_bytes(path.read_bytes()[:-cut])
    assert read(path) == [ROW] * kept
    with Rows(path) as store:
        store.append(replace(ROW, seed=2))
    assert read(path) == [*[ROW] * kept, replace(ROW, seed=2)]


def test_rows_of_before_are_read_and_not_added_to(tmp_path: Path) -> None:
    kept = Path(__file__).parents[1] / "bench/results/lr-robustness-2026-11-28.csv"
    rows = read(kept)
    assert len(rows) == 2331
    assert {(row.threads, row.python, row.engine) for row in rows} == {(1, "", "processes")}
    path = tmp_path / "rows.csv"
    path.write_text(f"{','.join(EARLIER[0])}\n")
    with pytest.raises(RowsError, match="of an earlier version, with fewer columns"):
        Rows(path)


LINE = ",".join(map(str, astuple(replace(ROW, device="d"))[:-1])) + ","


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n", r"has the columns a, b; expected task, .* move it away"),
        (f"{','.join(COLUMNS)}\ntiny,cosine\n", r"line 2: 'tiny,cosine' is not a row"),
        (
            f"{','.join(COLUMNS)}\n{LINE}\n{LINE.replace('0.001', 'x')}\n",
            r"line 3: .* is not a row .*take the line out",
        ),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    for use in (read, Rows):
        with pytest.raises(RowsError, match=message):
            use(path)
    assert path.read_text() == text


def test_of_one_fingerprint_the_last_row_counts() -> None:
    old, new = replace(ROW, fingerprint="old"), replace(ROW, fingerprint="new")
    other = replace(ROW, method="linear", fingerprint="old")
    better = replace(new, final=0.5)
    assert newest([replace(old, seed=1), old, other, new, better]) == [other, better]


# --- The command ------------------------------------------------------------------------------


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """The cells that are run."""
    cells_run: list[Cell] = []

    def run(cell: Cell) -> Outcome:
        cells_run.append(cell)
        return cells.run(cell)

    monkeypatch.setattr(processes, "run", run)
    return cells_run


def command(out: Path, *more: str) -> list[str]:
    methods = ["--methods", "constant", "cosine", "--seeds", "0", "1", "2"]
    return ["--out", str(out), "--workers", "1", *methods, *RATES, *more]


def test_everything_from_the_command_to_the_files(
    ran: list[Cell], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, results = tmp_path / "docs/picture.png", tmp_path / "results"
    more = ["--save", "--results", str(results), "--picture", str(picture)]
    assert main(STUDY, command(tmp_path / "out", "--horizon-factor", "2", *more)) == 0
    assert len(ran) == 2 * (1 + 2) * 2 * 3
    rows = read(tmp_path / "out/rows.csv")
    assert len(rows) == len(ran)
    assert {row.steps for row in rows} == {5}
    assert len({(row.task, row.seed, row.initial) for row in rows}) == 2 * 3
    (csv,), (page,) = results.glob("lr-robustness-2*.csv"), results.glob("lr-robustness-2*.md")
    assert read(csv) == rows
    said = capsys.readouterr().out
    assert page.read_text(encoding="utf-8") in said
    assert "AdamW cosine to 0, told 2·T" in said
    assert picture.read_bytes()[:4] == (tmp_path / "out/picture.png").read_bytes()[:4] == b"\x89PNG"
    assert main(STUDY, ["--report", str(csv)]) == 0
    again = capsys.readouterr().out
    assert [line for line in said.splitlines() if line.startswith("| AdamW")] == [
        line for line in again.splitlines() if line.startswith("| AdamW")
    ]


def test_seeds_that_choose_are_compared_on_nothing(
    ran: list[Cell], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cosines = ["--cosine-rates", "1e-4", "1e-2", "--choose-on", "7", "8", "--beside", "constant"]
    more = ["--tasks", "tiny", "--longer", "2", *cosines]
    assert main(STUDY, [*command(tmp_path, *more), "--engine", "vmap", "--together", "9"]) == 0
    assert ran == [], "all were trained side by side"
    rows = read(tmp_path / "rows.csv")
    assert {(row.task, row.steps) for row in rows} == {("tiny-2x", 10)}
    by = {(row.method, row.seed in (7, 8)): set[float]() for row in rows}
    for row in rows:
        by[row.method, row.seed in (7, 8)].add(row.rate)
    assert by == {
        ("cosine", True): {1e-4, 1e-2},
        ("cosine", False): {1e-2},  # the better one on 7 and 8
        ("constant", True): {1e-3, 1e-2},  # best and worst starts are chosen there, too
        ("constant", False): {1e-3, 1e-2},
    }
    said = capsys.readouterr().out
    below = said[said.index("## All starts ÷ AdamW constant") :].splitlines()
    assert [line.split("|")[2].strip() for line in below[4:6]] == ["1.000(0)", "–"]
    assert "chosen on seeds that nothing is compared on" in said


def test_rows_carry_what_made_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "commit", lambda: "0123456789ab+")
    small = {"digits": replace(LAW_TASKS["digits"], steps=3)}
    study = replace(ALIGNMENT, tasks=small)
    arguments = ["--quick", "--methods", "cosine", "alignment", *RATES, "--seeds", "0"]
    assert main(study, [*arguments, "--workers", "1", "--out", str(tmp_path)]) == 0
    rows = read(tmp_path / "rows.csv")
    assert {(row.method, row.rate) for row in rows} == {
        (method, rate) for method in ("cosine", "alignment") for rate in (1e-3, 1e-2)
    }
    assert {(row.commit, row.threads, row.engine) for row in rows} == {("0123456789ab+", 1, "vmap")}
    assert all(row.python and row.torch and row.device for row in rows)


def test_an_interrupted_run_goes_on_where_it_was(
    ran: list[Cell],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    going = processes.run

    def interrupted(cell: Cell) -> Outcome:
        if len(ran) == 3:
            raise KeyboardInterrupt
        return going(cell)

    monkeypatch.setattr(processes, "run", interrupted)
    assert main(STUDY, command(tmp_path)) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert len(read(tmp_path / "rows.csv")) == 3
    with (tmp_path / "rows.csv").open("a") as file:
        file.write("tiny,cosine,1.0,0.0")
    monkeypatch.setattr(processes, "run", going)
    assert main(STUDY, command(tmp_path)) == 0
    keys = [row.key for row in read(tmp_path / "rows.csv")]
    assert len(ran) == len(keys) == len(set(keys)) == 24


def finals(out: Path) -> dict[Any, Any]:
    rows = read(out / "rows.csv")
    assert len({row.key for row in rows}) == len(rows)
    return {row.key: (row.final, row.curve) for row in rows}


def test_killed_twice_side_by_side_it_ends_with_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = [METHODS["constant"], METHODS["loss"]]
    every = plan([TINY], methods, [1e-3, 1e-2], range(3), looks=2)

    def went(folder: str) -> None:
        with Rows(tmp_path / folder / "rows.csv") as store:
            assert grid.complete(store, every, 1, "vmap") == []

    went("undisturbed")
    append, stops = Rows.append, {4, 9}

    def killed(store: Rows, row: Row) -> None:
        if len(store.rows) in stops:
            stops.remove(len(store.rows))
            raise KeyboardInterrupt
        append(store, row)

    monkeypatch.setattr(Rows, "append", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            went("killed")
        with (tmp_path / "killed/rows.csv").open("a") as file:
            file.write("tiny,loss,1.0,0.0")
    went("killed")
    assert not stops
    assert finals(tmp_path / "killed") == finals(tmp_path / "undisturbed")
    assert len(finals(tmp_path / "killed")) == 12


def test_rows_of_another_definition_stay_and_do_not_count(
    ran: list[Cell], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(STUDY, command(tmp_path)) == 0
    old = read(tmp_path / "rows.csv")
    ran.clear()
    capsys.readouterr()
    changed = replace(STUDY, tasks={**STUDY.tasks, "tiny": replace(TINY, steps=6)})
    assert main(changed, command(tmp_path)) == 0
    assert {cell.task.name for cell in ran} == {"tiny"}
    rows = read(tmp_path / "rows.csv")
    assert rows[:24] == old
    assert len(rows) == 24 + len(ran) == 36
    said = capsys.readouterr()
    assert "12 of 24 runs are done already" in said.err
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
    ran: list[Cell], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = replace(STUDY, methods={"broken": Broken(name="broken")})
    arguments = ["--out", str(tmp_path), "--workers", "1", "--tasks", "tiny", *RATES]
    arguments += ["--seeds", "0", "1", "2"]
    for attempts in (6, 9):
        assert main(broken, arguments) == 1
        said = capsys.readouterr().err
        assert "ZeroDivisionError: far too high" in said
        assert "3 runs failed, the first of them tiny broken 1.0 0.01 0" in said
        assert len(read(tmp_path / "rows.csv")) == 3
        assert len(ran) == attempts


class Absent(Task):
    """Cannot run anywhere."""

    def missing(self) -> str:
        return "it needs the moon"

    def start(self, seed: int) -> Problem:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "digits"], "no task is called 'digits'; there are tiny, small"),
        (["--methods", "sgd"], "no method is called 'sgd'; there are default, constant, cosine"),
        (["--quick", "--tasks", "tiny"], "--quick chooses the tasks"),
        (["--tasks", "absent"], "absent is left out: it needs the moon.\nno task is left to run"),
        (["--report", "nowhere.csv"], "nowhere.csv cannot be read"),
        (["--rates", "0"], "argument --rates: must be a number from 1e-12 to 1e+12, got '0'"),
        (["--horizon-factor", "1"], "1 is the right horizon"),
        (["--out", __file__], "rows.csv cannot be written"),
        (["--workers", "0"], "must be a whole number from 1"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study = replace(STUDY, tasks={**STUDY.tasks, "absent": Absent(name="absent", steps=1, batch=1)})
    assert main(study, arguments) == 2
    assert message in capsys.readouterr().err
