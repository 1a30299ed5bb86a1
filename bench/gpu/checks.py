"""Runs tests/gpu_checks.py without pytest. ``python -m bench.gpu.checks`` writes the outcomes."""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PASSED, FAILED, SKIPPED, LEFT_OUT = "passed", "failed", "skipped", "left out"

Outcome = dict[str, Any]


def run(
    checks: Mapping[str, Callable[[], None]],
    skip: type[Exception],
    deadline: float,
    report: Callable[[Outcome], None],
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


def small() -> None:
    """A few steps with everything in them, small enough for a memory checker."""
    import gpu_checks

    from adaptiverl import AdaptiveAdamW, AdaptiveSGD

    sizes = (0, 1, 255, 1024, 1030, 16390)
    for dtype in ("float32", "bfloat16"):
        params = gpu_checks.parameters(sizes, getattr(gpu_checks.torch, dtype))
        optimizers = (
            AdaptiveAdamW(params, 0.01, amsgrad=True, control=gpu_checks.NOISY, max_grad_norm=1.0),
            AdaptiveSGD(params, 0.01, 0.9, control=gpu_checks.ON_PARAMETER),
        )
        for optimizer in optimizers:
            gpu_checks.train(optimizer, params, 3)
            gpu_checks.expect_triton(optimizer)
    gpu_checks.torch.cuda.synchronize()
    print("stepped")


def main(arguments: Sequence[str]) -> int:
    """Write one JSON object per line as the checks end; or do the small case."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.checks")
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--seconds", type=float, default=150.0)
    parser.add_argument("--small", action="store_true", help="the memory checker's case, no output")
    given = parser.parse_args(arguments)
    if given.small:
        small()
        return 0
    if given.out is None:
        parser.error("out is missing")
    import gpu_checks

    with given.out.open("w", encoding="utf-8") as stream:

        def report(outcome: Outcome) -> None:
            print(json.dumps(outcome), file=stream, flush=True)
            print(f"{outcome['outcome']:>8}  {outcome['seconds']:6.1f} s  {outcome['name']}")
            if outcome["message"]:
                print(outcome["message"])
            sys.stdout.flush()

        run(gpu_checks.CHECKS, gpu_checks.Skip, time.monotonic() + given.seconds, report)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
