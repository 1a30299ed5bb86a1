"""Writes csrc/layout.h and kernels/layout.py from the table: `python tests/layout_files.py`."""

from __future__ import annotations

import math
import re
from collections import Counter
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
    columns = layout.columns(record)
    sizes = Counter(column.array for column in columns)
    lines, written = [], {""}
    for column in columns:
        if column.array:
            if column.array not in written:
                assert column.default == 0, "an array starts at 0"
                code = f"  {scalar} {column.array}[{sizes[column.array]}] = {{}};"
                lines.append((code, column.doc))
            written.add(column.array)
        elif column.record:
            code = f"  {column.record.__name__} {column.name}[kArms];"
            lines.append((code, column.doc))
        else:
            default = f" = {c_number(column.default)}" if record is state else ""
            lines.append((f"  {scalar} {column.name}{default};", column.doc))
    width = max(len(code) for code, _ in lines)
    body = "\n".join(f"{code:{width}}  // {doc}" if doc else code for code, doc in lines)
    return f"// {summary(record)}\nstruct {record.__name__} {{\n{body}\n}};\n"


def c_enum(name: str, prefix: str, numbers: dict[str, float]) -> str:
    """Names and numbers of a choice: kRewardNegLoss for neg_loss."""
    members = ", ".join(
        f"k{prefix}{re.sub('[_-]', '', key.title())} = {number:g}"
        for key, number in numbers.items()
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
        layout.ArmNumbers,
        layout.ControlNumbers,
        layout.Inbox,
        layout.PulseSums,
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
            f"constexpr int kArms = {layout.ARMS};\n",
            c_enum("RewardSource", "Reward", layout.REWARD_SOURCES),
            c_enum("LawNumber", "Law", layout.LAWS),
            c_enum("CooldownShape", "Cooldown", layout.COOLDOWN_SHAPES),
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
    """The names of a C++ struct's members, in order; of an array, its elements'."""
    found = re.search(rf"^struct {struct} {{$(.*?)^}};$", text, re.S | re.M)
    assert found is not None, f"no struct {struct}"
    pattern = r"\b(?:double|int64_t) (\w+)(?:\[(\d+)\])?(?: = \S+)?;"
    names = []
    for name, size in re.findall(pattern, re.sub(r"//.*", "", found[1])):
        names += [f"{name}{i}" for i in range(int(size))] if size else [name]
    return names


if __name__ == "__main__":
    for path, make in FILES.items():
        (ROOT / path).write_text(make())
