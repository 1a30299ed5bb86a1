"""README.md and docs/: links lead somewhere; tests, commands and numbers are those there are."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pages import RECORDS, ROOT, WRITTEN, read
from test_method import anchors, without_code

WITH_TESTS = {"docs/frameworks.md": 25, "docs/differences.md": 60, "docs/adamw.md": 35}
"""Pages whose every claim names its test, and how many that is at least"""


# Links --------------------------------------------------------------------------------------------


def dead_links(page: str, text: str) -> list[str]:
    """Links of a page that lead to no file of the repository, or to no heading of a page."""
    prose = re.sub(r"`[^`\n]*`", "", without_code(text))
    links = re.findall(r"\]\(([^)\s]+)\)", prose)
    return [link for link in links if "://" not in link and not leads_somewhere(page, link)]


def leads_somewhere(page: str, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
    if not target.is_file() or not target.is_relative_to(ROOT):
        return False
    return not anchor or anchor in anchors(target.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", [*WRITTEN, *RECORDS])
def test_links_lead_somewhere(page: str) -> None:
    assert not dead_links(page, read(page))


def test_a_dead_link_is_found() -> None:
    text = "[a](method.md) [b](guide.md#no-such) [c](gone.md) [d](#no) `[e](f)`\n"
    assert dead_links("docs/guide.md", text) == ["guide.md#no-such", "gone.md", "#no"]


# Tests that pages name ----------------------------------------------------------------------------

NAMED = re.compile(r"`(test_\w+|…)(?:\.py)?::(test_\w+)`")
IN_ANY_FORM = re.compile(r"(?:\w|…)::")
FILE = re.compile(r"`(?:tests/)?(test_\w+)\.py`")


@functools.cache
def named_in(name: str) -> set[str]:
    path = ROOT / "tests" / f"{name}.py"
    if not path.exists():
        return set()
    found = ast.parse(path.read_text(encoding="utf-8")).body
    return {node.name for node in found if isinstance(node, ast.FunctionDef)}


def named(text: str) -> Iterator[tuple[str, str]]:
    """Files and tests, where … is the file that was named before."""
    last = ""
    for file, test in NAMED.findall(text):
        last = last if file == "…" else file
        yield last, test


@pytest.mark.parametrize("page", [*WRITTEN, "CHANGELOG.md"])
def test_every_test_that_a_page_names_exists(page: str) -> None:
    text = read(page)
    tests = list(named(text))
    assert len(tests) >= WITH_TESTS.get(page, 0)
    assert len(tests) == len(IN_ANY_FORM.findall(text)), "one is written in another way"
    missing = {f"{file}::{test}" for file, test in tests if test not in named_in(file)}
    missing |= {f"{file}.py" for file in FILE.findall(text) if not named_in(file)}
    assert not missing, "\n".join(sorted(missing))


# Commands that pages name -------------------------------------------------------------------------

GONE = re.compile(r"last (?:commit with|in commit)")
"""What a paragraph says of a command that was there once"""
COMMAND = re.compile(
    r"(?:\$ )?(?:[A-Z_]+=\S+ )*((?:make|python|torchrun|pytest|bench/\S+\.sh)(?: .*)?)"
)


def commands(text: str) -> Iterator[str]:
    """Command lines between backticks and in blocks of code, without the variables before them."""
    fenced = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    blocks = [block for language, block in fenced.findall(text) if not language]
    prose = [part for part in fenced.sub("", text).split("\n\n") if not GONE.search(part)]
    code = [" ".join(s.split()) for part in prose for s in re.findall(r"`([^`]+)`", part)]
    for line in [*code, *(line for block in blocks for line in block.splitlines())]:
        if found := COMMAND.fullmatch(line):
            yield re.sub(r"\s+#.*", "", found[1])


def unknown(command: str) -> list[str]:
    """What a command names that is not there: a target, a module, an option, a file."""
    program, *words = command.split()
    if program == "make":
        targets = [word for word in words[:1] if "=" not in word]
        return [name for name in targets if not re.search(rf"^{name}:", read("Makefile"), re.M)]
    files = [w for w in [program, *words] if w.startswith(("bench/", "tests/", "examples/"))]
    lost = [file for file in files if not (ROOT / file).exists()]
    if "-m" not in words or program == "pytest":
        return lost
    module, *options = words[words.index("-m") + 1 :]
    if importlib.util.find_spec(module) is None:
        return [*lost, module]
    package = module.partition(".")[0]
    return lost + [o for o in options if o.startswith("--") and not is_option(package, o)]


@functools.cache
def is_option(package: str, option: str) -> bool:
    name = option.partition("=")[0]
    return any(f'"{name}"' in path.read_text("utf-8") for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("page", WRITTEN)
def test_every_command_that_a_page_names_exists(page: str) -> None:
    assert not [(line, u) for line in commands(read(page)) if (u := unknown(line))]


def test_the_front_page_names_commands() -> None:
    lines = list(commands(read("README.md")))
    assert "make demo LR=1e-4" in lines
    assert len(lines) > 10


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("`make nothing`", ["nothing"]),
        ("```\nLR=1 make nothing\n```", ["nothing"]),
        ("`python -m bench.nothing --save`", ["bench.nothing"]),
        ("`OMP_NUM_THREADS=1 python -m bench.step --nothing`", ["--nothing"]),
        ("```\n$ bench/nothing.sh --check\n```", ["bench/nothing.sh"]),
        ("`make demo LR=1e-4` and `python -m bench.step --rounds 31`", []),
        ("`python -m bench.gone`, the last commit with it is abc", []),
    ],
)
def test_a_command_that_is_not_there_is_found(text: str, found: list[str]) -> None:
    assert [u for line in commands(text) for u in unknown(line)] == found


def test_what_pages_say_to_install_is_what_the_package_asks_for() -> None:
    """Frameworks with their versions; extras, where a page has them, by name."""
    asked = read("pyproject.toml")
    text = "\n".join(map(read, WRITTEN))
    versions = set(re.findall(r"'(\w+>=[\d.]+)'", text))
    assert len(versions) >= 3
    assert not [version for version in versions if f'"{version}"' not in asked]
    for extra in re.findall(r"adaptiverl\[(\w+)\]", text):
        assert re.search(rf"^{extra} = \[", asked, re.MULTILINE), extra


# Numbers that pages quote -------------------------------------------------------------------------

ANY, WORST = "### From any of the starts", "### From the worst start"


def rows(text: str, below: str = "") -> dict[str, list[str]]:
    """A page's table lines below a heading: the first cell, and the others, without emphasis."""
    part = text[text.index(below) + len(below) :] if below else text
    lines = (line for line in re.split(r"\n##+ ", part)[0].splitlines() if line[:1] == "|")
    cells = ([cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines)
    return {first: others for first, *others in cells}


def leading(cells: list[str]) -> tuple[float, float]:
    """The least and the greatest of numbers such as 1.040(24)."""
    numbers = [float(cell.partition("(")[0]) for cell in cells]
    return min(numbers), max(numbers)


@pytest.mark.parametrize(
    ("section", "reported"),
    [(ANY, "## All starts ÷ best-tuned cosine"), (WORST, "## Worst start ÷ best-tuned cosine")],
)
def test_the_tables_of_starting_rates_are_those_of_the_reports(section: str, reported: str) -> None:
    shown = rows(read("docs/finding-the-rate.md"), section)
    most = rows(read("bench/results/lr-robustness-2026-11-28.md"), reported)
    larger = rows(read("bench/results/lr-robustness-gpt-0.2m-2026-11-28.md"), reported)
    methods = [name for name in most if name.startswith(("AdamW", "ours", "Schedule", "Prodigy"))]
    assert len(methods) == 14
    for method in methods:
        first, *others, _ = most[method]
        assert shown[method] == [first, *larger[method], *others], method


def test_the_front_page_says_of_starting_rates_what_that_table_says() -> None:
    shown = rows(read("docs/finding-the-rate.md"), WORST)
    ranges = {
        name: leading(shown[name])
        for name in (
            "ours: alignment, horizon",
            "AdamW cosine to 0",
            "Prodigy, cosine",
            "ours: loss law",
        )
    }
    page = " ".join(read("README.md").split())
    low, high = ranges["ours: alignment, horizon"]
    assert f"from the worst start {low:.2f} to {high:.1f} times" in page
    low, high = ranges["AdamW cosine to 0"]
    assert f"from the same starts: {low:.1f} to {high:.0f} times" in page
    low, high = ranges["Prodigy, cosine"]
    assert f"Prodigy with a cosine: {low:.2f} to {high:.0f} times" in page
    assert f"up to {ranges['ours: loss law'][1]:.0f} times" in page


def test_the_speeds_that_pages_quote_are_the_report_s() -> None:
    report = rows(read("bench/results/step-amd-epyc-avx512-2-threads-2026-11-24.md"))
    shown = rows(read("docs/results.md"), "## Speed")
    page = read("README.md")
    assert len(report) == 13
    for name, cells in report.items():
        assert shown[name] == cells or name.startswith("---"), name
    for name in ("AdaptiveAdamW", "torch AdamW, fused"):
        assert report[name][0] in page
    for factor in re.findall(r"[\d.]+(?=×)", report["AdaptiveAdamW with noise"][3]):
        assert f"{float(factor):.1f} times as fast" in page


def test_the_ratios_of_the_gpu_run_are_the_report_s() -> None:
    report = read("bench/results/nvidia-h200-2026-11-27.md")
    page = " ".join(read("README.md").split())
    for dtype in ("float32", "bfloat16"):
        for contender in ("AdaptiveAdamW, σ off", "AdaptiveAdamW, alignment law"):
            measured = [
                float(rows(report, f"## {size}, {dtype}\n")[contender][1])
                for size in ("gpt2-small", "1B", "1B-in-1")
            ]
            assert len(measured) == 3
            assert f"{min(measured):.2f} to {max(measured):.2f} ×" in page


def test_the_replay_that_the_guide_shows_is_what_the_command_prints(
    say: Callable[..., Any],
) -> None:
    shown = re.search(
        r"^\$ python -m adaptiverl replay (\S+)\n(.*?)^```", read("docs/guide.md"), re.S | re.M
    )
    assert shown is not None
    printed = say(ROOT / shown[1]).out
    assert (
        printed.partition("Picture:")[0].splitlines()[3:]
        == shown[2].partition("Picture:")[0].splitlines()[3:]
    )
