"""What README.md, docs/ and the docstrings of public names show runs."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import page_names
import pytest
from pages import WRITTEN, read


class Snippet(NamedTuple):
    """Python code of a page, and what its last heading says."""

    page: str
    section: str
    number: int
    code: str


def snippets_of(page: str) -> Iterator[Snippet]:
    section = ""
    pieces = re.findall(
        r"^## ([^\n]+)$|^```python\n(.*?)^```", read(page), re.DOTALL | re.MULTILINE
    )
    for number, (heading, code) in enumerate(pieces):
        section = heading or section
        if code:
            yield Snippet(page, section, number, code)


SNIPPETS = [snippet for page in WRITTEN for snippet in snippets_of(page)]


def name_of(snippet: Snippet) -> str:
    return f"{Path(snippet.page).stem}-{snippet.section.replace(' ', '-')}-{snippet.number}"


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_accelerate: None
) -> Callable[[str, str], dict[str, Any]]:
    """Run code with the names that a reader has, in an empty folder; returns the names after it."""

    def run_it(section: str, code: str) -> dict[str, Any]:
        monkeypatch.chdir(tmp_path)
        for package in sorted(page_names.imported(code) - {"adaptiverl", *sys.stdlib_module_names}):
            page_names.needed(package)
        names = page_names.what_a_reader_has(section, tmp_path)
        on_ranks = "Distributed" in code or "ZeroRedundancy" in code
        with page_names.one_rank() if on_ranks else contextlib.nullcontext():
            exec(compile(code, section, "exec"), names)
        return names

    return run_it


QUIET = pytest.mark.filterwarnings(
    "ignore:.isinstance.treespec, LeafSpec.:FutureWarning",
    "ignore:.*does not have many workers",
    "ignore:.*`log_every_n_steps`",
    "ignore:.torch.jit.:DeprecationWarning",  # ZeRO's own use
)


@QUIET
@pytest.mark.parametrize("snippet", SNIPPETS, ids=name_of)
def test_what_a_page_shows_runs(snippet: Snippet, run: Callable[..., dict[str, Any]]) -> None:
    names = run(snippet.section, snippet.code)
    if snippet.section in page_names.FRAMEWORKS:
        heard(names)
    elif "optimizer.step(" in snippet.code:
        told = names.get("steered", getattr(names["optimizer"], "optim", names["optimizer"]))
        knobs = told.knobs()
        before = 0 if "optimizer = " in snippet.code else page_names.STEPS
        assert knobs["step"] > before
        assert "observe(" not in snippet.code or knobs["loss_mean"] > 0


def heard(names: dict[str, Any]) -> None:
    """The optimizer took every step and heard the loss."""
    from adaptiverl.integrations.steering import steered

    optimizer = names.get("optimizer")
    if optimizer is None:
        trainer = names["trainer"]
        optimizer = getattr(trainer, "optimizer", None) or trainer.optimizers[0]
    knobs = steered(optimizer, "").knobs()
    assert knobs["step"] == page_names.STEPS
    assert 0 < knobs["loss_mean"] < 10


def test_every_snippet_is_among_those_that_run() -> None:
    fences = sum(len(re.findall(r"^ *```py", read(page), re.MULTILINE)) for page in WRITTEN)
    assert len(SNIPPETS) == fences > 15
    sections = {(snippet.page, snippet.section) for snippet in SNIPPETS}
    assert sections >= {("docs/frameworks.md", name) for name in page_names.FRAMEWORKS}
    assert ("README.md", "Use") in sections


def test_the_front_page_fits_on_few_screens_and_shows_five_lines() -> None:
    assert len(read("README.md").splitlines()) <= 150
    first = next(snippets_of("README.md")).code
    assert "find_lr" in first
    assert len(first.splitlines()) <= 8


# The API page -------------------------------------------------------------------------------------

ON_API_PAGE = re.findall(r"^::: ([\w.]+)$", read("docs/api.md"), re.MULTILINE)


def found(name: str) -> Any:
    """A public object by its full name; skips where its framework is not installed."""
    module, _, attribute = name.rpartition(".")
    for framework, package in (("huggingface", "transformers"), ("lightning", "lightning")):
        if module.endswith(framework):
            page_names.needed(package)
    for package in ("accelerate", "stable_baselines3"):
        if module.endswith(package):
            page_names.needed(package)
    return getattr(importlib.import_module(module), attribute)


def test_the_api_page_has_every_public_name() -> None:
    import adaptiverl

    public = {f"adaptiverl.{name}" for name in adaptiverl.__all__} - {"adaptiverl.__version__"}
    assert public <= set(ON_API_PAGE)
    assert sum(">>>" in (getattr(adaptiverl, n).__doc__ or "") for n in adaptiverl.__all__) >= 4


SECTIONS = {
    "huggingface": "Hugging Face Trainer",
    "accelerate": "Accelerate",
    "lightning": "Lightning",
}


@QUIET
@pytest.mark.parametrize("name", ON_API_PAGE)
def test_what_a_docstring_shows_runs(name: str, run: Callable[..., dict[str, Any]]) -> None:
    public = found(name)
    assert public.__doc__
    examples = doctest.DocTestParser().get_examples(public.__doc__)
    if not examples:
        return
    section = SECTIONS.get(name.split(".")[-2], "")
    before = f"from {name.rpartition('.')[0]} import {name.rpartition('.')[2]}\n"
    if section == "Accelerate":
        before += "from adaptiverl.integrations.accelerate import knob_logs\nloss, step = 1.0, 1\n"
    if "Zero" in public.__doc__:
        before += "from functools import partial\n"
        before += "from torch.distributed.optim import ZeroRedundancyOptimizer\n"
    lines = [f"assert {e.source.strip()} == {e.want}" if e.want else e.source for e in examples]
    run(section, before + "".join(lines))
