"""``python -m bench.rl``: PPO by several methods from rates a factor of a hundred apart.

Goes on where an earlier run stopped. --quick is a quarter of an hour or so on two cores, --full
twenty seeds of 500,000 steps, some hours.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.requests import Parser, RequestError, chosen, number, whole
from bench.rl.environments import TASKS
from bench.rl.methods import METHODS
from bench.rl.rows import read, writable
from bench.rl.study import complete, plan
from bench.rl.tables import report
from bench.run.rows import RowsError, newest

RATES = (2.5e-5, 2.5e-4, 2.5e-3)
DEVELOPMENT, CONFIRMATION = 0, 100
"""The first seeds of either: what was chosen was chosen by those below 100"""


def parser() -> Parser:
    it = Parser(description=(__doc__ or "").partition("\n")[0], prog="python -m bench.rl")
    form = it.add_mutually_exclusive_group()
    form.add_argument("--quick", action="store_true", help="4 seeds, 60,000 steps")
    form.add_argument("--full", action="store_true", help="20 seeds, 500,000 steps")
    it.add_argument("--tasks", nargs="+", metavar="TASK")
    it.add_argument("--methods", nargs="+", metavar="METHOD")
    it.add_argument("--rates", nargs="+", type=number(1e-9, 1.0), default=RATES)
    it.add_argument("--seeds", type=whole(1), help="how many")
    it.add_argument("--first-seed", type=whole(0), default=CONFIRMATION)
    it.add_argument("--steps", type=whole(512), help="of the environments, in each run")
    it.add_argument("--workers", type=whole(1), default=os.cpu_count() or 1)
    it.add_argument("--out", type=Path, default=Path("runs/rl/rows.csv"), help="the file of rows")
    it.add_argument("--report", type=Path, metavar="ROWS", help="only print this file's tables")
    return it


def main(arguments: Sequence[str]) -> int:
    try:
        given = parser().parse_args(arguments)
        if given.report is not None:
            rows = newest(read(given.report))
            if not rows:
                raise RequestError(f"{given.report} holds no rows; give a file of this command's")
        else:
            wanted = plan(
                [task.name for task in chosen("task", TASKS, given.tasks)],
                [method.name for method in chosen("method", METHODS, given.methods)],
                given.rates,
                [given.first_seed + i for i in range(given.seeds or (20 if given.full else 4))],
                given.steps or (500_000 if given.full else 60_000),
            )
            writable(given.out)
            rows = complete(given.out, wanted, given.workers)
    except (RequestError, RowsError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; finished runs are kept, the same command goes on", file=sys.stderr)
        return 130
    print(report(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
