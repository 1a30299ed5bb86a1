"""MkDocs' hooks: README.md is the first page, and a link to a file outside of docs/ finds it.

On the repository's host a page may link to any file. A site has pages only, so what the pages cite
from elsewhere comes along: Markdown as it is, source text in a block of code, the rest as it is.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
CODE = re.compile(r"(^```.*?^```$|`[^`\n]*`)", re.DOTALL | re.MULTILINE)
TARGET = re.compile(r"(\]\()([^)\s]+)(\))")
FENCE = re.compile(r"^\s*```(\w*)", re.MULTILINE)
LANGUAGES = {".py": "python", ".cu": "cuda", ".cpp": "cpp", ".h": "cpp", ".sh": "bash"}
KNOWN_FENCES = {"", "python", "diff"}
"""A snippet under any other name would escape tests/test_snippets.py, which runs python"""


def uri_of(path: str) -> str:
    """Where the site has a file of the repository."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    suffix = posixpath.splitext(path)[1]
    return f"source/{path}.md" if suffix in LANGUAGES else path


def path_of(uri: str, cited: dict[str, str]) -> str:
    """The file of the repository that a page of the site is made from."""
    return cited.get(uri, f"docs/{uri}")


def resolved(path: str, target: str) -> str | None:
    """The file that a link in `path` leads to; None where it leaves the repository or the page not.

    Raises:
        PluginError: It is no file.
    """
    if not target or "://" in target or target.startswith(("#", "mailto:")):
        return None
    found = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    if not (ROOT / found).is_file():
        raise PluginError(f"{path} links to {target}, and {found} is no file")
    return found


def prose(markdown: str) -> Iterator[tuple[str, bool]]:
    """The pieces of a page, and whether each is prose; the others are code."""
    for number, piece in enumerate(CODE.split(markdown)):
        yield piece, number % 2 == 0


def targets(path: str) -> Iterator[str]:
    """The files that a page of the repository links to."""
    for piece, is_prose in prose((ROOT / path).read_text(encoding="utf-8")):
        for link in TARGET.finditer(piece) if is_prose else ():
            if found := resolved(path, link[2].partition("#")[0]):
                yield found


def cited_from(pages: list[str]) -> dict[str, str]:
    """What comes along: where the site has it, and the file; pages that come along cite, too."""
    cited, to_read = {uri_of("README.md"): "README.md"}, ["README.md", *pages]
    while to_read:
        for path in targets(to_read.pop()):
            if not path.startswith("docs/") and uri_of(path) not in cited:
                cited[uri_of(path)] = path
                to_read += [path] if path.endswith(".md") else []
    return cited


def made(uri: str, path: str, config: Any) -> File:
    """A file of the site from one of the repository."""
    suffix = posixpath.splitext(path)[1]
    if suffix not in LANGUAGES:
        return File.generated(config, uri, abs_src_path=str(ROOT / path))
    text = (ROOT / path).read_text(encoding="utf-8")
    return File.generated(
        config, uri, content=f"# {path}\n\n````{LANGUAGES[suffix]}\n{text.rstrip()}\n````\n"
    )


def on_files(files: Any, config: Any) -> Any:
    """Take what the pages cite into the site."""
    pages = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    config.extra["cited"] = cited_from(pages)
    for uri, path in config.extra["cited"].items():
        files.append(made(uri, path, config))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Lead a page's links to where the site has their files."""
    uri = page.file.src_uri
    if uri.startswith("source/"):
        return markdown
    path, folder = path_of(uri, config.extra["cited"]), posixpath.dirname(uri)
    if unknown := set(FENCE.findall(markdown)) - KNOWN_FENCES:
        raise PluginError(f"{path} has code in {', '.join(sorted(unknown))}, which no test runs")

    def led(link: re.Match[str]) -> str:
        file, hash_, anchor = link[2].partition("#")
        found = resolved(path, file)
        if found is None:
            return link[0]
        return f"{link[1]}{posixpath.relpath(uri_of(found), folder or '.')}{hash_}{anchor}{link[3]}"

    return "".join(TARGET.sub(led, p) if is_prose else p for p, is_prose in prose(markdown))


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Make links of what docstrings cite of the method."""
    if page.file.src_uri != "api.md":
        return html
    method = files.get_file_from_path("method.md").url_relative_to(page.file)
    return re.sub(r"\bmethod\.md(#[\w-]+)", rf'<a href="{method}\1">the method, \1</a>', html)
