"""The one table: what is generated and packed by it, and what one line more changes."""

from __future__ import annotations

import math
import re
import shutil
import struct
import subprocess
from dataclasses import fields, make_dataclass
from pathlib import Path
from typing import Any, get_args

import law_twin
import layout_files
import pytest
import torch
from layout_files import FILES, ROOT, members
from streams import observed
from torch import Tensor

from adaptiverl import Control, kinds, layout, terms
from adaptiverl.controller import Controller
from adaptiverl.kernels import layout as in_kernels
from adaptiverl.law import knobs, registry
from adaptiverl.law.numbers import CONTROL_SIZE, numbers_of, packed, unpacked
from adaptiverl.layout import LAYOUT_VERSION, MEMORY_SIZE, State
from adaptiverl.migrations import MIGRATIONS, current_layout, insert

LR, MOMENTUM = 1e-3, 0.9
CSRC = ROOT / "csrc"


@pytest.mark.parametrize("path", FILES)
def test_the_files_are_what_the_table_says(path: str) -> None:
    found = (ROOT / path).read_text()
    assert found == FILES[path](), "run `python tests/layout_files.py`, and build again"


def test_the_python_side_reads_the_same_rows() -> None:
    assert layout.names(State)[:-2] == layout.FIELDS[:MEMORY_SIZE]
    assert set(layout.TRACE_COLUMNS) <= set(layout.FIELDS)


# --- The control numbers ----------------------------------------------------------------------


def test_control_numbers_are_packed_by_name() -> None:
    plain = {f.name: 0.0101 + i / 1000 for i, f in enumerate(fields(Control))}
    plain = {n: x for n, x in plain.items() if n.startswith(("beta_", "gain_"))}
    plain |= {"every": 7, "spike_clip": 4.0}
    given = Control(
        **plain,  # type: ignore[arg-type]
        reward="neg_loss",
        lr_bounds=(1e-4, 0.11),
        momentum_bounds=(0.8, 0.95),
        noise_bounds=(0.02, 0.3),
        lr_change=(0.72, 1.7),
        plateau_trend=(0.31, 0.32),
        plateau_variance=(0.33, 0.34),
        law="range_test",
        horizon=250,
        cooldown=0.25,
        cooldown_shape="1-sqrt",
        acquire_from=4e-4,
    )
    names = members((CSRC / "layout.h").read_text(), "ControlNumbers")
    limits = given.limits(LR, MOMENTUM)._asdict()
    expected = plain | {
        n: x for n, x in limits.items() if n not in ("noise_floor", "lr_acquire", "lr_floor")
    }
    expected |= {
        "reward_source": 1.0,
        "log_lr_min": math.log(1e-4),
        "log_lr_max": math.log(0.11),
        "logit_momentum_min": math.log(0.8 / (1 - 0.8)),
        "logit_momentum_max": math.log(0.95 / (1 - 0.95)),
        "log_noise_floor": math.log(0.02),
        "log_noise_max": math.log(0.3),
        "log_lr_change_down": math.log(0.72),
        "log_lr_change_up": math.log(1.7),
        "trend_center": 0.31,
        "trend_slope": 0.32,
        "variance_center": 0.33,
        "variance_slope": 0.34,
        "law": 2.0,
        "log_lr_acquire": math.log(4e-4),
        "horizon": 250.0,
        "hold_by": 187.5,
        "annealed_over": 62.5,
        "log_held_share": 0.0,
        "log_ramp_share": math.log(0.7),
        "log_ramp_floor": math.log(0.04),
        "search_within": 40.0,
        "warm_up": 37.5,
        "log_warm_from": math.log(0.1),
        "pulse_spacing": 2.5,
    }
    row = Controller(given, LR, MOMENTUM).numbers.tolist()
    assert row[len(names) :] == [0.0] * (CONTROL_SIZE - len(names))  # arms, which it has none of
    found = dict(zip(names, row, strict=False))
    others = ["window", "discount", "arms_key", "arm_count", "weight_count", "hidden0", "hidden1"]
    others += ["reused_for", "fresh_for"]
    assert [found.pop(name) for name in others] == [0.0] * 9
    assert found.pop("cooldown_shape") == 1.0
    assert found == expected
    # No two alike, so that none can stand in another's place.
    assert len(set(expected.values())) == len(expected)


def test_the_arms_numbers_are_packed_by_name() -> None:
    text = (CSRC / "layout.h").read_text()
    names = members(text, "ArmNumbers")
    own = members(text, "ControlNumbers")
    gains = [name for name in names if name.startswith("gain_")]
    arms = [
        Control(
            every=3 + i,
            lr_change=(0.5 + i / 10, 1.5 + i),
            **{gain: 0.01 * (i + 1) + 0.001 * j for j, gain in enumerate(gains)},  # type: ignore[arg-type]
        )
        for i in range(2)
    ]
    given = Control.bandit(arms, window=50, discount=0.75)
    row = Controller(given, LR, MOMENTUM).numbers.tolist()
    found = dict(zip(own, row, strict=False))
    assert [found[n] for n in ("law", "window", "discount", "arm_count")] == [3, 50, 0.75, 2]
    assert 1 <= found["arms_key"] < 2**32
    for i, arm in enumerate(arms):
        first = len(own) + i * len(names)
        expected = {"every": 3.0 + i} | {gain: getattr(arm, gain) for gain in gains}
        down, up = map(math.log, arm.lr_change)
        expected |= {"log_lr_change_down": down, "log_lr_change_up": up}
        assert dict(zip(names, row[first:], strict=False)) == expected
    assert not any(row[len(own) + 2 * len(names) :])
    # The control's own are the first arm's.
    assert [found[name] for name in names] == row[len(own) : len(own) + len(names)]


NEVER = (math.inf, 0.0)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        # horizon, hold_by, annealed_over, log_held_share
        ({"law": "loss"}, (0.0, *NEVER, math.log(0.5))),
        ({"law": "alignment"}, (0.0, *NEVER, math.log(0.5))),
        ({"law": "alignment", "horizon": 100}, (100.0, 60.0, 40.0, 0.0)),
        ({"law": "alignment", "horizon": 100, "cooldown": 0.0}, (100.0, 100.0, 0.0, 0.0)),
        ({"law": "alignment", "horizon": 100, "cooldown": 0.75}, (100.0, 25.0, 75.0, 0.0)),
        ({"law": "alignment", "mode": "modulate"}, (0.0, *NEVER, 0.0)),
        ({"law": "alignment", "mode": "modulate", "horizon": 100}, (100.0, 60.0, 0.0, 0.0)),
    ],
    ids=str,
)
@pytest.mark.parametrize(("reward", "number"), [("none", 0), ("neg_loss", 1), ("given", 2)])
def test_what_horizon_and_reward_become(
    arguments: dict[str, Any], expected: tuple[float, ...], reward: str, number: int
) -> None:
    found = law_twin.numbers(Control(reward=reward, **arguments))  # type: ignore[arg-type]
    assert (found.law, found.reward_source) == (arguments["law"] == "alignment", number)
    horizon = (found.horizon, found.hold_by, found.annealed_over, found.log_held_share)
    assert horizon == expected


# --- The twins of the law ---------------------------------------------------------------------


def _camel(name: str) -> str:
    return name.title().replace("_", "")


def test_every_law_is_registered_once_in_each_language() -> None:
    assert get_args(terms.Law) == tuple(layout.LAWS) == tuple(terms.LAW_TERMS)
    assert tuple(registry.BY_NUMBER) == tuple(layout.LAWS.values())
    text = (CSRC / "law/registry.h").read_text()
    cases = re.findall(r"case kLaw(\w+):\s+return visit\((\w+)Law\{\}\);", text)
    assert cases == [(name, name) for name in map(_camel, layout.LAWS)]
    for name, of_law in terms.LAW_TERMS.items():
        assert registry.law_of(name).needs_loss == of_law.needs_loss
        twin = (CSRC / f"law/{name}.h").read_text()
        assert f"needs_loss = {str(of_law.needs_loss).lower()};" in twin


@pytest.mark.parametrize("module", law_twin.MODULES, ids=lambda module: module.__name__)
def test_twins_have_the_same_constants_and_the_same_functions_in_the_same_order(
    module: Any,
) -> None:
    path = Path(module.__file__)
    text = (CSRC / "law" / f"{path.stem}.h").read_text()
    found = dict(re.findall(r"constexpr double k(\w+) = (\S+);", text))
    # kOvershootSize is OVERSHOOT_SIZE.
    numbers = {re.sub(r"\B([A-Z])", r"_\1", n).upper(): float(x) for n, x in found.items()}
    ours = {n: x for n, x in vars(module).items() if n.isupper() and isinstance(x, float)}
    imported = {name for name in ours if name.startswith(("REWARD_", "COOLDOWN_"))}
    assert numbers == {name: x for name, x in ours.items() if name not in imported}
    python = re.findall(r"^def (\w+)", path.read_text(), re.M)
    compiled = re.findall(r"^ *ADAPTIVERL_BOTH (?:static )?[\w&]+ (\w+)\(", text, re.M)
    # C++ has to do more: the inbox, the trace, what is not a number.
    assert [name for name in compiled if name in python] == [n for n in python if n in compiled]
    assert set(python) <= set(compiled)


# --- One number more --------------------------------------------------------------------------

PROGRAM = r"""
#include <cstdio>
#include "law/loop.h"
using namespace adaptiverl;

int main() {
  ControlNumbers control{};
  fread(&control, sizeof control, 1, stdin);
  State state = start(control, 1e-3, 0.9, 0, 0);
  Inbox inbox{};
  TraceRow ring[9]{};
  for (int i = 0; i < 8; ++i) {
    put(inbox, 3.0 - 0.25 * i, false, 0);
    state.probe += state.step;
    advance(state, control, inbox, false, true, ring, 8);
  }
  fwrite(&state, sizeof state, 1, stdout);
}
"""


def extended() -> type:
    """The next layout: a line more, in the middle."""
    probe = kinds.number(0.25, kinds.SIZE, "a sum of steps")
    lines: list[Any] = []
    for column in layout.columns(State):
        if column.name == "variance":
            lines.append(("probe", float, probe))
        default = LAYOUT_VERSION + 1 if column.name == "version" else column.default
        line = kinds.number(default, column.kind, column.doc, column.array)
        lines.append((column.name, float, line))
    return make_dataclass("State", lines)


def test_a_line_more_is_all_that_cpp_needs(tmp_path: Path) -> None:
    """The law, compiled against the new header: the new number is there, and the rest as before."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler to compile the law with")
    record = extended()
    copy, program = tmp_path / "csrc", tmp_path / "program"
    shutil.copytree(CSRC, copy)
    (copy / "layout.h").write_text(layout_files.header(record))
    (copy / "program.cpp").write_text(PROGRAM)
    flags = ["-std=c++17", "-ffp-contract=off", "-Wno-unused-result"]
    command = [compiler, *flags, str(copy / "program.cpp"), "-o", str(program)]
    subprocess.run(command, check=True, capture_output=True)
    given = Control(every=1)
    row = packed(law_twin.numbers(given, LR, MOMENTUM))
    size = struct.calcsize("d")
    done = subprocess.run(
        [str(program)], input=struct.pack(f"{len(row)}d", *row), capture_output=True
    )
    state = dict(
        zip(
            layout.names(record),
            struct.unpack(f"{len(done.stdout) // size}d", done.stdout),
            strict=True,
        )
    )
    assert state.pop("probe") == 0.25 + sum(range(8))
    assert state.pop("version") == LAYOUT_VERSION + 1
    expected = law_twin.course("python", given, observed([3.0 - 0.25 * i for i in range(8)]))
    for name, value in state.items():
        wanted = getattr(expected[-1], name, LAYOUT_VERSION)
        assert value == pytest.approx(wanted, rel=1e-12, nan_ok=True), name


def test_a_line_more_and_a_migration_are_all_that_a_checkpoint_needs() -> None:
    record, place = extended(), layout.SLOT["variance"]

    def add_probe(memory: Tensor) -> Tensor:
        return insert(memory, size=MEMORY_SIZE, place=place, numbers=[0.25])

    controller = Controller(Control(every=1), LR, MOMENTUM)
    arguments: Any = (record, MIGRATIONS | {LAYOUT_VERSION: add_probe})
    memory = current_layout(controller.memory, *arguments)
    assert memory.numel() == MEMORY_SIZE + 1
    assert memory[place] == 0.25
    kept = torch.cat([memory[1:place], memory[place + 1 :]])
    torch.testing.assert_close(kept, controller.memory[1:], rtol=0, atol=0, equal_nan=True)
    # The new number's range is checked, too, and the layouts before lead there.
    memory[place] = -1.0
    with pytest.raises(ValueError, match=r"got probe = -1\.0, which is not in \[0, inf\]"):
        current_layout(memory, *arguments)
    first = torch.cat([torch.ones(1, dtype=torch.float64), controller.memory[1:32]])
    assert current_layout(first, *arguments)[place] == 0.25


def test_a_line_more_moves_what_kernels_read() -> None:
    assert in_kernels.STATE_ACTIVE.value == MEMORY_SIZE
    constants = layout_files.kernel_constants()
    assert f"STATE_ACTIVE = tl.constexpr({MEMORY_SIZE})" in constants
    header = layout_files.header(extended())
    assert members(header, "State") == list(layout.names(extended()))
    assert members(header, "TraceRow") == list(layout.TRACE_COLUMNS)


def test_the_python_law_starts_from_the_tables_defaults() -> None:
    given = Control()
    numbers = numbers_of(given, given.limits(LR, MOMENTUM))
    row = packed(numbers)
    assert len(row) == CONTROL_SIZE
    assert unpacked(row) == numbers
    state = knobs.start(numbers, LR, MOMENTUM)
    for column in layout.columns(State)[12:]:
        assert getattr(state, column.name) == pytest.approx(column.default, abs=0, nan_ok=True)
