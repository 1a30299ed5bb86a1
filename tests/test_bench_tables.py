"""bench/figures, tables and pictures: the estimator, its ratios and lines by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from bench.figures import (
    Estimate,
    Series,
    area,
    difference,
    estimate,
    final,
    heights,
    ratio,
    tables,
    time_to,
    together,
)
from bench.run.rows import Row, newest, read
from bench.tables import report

RESULTS = Path(__file__).parents[1] / "bench/results"


def row(method: str, rate: float, seed: int, last: float, **more: Any) -> Row:
    """It began at 2.0."""
    made: Any = {"fingerprint": "one", "steps": 5, "device": "d", "torch": "2", "commit": "abc"}
    usual = {"factor": 1.0, "rate": rate, "seed": seed, "initial": 2.0, "final": last}
    return Row(**{"task": "tiny", "method": method, "seconds": 0.5, **usual, **made, **more})


def is_a(seed: int) -> bool:
    return seed < 2


def rows_of(method: str, rate: float, *finals: float, **more: Any) -> list[Row]:
    """One row per final loss; seeds 0 and 1 are A, the others B."""
    return [row(method, rate, seed, last, **more) for seed, last in enumerate(finals)]


# On seeds A the cosine is best at 1e-3 and the alignment worst there; on seeds B it is otherwise.
HAND = [
    *rows_of("constant", 1e-3, 1.0, 1.0, 1.2, 1.2, 1.2),
    *rows_of("constant", 1e-2, 1.1, 1.1, 0.9, 0.9, 0.9),
    *rows_of("cosine", 1e-3, 0.9, 0.9, 1.0, 0.8, 1.25),
    *rows_of("cosine", 1e-2, 0.9, 1.1, 0.1, 0.1, 0.1),
    *rows_of("alignment", 1e-3, 1.4, 1.4, 0.5, 0.8, 1.25),
    *rows_of("alignment", 1e-2, 1.3, 1.3, 2.0, 1.6, 2.5),
]
LOGS = [0.0, math.log(2)]


def test_what_is_chosen_is_chosen_on_seeds_a_and_measured_on_seeds_b() -> None:
    (table,) = tables(HAND, is_a)
    (fold,) = table.folds
    assert table.reference_rate(fold) == 1e-3
    reference = table.reference()
    assert reference is not None
    assert set(reference.runs) == {2, 3, 4}
    ours = Series("alignment")
    assert (table.start(ours, max, fold), table.start(ours, min, fold)) == (1e-3, 1e-2)
    # Over 1.0, 0.8, 1.25 from 1e-3: 0.5, 1, 1; from 1e-2: 2, 2, and 2.5, which diverged, over 1.25.
    half = math.log(2)
    worst, best = table.from_start(ours, max), table.from_start(ours, min)
    assert worst == pytest.approx({2: -half, 3: 0, 4: 0})
    assert best == pytest.approx({2: half, 3: half, 4: math.log(2 / 1.25)})
    every = table.over_all_starts(ours)
    assert every == pytest.approx({2: 0, 3: half / 2, 4: math.log(1.6) / 2})
    values = [0, half / 2, math.log(1.6) / 2]
    mean = sum(values) / 3
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / 2 / 3)
    found = ratio(every)
    assert found == pytest.approx((math.exp(mean), math.exp(mean) * spread))
    assert table.diverged(ours) == (1, 6)
    assert [row.final for row in table.runs_from(ours, min)] == [2.0, 1.6, 2.5]


def test_where_nobody_names_seeds_a_each_is_compared_with_what_the_others_choose() -> None:
    # At 1e-2 the cosine is much better with seed 2, and worse with the others.
    rows = [
        *rows_of("cosine", 1e-3, 1.0, 1.0, 1.0),
        *rows_of("cosine", 1e-2, 1.2, 1.2, 0.2),
        *rows_of("constant", 1e-3, 0.5, 0.5, 1.0),
        *rows_of("constant", 1e-2, 1.0, 1.0, 0.1),
    ]
    (table,) = tables(rows)
    assert [table.reference_rate(fold) for fold in table.folds] == [1e-2, 1e-2, 1e-3]
    best = table.from_start(Series("constant"), min)
    # Without seed 0: means 0.75 and 0.55; without seed 2: 0.5 and 1.0.
    expected = {0: math.log(1.0 / 1.2), 1: math.log(1.0 / 1.2), 2: 0.0}
    assert best == pytest.approx(expected)
    reference = table.reference()
    assert reference is table.cells[Series("cosine"), 1e-2]
    assert set(reference.runs) == {0, 1, 2}


def test_the_reference_may_have_rates_that_nobody_starts_from() -> None:
    (table,) = tables([*HAND, *rows_of("cosine", 3e-3, 0.5, 0.5, 0.6, 0.6, 0.6)], is_a)
    assert table.rates == [1e-3, 1e-2]
    assert table.reference_rate(table.folds[0]) == 3e-3


def test_a_method_of_a_fixed_rate_is_at_every_start_the_same() -> None:
    (table,) = tables([*HAND, *rows_of("default", 1e-3, 1.0, 1.0, 1.0, 1.0, 1.0)], is_a)
    assert table.rates == [1e-3, 1e-2]
    every, best = table.over_all_starts(Series("default")), table.from_start(Series("default"), min)
    assert every == best == pytest.approx({2: 0, 3: math.log(1.25), 4: -math.log(1.25)})
    assert table.diverged(Series("default")) == (0, 3)


@pytest.mark.parametrize("missing", [("alignment", 1e-3), ("cosine", None)])
def test_without_its_runs_there_is_no_figure(missing: tuple[str, float | None]) -> None:
    method, rate = missing
    rest = [r for r in HAND if r.method != method or rate not in (None, r.rate)]
    (table,) = tables(rest, is_a)
    assert table.over_all_starts(Series("alignment")) is None
    assert table.from_start(Series("alignment"), max) is None
    assert ratio(None) is None


def test_only_seeds_that_both_have_are_compared() -> None:
    (table,) = tables([*HAND, row("alignment", 1e-3, 9, 1.0)], is_a)
    logs = table.from_start(Series("alignment"), max)
    assert logs is not None
    assert set(logs) == {2, 3, 4}
    assert difference({1: 3.0, 2: 1.0}, {2: 0.5, 7: 0.0}) == {2: 0.5}
    assert difference({1: 3.0}, {2: 0.5}) is difference(None, {2: 0.5}) is None


def test_tasks_count_alike_and_their_errors_are_independent() -> None:
    # Means 0.5·log 2 and 0, errors 0.5·log 2 and 0: half of the square root of the squares.
    both = together([dict(enumerate(LOGS)), {0: 0.0, 1: 0.0, 2: 0.0}])
    value, error = 0.25 * math.log(2), 0.25 * math.log(2)
    assert both == pytest.approx((math.exp(value), math.exp(value) * error))
    assert together([{0: 0.0}, None]) is together([]) is None
    assert math.isnan(estimate([3.0]).error)
    assert Estimate(0.0, 0.5).exponential() == (1.0, 0.5)


@pytest.mark.parametrize("bad", [2.5, math.inf, math.nan])
def test_what_diverged_counts_as_untrained(bad: float) -> None:
    wild = row("loss", 1e-3, 0, bad, curve=(1.0, bad))
    assert final(wild) == 2.0
    assert heights(wild) == [2.0, 1.0, 2.0]
    assert area(wild) == pytest.approx(1.5)


def test_curves_by_hand() -> None:
    falling = row("loss", 1e-3, 0, 0.5, curve=(1.0, 0.6, 0.5, 0.5))
    assert area(falling) == pytest.approx((1.5 + 0.8 + 0.55 + 0.5) / 4)
    times = {target: time_to(falling, target) for target in (2.0, 1.5, 1.0, 0.8, 0.5, 0.4)}
    assert times == pytest.approx({2: 0, 1.5: 0.125, 1: 0.25, 0.8: 0.375, 0.5: 0.75, 0.4: math.inf})


def line_of(text: str, title: str, heading: str) -> list[str]:
    """The cells of a line under a heading."""
    part = text[text.index(heading) :]
    line = next(line for line in part.splitlines() if line.startswith(f"| {title} "))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_the_target_is_the_constant_rate_s_on_seeds_a() -> None:
    curves = {"curve": (1.5, 1.0)}
    (table,) = tables([*HAND, *rows_of("loss", 1e-3, 1.0, 1.0, 1.0, **curves)], is_a)
    # 1.0 at 1e-3, which seeds A find better than 1.1 at 1e-2.
    assert table.times(Series("loss")) == [1.0]
    (without,) = tables([r for r in HAND if r.method != "constant"], is_a)
    assert without.times(Series("alignment")) is None


def test_the_report_by_hand() -> None:
    text = report(HAND, "A day.", is_a)
    cosine = line_of(text, "AdamW cosine to 0", "## tiny")
    # All starts: the square root of 1 and 0.1, by seed over 1, 0.8 and 1.25.
    assert cosine == ["**1.02(13)**", "0.100(0)", "0.316(20)", "0.100(13)", "1.000(0)", "0 of 6"]
    assert line_of(text, "AdamW constant", "## tiny")[:2] == ["1.200(0)", "0.900(0)"]
    ours = line_of(text, "ours: alignment, horizon", "## tiny")
    assert ours[1].endswith("†")
    assert ours[-1] == "1 of 6"
    assert line_of(text, "ours: alignment, horizon", "## Worst start")[0] == ours[-3]
    assert text.endswith(
        "30 runs, seeds 0, 1, 2, 3, 4; 0 minutes of runs; d; torch 2; commit abc. A day.\n"
    )


def test_where_nothing_is_chosen_every_seed_is_shown() -> None:
    text = report([r for r in HAND if r.method == "constant"])
    assert line_of(text, "AdamW constant", "## tiny")[:4] == ["1.120(49)", "0.980(49)", "–", "–"]
    assert "best-tuned cosine\n" not in text


@pytest.mark.parametrize("kept", sorted(RESULTS.glob("lr-robustness-*.csv")), ids=lambda p: p.stem)
def test_a_kept_report_s_tables_are_those_of_its_rows(kept: Path) -> None:
    """To the letter: docs/finding-the-rate.md quotes them."""
    then, now = (
        [line for line in text.splitlines() if line[:1] in "|#"]
        for text in (kept.with_suffix(".md").read_text(), report(newest(read(kept))))
    )
    assert then == now
