"""``python -m adaptiverl``: see ``--help``."""

from __future__ import annotations

import io
import os
import sys

from adaptiverl.replay.command import main


def _command(arguments: list[str]) -> int:
    if arguments[:1] == ["probe"]:
        from adaptiverl.probing.command import main as probe  # it needs torch's optimizers

        return probe(arguments[1:])
    if arguments[:1] == ["hindsight"]:
        from adaptiverl.hindsight.command import main as hindsight  # it needs torch

        return hindsight(arguments[1:])
    return main(arguments)


def _main() -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that cannot show α shows a question mark, which beats a traceback.
        sys.stdout.reconfigure(errors="replace")
    try:
        status = _command(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, `head` say, has seen enough; Python would flush once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


if __name__ == "__main__":
    sys.exit(_main())
