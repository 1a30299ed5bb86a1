"""bench.study: the plan is the protocol's, its verdicts by hand, the page, what departs."""

from __future__ import annotations

import math
import re
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from test_bench_tables import is_a as first_two
from test_bench_tables import rows_of

from bench.figures import tables
from bench.machine import RESULTS
from bench.methods import ABLATIONS, METHODS
from bench.run.rows import Row, write
from bench.studies import diagnostics, registration, study, study_report
from bench.studies.diagnostics import Update, correlations
from bench.studies.plan import ALL, FULL, LISTS, QUICK, Part, cells_of, is_a
from bench.studies.study_page import Section, html, markdown, sort_key
from bench.studies.study_report import Study, report
from bench.studies.verdicts import verdicts
from bench.tasks import TASKS

PROTOCOL = Path(study.__file__).with_name("protocol.md").read_text(encoding="utf-8")
OLD_ROWS = RESULTS / "lr-robustness-2026-11-28.csv"
COUNTS = {"all": 18, "main": 13, "few": 6}


# --- The plan ---------------------------------------------------------------------------------


def table_below(heading: str) -> list[list[str]]:
    part = PROTOCOL[PROTOCOL.index(heading) :]
    lines = part[part.index("| ---") :].partition("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_plan_is_the_protocol_s() -> None:
    said = [[row[0], *row[2:]] for row in table_below("## Tasks and budgets")]
    assert said == [
        [
            p.task,
            str(TASKS[p.task].steps),
            p.methods,
            str(len(p.rates)),
            str(p.choose),
            str(p.compare),
        ]
        for p in FULL
    ]
    lists = dict(table_below("## Methods"))
    shown: dict[str, tuple[str, ...]] = {}
    for name, text in lists.items():
        names = text.replace(" and ", ", ").split(", ")
        shown[name] = tuple(m for n in names for m in shown.get(n, (n,)))
    assert shown == LISTS
    assert {name: len(methods) for name, methods in LISTS.items()} == COUNTS
    later = {"distilled", "loss-horizon"}  # than the study's rows
    assert set(ALL) == set(METHODS) - later


def test_seeds_choose_or_compare_and_looking_spoils_nothing() -> None:
    full, quick = ({seed for part in parts for seed in part.seeds()} for parts in (FULL, QUICK))
    assert not full & quick
    assert min(full) >= 3000 > max(quick)
    for part in (*FULL, *QUICK):
        assert [is_a(seed) for seed in part.seeds()] == [True] * part.choose + [
            False
        ] * part.compare
    for first in ("3000", "4000", "1000", "2000"):
        assert f"{first}," in PROTOCOL


def test_the_reference_alone_has_a_finer_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    part = Part("lora", "few", (1e-3, 1e-1), 1, 1)
    found = cells_of([part])
    rates = {
        name: sorted({c.rate for c in found if c.method.name == name}) for name in LISTS["few"]
    }
    assert rates["cosine"] == [1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
    assert rates["prodigy"] == rates["range-test"] == [1e-3, 1e-1]
    assert {cell.looks for cell in found} == {20}
    assert not [cell for cell in found if cell.method.name in ABLATIONS]
    ablated = cells_of([replace(part, task="diabetes")])
    assert {c.method.name for c in ablated if c.method.name in ABLATIONS} == set(ABLATIONS)
    assert len({cell.key for cell in ablated}) == len(ablated)


# --- What came out ----------------------------------------------------------------------------


def rows_for(search: float, prodigy: float, **more: Any) -> list[Row]:
    """The cosine ends at 1.0 from one rate and at 1.5 from the other; 0.01 apart by seed."""
    losses = {
        "cosine": (1.0, 1.5),
        "constant": (1.2, 1.4),
        "prodigy": (prodigy, prodigy),
        "range-test": (search, search),
    }
    found = []
    for at, (name, both) in enumerate(losses.items()):
        for rate, loss in zip((1e-3, 1e-2), both, strict=True):
            finals = [loss + 0.01 * ((seed + at) % 2) for seed in range(5)]
            curves = [(1.5, final) for final in finals]
            found += [
                replace(row, curve=curve, task="lora")
                for row, curve in zip(rows_of(name, rate, *finals, **more), curves, strict=True)
            ]
    return found


@pytest.mark.parametrize(
    ("search", "prodigy", "expected"),
    [
        (0.8, 1.0, "holds holds holds holds not not not not"),
        (1.0, 0.8, "misses misses misses misses not failed not not"),
        (1.25, 1.6, "misses misses misses misses failed not failed not"),
        (2.5, 2.6, "misses misses misses misses failed not failed failed"),
    ],
)
def test_verdicts_by_hand(search: float, prodigy: float, expected: str) -> None:
    lines = verdicts(tables(rows_for(search, prodigy), first_two))
    marks = {"**holds**": "holds", "**does not hold**": "misses", "**it did fail**": "failed"}
    found = [next((v for k, v in marks.items() if k in line), "not") for line in lines]
    assert found == expected.split()


def test_a_difference_within_two_errors_is_a_tie() -> None:
    rows = rows_for(0.99, 1.0)
    assert "**does not hold**" in verdicts(tables(rows, first_two))[1]
    assert (
        "lack the cosine"
        in verdicts(tables([r for r in rows if r.method != "cosine"], first_two))[0]
    )


def update(step: int, lr: float, reward: float, loss: float) -> Update:
    return Update("tiny", step, 1.0, -1.0, lr, 0.9, 0.0, reward, loss)


def test_correlations_by_hand(tmp_path: Path) -> None:
    # Δ log α is 1, −1, 2, each with a Δ̃r of half of it, and worsening where it falls.
    logs, rewards = [0.0, 1.0, 0.0, 2.0], [0.3, 0.5, -0.5, 1.0]
    trace = [
        update(at, math.exp(log), reward, max(-reward, 0))
        for at, (log, reward) in enumerate(zip(logs, rewards, strict=True))
    ]
    found = correlations(trace)
    assert found.reward == pytest.approx(1)
    assert found.loss == pytest.approx(0.944911, rel=1e-5)
    assert found.after == pytest.approx(-1)
    assert found.updates == 3
    assert math.isnan(correlations([update(s, 1.0, 0.1, 0.0) for s in range(4)]).reward)
    path = diagnostics.beside(tmp_path / "rows.csv")
    diagnostics.write(trace, path)
    read = diagnostics.read(path)
    assert [u.step for u in read] == [0, 1, 2, 3]
    assert [u.lr for u in read] == pytest.approx([u.lr for u in trace], rel=1e-6)
    assert diagnostics.read(tmp_path / "absent.csv") == []


def test_a_study_that_was_stopped_before_seeds_b_is_reported() -> None:
    rows = [replace(row, seed=1000 + row.seed) for row in rows_for(0.8, 1.0)]
    sections = report(Study(rows, [], ""), {})
    (task,) = [section for section in sections if section.title.startswith("lora")]
    assert {cell for line in task.lines for cell in line[1:]} == {"–", "0 of 0"}


def test_the_returns_are_those_that_nothing_was_chosen_by(tmp_path: Path) -> None:
    for name, final in (("2026-11-27", 1), ("2026-11-28", 2), ("development-2026-11-29", 3)):
        text = f"task,steps,method,rate,seed,final\nCartPole-v1,60000,adam,0.001,100,{final}\n"
        (tmp_path / f"rl-{name}.csv").write_text(text)
    (section,) = study_report._returns(tmp_path)
    assert "rl-2026-11-28.csv" in section.text[0]
    assert section.lines[0][1:5] == ["60,000", "Adam, annealed", "0.001", "2.0"]


# --- The page ---------------------------------------------------------------------------------


class Reader(HTMLParser):
    """The cells of every table; every address; which elements are open at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.addresses: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.addresses += [str(v) for k, v in attrs if k in ("src", "href", "xlink:href")]
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def test_both_pages_say_the_same_and_need_nothing_else(tmp_path: Path) -> None:
    rows = [replace(r, seed=r.seed + 1000 + 1000 * (r.seed > 1)) for r in rows_for(0.8, 1.0)]
    rows += [replace(r, task="diabetes") for r in rows]
    write(rows, tmp_path / "rows.csv")
    knobs = [update(step, 1e-3 * 1.1**step, 0.1 * step, 0.0) for step in range(5)]
    diagnostics.write(knobs, diagnostics.beside(tmp_path / "rows.csv"))
    assert study.main(["--report", str(tmp_path / "rows.csv"), "--out", str(tmp_path)]) == 0
    text, page = ((tmp_path / f"study.{kind}").read_text() for kind in ("md", "html"))
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    lines = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    cells = [cell.strip().strip("*") for line in lines for cell in line.strip("|").split("|")]
    assert len(cells) > 100
    assert reader.cells == cells
    assert all(address.startswith("#") for address in reader.addresses)
    assert page.count("<svg") == 5
    assert not re.search(r"<link|@import|https?://(?!www\.w3\.org|purl\.org|creativecommons)", page)
    assert page.count('class="ours"') >= 3


def test_text_is_escaped_and_emphasis_kept() -> None:
    section = Section(
        "A <b>", ["x < y, **bold** `a<b` [here](there.md)"], ["m", "n"], [["<i>", "1"]]
    )
    page = html([section])
    assert '<h2 id="s1">A &lt;b&gt;</h2>' in page
    assert "x &lt; y, <b>bold</b> <code>a&lt;b</code> here" in page
    assert '<td data-key="">&lt;i&gt;</td>' in page
    assert markdown([section]).startswith("## A <b>\n\nx < y, **bold**")


@pytest.mark.parametrize(
    ("cell", "key"),
    [
        ("**1.040(24)**", "1.040"),
        ("1.47e+05", "1.47e+05"),
        ("-3(2) %", "-3"),
        ("12 of 21", "12"),
        ("1,234", "1234"),
        ("∞", "inf"),
        ("–", ""),
        ("never", ""),
        ("0.90(2)†", "0.90"),
    ],
)
def test_cells_are_sorted_by_their_number(cell: str, key: str) -> None:
    assert sort_key(cell) == key


# --- What departs from the protocol -----------------------------------------------------------


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three commits: one before the protocol, its own, one after."""
    monkeypatch.setattr(registration, "ROOT", tmp_path)

    def git(*arguments: str) -> str:
        named = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", *named, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "-q")
    commits = []
    for name in ("first", registration.PROTOCOL, "last"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        git("add", "-A")
        git("commit", "-qm", name)
        commits.append(git("rev-parse", "--short=12", "HEAD"))
    return commits


def test_rows_from_before_the_protocol_are_named(history: list[str]) -> None:
    before, own, after = history
    registration.is_ancestor.cache_clear()
    assert own[:7] in registration.registered()
    row = replace(rows_of("cosine", 1e-3, 1.0)[0], seed=4000)
    made = [replace(row, commit=c) for c in (before, own, after, f"{after}+", "unknown")]
    lines = registration.deviations([*made, made[0]])
    assert [line for line in lines if "missing" not in line] == [
        line
        for commit, line in sorted(
            [
                (before, f"- 2 rows are of commit {before}, not known to follow the protocol."),
                (f"{after}+", f"- 1 rows are of commit {after} with files that differed from it."),
                ("unknown", "- 1 rows are of commit unknown, not known to follow the protocol."),
            ]
        )
    ]
    assert sum("of the protocol's runs are missing" in line for line in lines) == len(FULL)
    (quick,) = registration.deviations([replace(row, seed=2000)])
    assert "quick form" in quick


# --- The command ------------------------------------------------------------------------------


def test_from_the_command_to_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = replace(TASKS["diabetes"], steps=20)
    monkeypatch.setitem(study.cells_of.__globals__["STUDY_TASKS"], "diabetes", tiny)
    monkeypatch.setattr(diagnostics, "record", lambda seed: [])
    monkeypatch.setattr(study.pictures, "draw", lambda *_: {})
    out, results = tmp_path / "out", tmp_path / "results"
    arguments = ["--tasks", "diabetes", "--methods", "constant", "cosine", "--seeds", "1"]
    arguments += ["--choose", "1", "--workers", "1", "--out", str(out), "--save"]
    arguments += ["--results", str(results), "--page", str(tmp_path / "page.md")]
    assert study.main(arguments) == 0
    said = capsys.readouterr()
    assert (tmp_path / "page.md").read_text() in said.out
    assert len(list(results.glob("study-quick-*.csv"))) == 2
    before = (out / "rows.csv").read_bytes()
    # Four rates, and half decades between them for the cosine; a seed A and one of B.
    assert before.count(b"\ndiabetes,") == (4 + 7) * 2
    assert study.main(arguments) == 0
    assert (out / "rows.csv").read_bytes() == before
    assert "22 of 22 runs are done already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "digits"], "no task is called 'digits'; there are digits-mlp"),
        (["--methods", "sgd"], "no method is called 'sgd'; there are constant"),
        (["--seeds", "0"], "argument --seeds: must be a whole number from 1"),
        (["--report", "nowhere.csv"], "nowhere.csv cannot be read"),
        (["--report", str(OLD_ROWS), "--out", __file__], "--out .* must be a folder"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study.main(arguments) == 2
    assert re.search(message, capsys.readouterr().err)
