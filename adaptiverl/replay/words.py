"""Numbers in sentences."""

from __future__ import annotations


def counted(n: int, what: str) -> str:
    """How many of what, in the plural where there is not one: 2 losses."""
    if n != 1:
        what = (
            f"{what[:-1]}ies" if what.endswith("y") else f"{what}{'es' * what.endswith('s') or 's'}"
        )
    return f"{n:,} {what}"


def ordinal(n: int) -> str:
    """1 as "single", 2 as "2nd"."""
    if n == 1:
        return "single"
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n:,}{ending}"
