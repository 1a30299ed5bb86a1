"""``python -m bench.migration`` prints what differs between examples/, before and after."""

import difflib
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NAMES = ("plain_loop", "hf_trainer", "accelerate_loop", "lightning_module")


def differences(name: str) -> str:
    """The changed lines with two around them; where lines are left out, one is empty."""
    files = [(EXAMPLES / f"{name}_{which}.py").read_text("utf-8") for which in ("before", "after")]
    before, after = (text.splitlines() for text in files)
    lines = list(difflib.unified_diff(before, after, n=2, lineterm=""))[3:]
    shown = ["" if line.startswith("@@") else line.rstrip() for line in lines]
    # Where a file has an empty line beside the gap, one stands for both.
    pairs = zip(shown, ["", *shown], strict=False)
    return "\n".join(line for line, above in pairs if line or above).strip("\n")


if __name__ == "__main__":
    for name in NAMES:
        print(f"### {name}\n\n```diff\n{differences(name)}\n```\n")
