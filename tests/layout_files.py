"""Writes csrc/layout.h and kernels/layout.py from the table: `python tests/layout_files.py`."""

from __future__ import annotations

import math
import re
from pathlib import Path

from adaptiverl import layout

ROOT = Path(__file__).resolve().parents[1]
# Records of float64 that other records or kernels read by a prefix of their own.
PREFIXES: dict[type, str] = {
    layout.TensorRow: "",
    layout.State: "STATE_",
    layout.Group: "GROUP_",
    layout.EffectiveGroup: "EFFECTIVE_",
    layout.Product: "PRODUCT_",
    layout.Region: "REGION_",
}
ADDRESSES = (layout.TensorRow, layout.Region)


def c_number(value: float) -> str:
    """A default as C++ writes it."""
    if math.isnan(value):
        return "NAN"
    return ("-" if value < 0 else "") + ("INFINITY" if math.isinf(value) else f"{abs(value):g}")


def summary(record: type) -> str:
    """The first line of a record's docstring."""
    return (record.__doc__ or "").splitlines()[0]


def c_struct(record: type, state: type) -> str:
    """A record as a struct; the state alone has defaults, for it alone starts as it is declared."""
    scalar = "int64_t" if record in ADDRESSES else "double"
    lines = []
    for column in layout.columns(record):
        default = f" = {c_number(column.default)}" if record is state else ""
        lines.append((f"  {scalar} {column.name}{default};", column.doc))
    width = max(len(code) for code, _ in lines)
    body = "\n".join(f"{code:{width}}  // {doc}" if doc else code for code, doc in lines)
    return f"// {summary(record)}\nstruct {record.__name__} {{\n{body}\n}};\n"


def c_enum(name: str, prefix: str, numbers: dict[str, float]) -> str:
    """Names and numbers of a choice: kRewardNegLoss for neg_loss."""
    members = ", ".join(
        f"k{prefix}{key.title().replace('_', '')} = {number:g}" for key, number in numbers.items()
    )
    return f"enum {name} {{ {members} }};\n"


def c_trace(columns: tuple[str, ...]) -> str:
    """The trace's row, and how it is read off the state: by name."""
    members = "\n".join(f"  double {name};" for name in columns)
    values = ",\n".join(f"      state.{name}" for name in columns)
    return (
        "// One update of the knobs, as the trace keeps it.\n"
        f"struct TraceRow {{\n{members}\n}};\n\n"
        "ADAPTIVERL_BOTH TraceRow trace_row(const State& state) {\n"
        f"  return TraceRow{{\n{values}}};\n}}\n"
    )


def header(state: type = layout.State) -> str:
    """csrc/layout.h, for this state."""
    records = [
        state,
        layout.ControlNumbers,
        layout.Inbox,
        layout.AlignmentSums,
        layout.Group,
        layout.EffectiveGroup,
        layout.Product,
        layout.TensorRow,
        layout.Region,
    ]
    return "\n".join(
        [
            "// Written by tests/layout_files.py from adaptiverl/layout.py, which explains it. Do "
            "not edit.\n// clang-format off",
            "#pragma once\n",
            "#include <cmath>\n#include <cstdint>\n",
            '#include "both.h"\n',
            "namespace adaptiverl {\n",
            f"constexpr double kLayoutVersion = {layout.columns(state)[0].default:g};\n",
            c_enum("RewardSource", "Reward", layout.REWARD_SOURCES),
            c_enum("LawNumber", "Law", layout.LAWS),
            *(c_struct(record, state) for record in records),
            c_trace(layout.TRACE_COLUMNS),
            "}  // namespace adaptiverl\n",
        ]
    )


def kernel_constants() -> str:
    """kernels/layout.py."""
    parts = [
        '"""Where a kernel finds what: columns of the tables, slots of the controller\'s state.\n\n'
        "Written by tests/layout_files.py from adaptiverl/layout.py, which explains it. Do not "
        'edit.\n"""\n\nfrom __future__ import annotations\n\nimport triton.language as tl\n'
    ]
    for record, prefix in PREFIXES.items():
        parts.append(f"\n# {record.__name__}: {summary(record)}\n")
        names = layout.names(record)
        parts.append(f"{prefix}COLUMNS = tl.constexpr({len(names)})\n")
        parts += [f"{prefix}{n.upper()} = tl.constexpr({i})\n" for i, n in enumerate(names)]
    return "".join(parts)


FILES = {"csrc/layout.h": header, "kernels/layout.py": kernel_constants}


def members(text: str, struct: str) -> list[str]:
    """The names of a C++ struct's members, in order."""
    found = re.search(rf"^struct {struct} {{$(.*?)^}};$", text, re.S | re.M)
    assert found is not None, f"no struct {struct}"
    return re.findall(r"\b(?:double|int64_t) (\w+)(?: = \S+)?;", re.sub(r"//.*", "", found[1]))


if __name__ == "__main__":
    for path, make in FILES.items():
        (ROOT / path).write_text(make())
