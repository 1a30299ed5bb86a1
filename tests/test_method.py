"""docs/method.md is what the code cites: every anchor that is cited exists, and none stands twice.

Nobody may cite the page that it replaced, and its links and names must lead somewhere.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from adaptiverl import AdaptiveAdamW, Control

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "method.md"

CITING = ("adaptiverl", "kernels", "csrc", "tests", "bench", "examples", "README.md", "docs")
SOURCES = {".py", ".h", ".inc", ".cpp", ".cu", ".cuh", ".sh", ".md"}

CITATION = re.compile(
    r"method\.md(#[\w-]+(?:(?:,|\s+and|\s+to)\s+(?:(?:#|//)\s+)?#[\w-]+)*)",
)
"""One anchor, or several: "method.md#cadence and #inbox", which may go on in the next line"""
OLD_PAGE = re.compile(r"decisions\.md")


def sources() -> Iterator[Path]:
    """Every file that may cite the page."""
    for name in CITING:
        path = ROOT / name
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        yield from (f for f in files if f.suffix in SOURCES and f.is_file())


def cited(text: str) -> list[str]:
    """The anchors that a text cites, without the #."""
    return [
        anchor for found in CITATION.findall(text) for anchor in re.findall(r"#([\w-]+)", found)
    ]


def without_code(markdown: str) -> str:
    """A page without what stands between fences, where # is no heading."""
    return re.sub(r"^```.*?^```$", "", markdown, flags=re.DOTALL | re.MULTILINE)


def slug(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return kept.replace(" ", "-")


def anchors(markdown: str) -> list[str]:
    """Every anchor of a page, as often as it stands there."""
    page = without_code(markdown)
    headings = re.findall(r"^#+ (.+)$", page, flags=re.MULTILINE)
    return [*map(slug, headings), *re.findall(r'<a id="([^"]+)"', page)]


def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def test_every_cited_anchor_exists() -> None:
    known = set(anchors(page()))
    missing = {
        f"{path.relative_to(ROOT)}: method.md#{anchor}"
        for path in sources()
        if path != Path(__file__)
        for anchor in cited(path.read_text(encoding="utf-8"))
        if anchor not in known
    }
    assert not missing, "\n".join(sorted(missing))


def test_no_anchor_stands_twice() -> None:
    twice = [anchor for anchor, count in Counter(anchors(page())).items() if count > 1]
    assert not twice


def test_nobody_cites_the_page_that_it_replaced() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sources()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if OLD_PAGE.search(line)
    ]
    assert not found, "\n".join(found)


def test_the_pages_own_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page())
    known = set(anchors(page()))
    dead = [
        link
        for link in links
        if not (
            link[1:] in known if link.startswith("#") else (PAGE.parent / link).resolve().exists()
        )
    ]
    assert len(links) > 50
    assert not dead


def test_every_rule_says_why_and_where() -> None:
    rules = re.split(r"^(?=##)", without_code(page()), flags=re.MULTILINE)
    silent = [
        rule.splitlines()[0]
        for rule in rules
        if rule.startswith("### ") and not ("*Why" in rule and "*Where.*" in rule)
    ]
    assert len(rules) > 40
    assert not silent


def test_where_a_rule_says_its_code_is_there_is_code() -> None:
    said = re.findall(r"\*Where\.\* (.+?)(?=\n\n|\Z)", page(), flags=re.DOTALL)
    places = {place for where in said for place in re.findall(r"`([\w./*]+)`", where)}
    missing = [place for place in places if not is_code(place)]
    assert len(places) > 20
    assert not missing
    assert not is_code("csrc/nowhere.h")


def is_code(place: str) -> bool:
    """A path from the root or from the package, with or without the end of its name."""
    return any(
        next(folder.glob(place.rstrip("/") + ending), None) is not None
        for folder in (ROOT, ROOT / "adaptiverl")
        for ending in ("", ".py")
    )


def test_the_names_among_the_terms_are_those_of_control_and_of_the_knobs() -> None:
    (table,) = re.findall(r"^## Terms$(.*?)^## ", page(), flags=re.DOTALL | re.MULTILINE)
    rows = [row.split("|")[2] for row in table.splitlines() if row.startswith("| ")][2:]
    names = [name.removeprefix("Control.") for row in rows for name in re.findall(r"`(.+?)`", row)]
    knobs = AdaptiveAdamW([torch.nn.Parameter(torch.zeros(1))]).knobs()
    known = {*knobs, *(field.name for field in fields(Control))}
    assert len(names) > 30
    assert not set(names) - known


# --- The looks themselves -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no news (method.md#cadence).", ["cadence"]),
        (
            "docs/method.md#loss-sensor and #spikes; method.md#noise",
            ["loss-sensor", "spikes", "noise"],
        ),
        (
            "    see method.md#reward,\n    #non-finite and\n    # #inbox",
            ["reward", "non-finite", "inbox"],
        ),
        ("// method.md#reward to\n// #inbox", ["reward", "inbox"]),
        ("the page is docs/method.md, and #hashtag is none", []),
    ],
)
def test_a_citation_is_found_wherever_its_line_breaks(text: str, expected: list[str]) -> None:
    assert cited(text) == expected


def test_headings_make_the_anchors_that_github_makes() -> None:
    markdown = "# The method\n## Learning-rate law\n```\n# no heading\n```\n### S, v and P\n"
    markdown += '<a id="old"></a>\n## The method\n'
    found = anchors(markdown)
    assert found == ["the-method", "learning-rate-law", "s-v-and-p", "the-method", "old"]


def test_the_looks_see_what_they_look_for() -> None:
    assert "nowhere" not in anchors(page())
    assert cited("method.md#nowhere") == ["nowhere"]
    assert OLD_PAGE.search("(" + "decisions" + ".md 17)")
    assert sum(1 for _ in sources()) > 100
