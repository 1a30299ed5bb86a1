"""Runs tests/gpu_checks.py without pytest. ``python -m bench.speed.checks`` writes the outcomes."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence

from bench.machine import ROOT
from bench.speed.parts import Object, part_of

PASSED, FAILED, SKIPPED, LEFT_OUT = "passed", "failed", "skipped", "left out"


def run(
    checks: Mapping[str, Callable[[], None]],
    skip: type[Exception],
    deadline: float,
    report: Callable[[Object], None],
) -> None:
    """Run every check, whatever the others do.

    Args:
        checks: By name.
        skip: What a check raises where this machine cannot show it.
        deadline: Of `time.monotonic`; checks that have not begun by then are left out.
        report: Takes each outcome: name, outcome, seconds, message.
    """
    for name, function in checks.items():
        start = time.monotonic()
        outcome, message = PASSED, ""
        if start > deadline:
            outcome, message = LEFT_OUT, "the time was up"
        else:
            try:
                function()
            except skip as reason:
                outcome, message = SKIPPED, str(reason)
            except Exception:
                # Reports are shared: where the clone lies is nobody's business.
                outcome, message = FAILED, traceback.format_exc().replace(f"{ROOT}/", "")
        seconds = time.monotonic() - start
        report({"name": name, "outcome": outcome, "seconds": seconds, "message": message})


def describe(outcome: Object) -> str:
    """An outcome in a line, and its message below."""
    return f"{outcome['outcome']:>8}  {outcome['name']}\n{outcome['message']}".rstrip()


def main(arguments: Sequence[str]) -> int:
    """Write one JSON object per line to a file, as the checks end."""
    import gpu_checks

    with part_of("bench.speed.checks", arguments, describe) as (deadline, report):
        run(gpu_checks.CHECKS, gpu_checks.Skip, deadline, report)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
