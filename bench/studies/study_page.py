"""The report as one page: Markdown for docs, HTML that needs nothing beside itself."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from bench.tables import markdown as table_of

TEMPLATE = Path(__file__).with_name("study.html.jinja")


@dataclass(frozen=True)
class Section:
    title: str
    text: Sequence[str] = ()  # paragraphs, or items where they begin with "- "
    headings: Sequence[str] = ()  # of its table, if it has one
    lines: Sequence[Sequence[str]] = ()
    picture: Path | None = None  # an SVG, in the HTML only
    caption: str = ""
    level: int = 2
    ours: frozenset[str] = field(default=frozenset())  # titles of methods that stand out


def markdown(sections: Sequence[Section]) -> str:
    parts = []
    for section, following in zip(sections, [*sections[1:], None], strict=True):
        has_parts = following is not None and following.level > section.level
        if section.picture and not (section.text or section.lines or has_parts):
            continue
        parts.append(f"{'#' * section.level} {section.title}")
        if section.text:
            is_list = all(line.startswith("- ") for line in section.text)
            parts.append(("\n" if is_list else "\n\n").join(section.text))
        if section.lines:
            parts.append(table_of(section.headings, section.lines))
    return "\n\n".join(parts) + "\n"


def html(sections: Sequence[Section]) -> str:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"inline": _inline, "key": sort_key, "svg": _svg, "bold": _is_bold}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(sections=sections, title=sections[0].title)


def sort_key(text: str) -> str:
    """What a cell is sorted by: its number, without emphasis, error and marks; text by itself."""
    plain = text.strip("*").replace("∞", "inf")
    found = re.match(r"[+-]?(inf|\d[\d,]*\.?\d*(e[+-]?\d+)?)", plain)
    return found.group().replace(",", "") if found else ""


def _is_bold(text: str) -> bool:
    return text.startswith("**")


def _inline(text: str) -> Markup:
    """A paragraph's `code` and **bold** and links, all else escaped."""
    escaped = str(escape(text.removeprefix("- ")))
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    escaped = re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", escaped)
    # A link of the Markdown leads to a file of the repository, which the page may be far from.
    escaped = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", escaped)
    return Markup(escaped)


def _svg(path: Path) -> Markup:
    text = path.read_text(encoding="utf-8")
    drawing = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return Markup(drawing)
