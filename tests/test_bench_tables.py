"""bench/figures, tables and pictures: means, ratios and lines by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from bench.figures import Cell, Estimate, Series, ratio, tables
from bench.run.rows import Row, newest, read
from bench.tables import report

RESULTS = Path(__file__).parents[1] / "bench/results"


def rows_of(method: str, rate: float, *finals: float, task: str = "tiny") -> list[Row]:
    """One row per final loss; all began at 2.0."""
    made = "one", 5, "a processor", "2", "abc"
    return [
        Row(task, method, 1.0, rate, seed, 2.0, final, 0.5, *made)
        for seed, final in enumerate(finals)
    ]


HAND = [
    *rows_of("constant", 1e-3, 1.3, 1.3, 1.3),
    *rows_of("constant", 1e-2, 1.4, 1.4, 1.4),
    *rows_of("cosine", 1e-3, 1.4, 1.4, 1.4),
    *rows_of("cosine", 1e-2, 0.9, 1.0, 1.1),
    *rows_of("cooldown", 1e-3, 0.7, 0.8, 0.9),
    *rows_of("cooldown", 1e-2, 1.0, 1.0, 1.3),
    *rows_of("alignment", 1e-3, 1.1, 1.3, 1.5),
    *rows_of("alignment", 1e-2, 0.9, 1.0, 1.1),
    *rows_of("alignment-open", 1e-3, 1.3, 1.3, 1.3),
    *rows_of("alignment-open", 1e-2, 1.2, 1.0, 2.5),
]


def test_means_and_paired_ratios_by_hand() -> None:
    (table,) = tables(HAND)
    cell = table.cells[Series("cosine"), 1e-2]
    assert (cell.mean, cell.error) == pytest.approx((1.0, 0.1 / math.sqrt(3)))
    assert table.extreme(Series("cosine"), min) == 1e-2
    assert table.extreme(Series("cosine"), max) == 1e-3
    # (1.1, 1.3, 1.5) over (0.9, 1.0, 1.1): what is left over is (−0.07, 0, 0.07).
    worst = table.worst_over_best(Series("alignment"), "cosine")
    assert worst == pytest.approx((1.3, 0.07 / math.sqrt(3)))
    assert table.worst_over_best(Series("alignment"), "linear") is None
    assert table.regret(Series("alignment")) == pytest.approx((0.0, 0.0))
    assert table.regret(Series("constant")) == pytest.approx((0.4, 0.14 / math.sqrt(3)))
    assert table.diverged(Series("alignment-open")) == (1, 6)


def test_only_seeds_that_both_have_are_compared() -> None:
    above, below = Cell({0: 2.0, 1: 4.0, 2: 90.0}, 0), Cell({0: 1.0, 1: 2.0, 3: 70.0}, 0)
    assert ratio(above, below) == Estimate(2.0, 0.0)
    assert ratio(Cell({5: 1.0}, 0), below) is None
    single = ratio(Cell({0: 3.0}, 0), below)
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
        *("1.300(0)", "1.57(47)†", "1.57(40)", "+57(40) %", "1 of 6")
    ]
    assert line_of(text, "ours: alignment, horizon", "## Worst cell ÷ best-tuned cosine") == [
        "1.300(40)"
    ]
    over_constant = text.index("## Worst cell ÷ best-tuned constant rate")
    assert line_of(text[over_constant:], "ours: alignment, no horizon", "##") == ["1.21(36)"]
    assert text.endswith(
        "30 runs, seeds 0, 1, 2; 0 minutes of runs; a processor; torch 2; commit abc. A day.\n"
    )


def test_figures_without_their_runs_are_left_open() -> None:
    rows = [row for row in HAND if (row.method, row.rate) != ("alignment", 1e-3)]
    text = report([*rows, *rows_of("plateau", 1e-3, 1.0, math.nan, 1.0)])
    ours = line_of(text, "ours: alignment, horizon", "## tiny")
    assert ours == ["–", "1.000(58)", "–", "0.0(0) %", "0 of 3"]
    plateau = line_of(text, "AdamW, ReduceLROnPlateau", "## tiny")
    assert plateau == ["diverged†", "–", "–", "–", "1 of 3"]


@pytest.mark.parametrize("kept", sorted(RESULTS.glob("lr-robustness-*.csv")), ids=lambda p: p.stem)
def test_a_kept_report_s_tables_are_those_of_its_rows(kept: Path) -> None:
    """To the letter: docs/finding-the-rate.md quotes them."""
    then, now = (
        [line for line in text.partition("## The figures")[0].splitlines() if line[:1] in "|#"]
        for text in (kept.with_suffix(".md").read_text(), report(newest(read(kept))))
    )
    assert then == now[: len(then)]
    assert now[len(then) :][:1] in ([], ["## Worst cell ÷ best-tuned constant rate"])
