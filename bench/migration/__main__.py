"""Print what differs between before and after, as README.md here shows it."""

from __future__ import annotations

import difflib
from pathlib import Path

FOLDER = Path(__file__).parent
NAMES = ("plain_loop", "hf_trainer", "accelerate_loop", "lightning_module")


def differences(name: str) -> str:
    """The changed lines with two around them, a gap shown as an empty line."""
    before, after = (
        (FOLDER / f"{name}_{which}.py").read_text().splitlines() for which in ("before", "after")
    )
    lines = list(difflib.unified_diff(before, after, n=2, lineterm=""))[3:]
    text = "\n".join("" if line.startswith("@@") else line.rstrip() for line in lines)
    return text.strip("\n")


def main() -> None:
    """All four, as blocks of Markdown."""
    for name in NAMES:
        print(f"### {name}\n\n```diff\n{differences(name)}\n```\n")


if __name__ == "__main__":
    main()
