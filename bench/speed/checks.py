"""tests/gpu_checks.py without pytest: ``python -m bench.speed.checks`` writes the outcomes.

``python -m bench.speed.checks --small`` is a few steps for a memory checker instead.
"""

import sys
import time
import traceback
from collections.abc import Callable, Mapping

from bench.machine import ROOT
from bench.speed.parts import Object, part_of


def run(
    checks: Mapping[str, Callable[[], None]],
    skip: type[Exception],
    deadline: float,
    report: Callable[[Object], None],
) -> None:
    for name, function in checks.items():
        start = time.monotonic()
        outcome, message = "passed", ""
        try:
            if start > deadline:
                outcome, message = "left out", "the time was up"
            else:
                function()
        except skip as reason:
            outcome, message = "skipped", str(reason)
        except Exception:
            # Reports are shared: where the clone lies is nobody's business.
            outcome, message = "failed", traceback.format_exc().replace(f"{ROOT}/", "")
        seconds = time.monotonic() - start
        report({"name": name, "outcome": outcome, "seconds": seconds, "message": message})


def small() -> None:
    """A few steps with everything in them, small enough for a memory checker."""
    import gpu_checks
    import torch

    from adaptiverl import AdaptiveAdamW, AdaptiveSGD

    for dtype in (torch.float32, torch.bfloat16):
        params = gpu_checks.parameters((0, 1, 255, 1024, 1030, 16390), dtype)
        for optimizer in (
            AdaptiveAdamW(params, 0.01, amsgrad=True, control=gpu_checks.NOISY, max_grad_norm=1.0),
            AdaptiveSGD(params, 0.01, 0.9, control=gpu_checks.ON_PARAMETER),
        ):
            gpu_checks.train(optimizer, params, 3)
            gpu_checks.expect_triton(optimizer)
    torch.cuda.synchronize()
    print("stepped")


def describe(outcome: Object) -> str:
    return f"{outcome['outcome']:>8}  {outcome['name']}\n{outcome['message']}".rstrip()


if __name__ == "__main__":
    if sys.argv[1:] == ["--small"]:
        small()
    else:
        from gpu_checks import CHECKS, Skip

        with part_of("bench.speed.checks", sys.argv[1:], describe) as (deadline, report):
            run(CHECKS, Skip, deadline, report)
