"""The pages, and what they say."""

from __future__ import annotations

import functools
from pathlib import Path

ROOT = Path(__file__).parent.parent
WRITTEN = ["README.md", "bench/README.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]
"""By hand, for readers of today"""
RECORDS = [
    "CHANGELOG.md",
    "docs/scenarios/README.md",
    *(f"bench/results/{path.name}" for path in ROOT.glob("bench/results/*.md")),
]
"""Of a day, and so of what was there on it"""


@functools.cache
def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")
