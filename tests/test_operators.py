"""What every compiled operator refuses, and that nothing has changed when it does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from adaptiverl import Control
from adaptiverl.backends import placement
from adaptiverl.controller import Controller
from adaptiverl.step.entries import COLUMNS

OPERATORS = torch.ops.adaptiverl
KEYS = {"CPU": torch._C.DispatchKey.CPU, "CUDA": torch._C.DispatchKey.CUDA}
SIZES = (5, 6)


def double(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.float64)


class Arguments:
    """Every operator's arguments by name, sound and on the CPU, over two tensors."""

    def __init__(self) -> None:
        self.controller = Controller(Control(), 1e-3, 0.9)
        # Address rows of four arrays each; `max_exp_avg_sq` is absent.
        self.arrays = [[torch.ones(n) for _ in range(4)] for n in SIZES]
        self.counts = [(torch.ones(()), double(3)) for _ in SIZES]
        self.rows = torch.tensor([self._row(i, n) for i, n in enumerate(SIZES)])
        self.groups = torch.tensor([[1e-3, 0.9, 0.99, 1e-8, 0.0]], dtype=torch.float64)
        self.effective = torch.tensor([[1e-3, 0.9]], dtype=torch.float64)

    def _row(self, i: int, numel: int) -> list[int]:
        param, grad, exp_avg, exp_avg_sq = (t.data_ptr() for t in self.arrays[i])
        step, mu_product = (t.data_ptr() for t in self.counts[i])
        addresses = [param, grad, exp_avg, exp_avg_sq, 0, step, mu_product]
        return [*addresses, numel, 0, i, 0, numel, 0, 0]

    def of(self, operator: str) -> dict[str, Any]:
        return self.of_all()[operator]

    def of_all(self) -> dict[str, dict[str, Any]]:
        """Fresh ones but for what `everything` looks at."""
        c = self.controller
        state, numbers, inbox, trace = c.state, c.numbers, c.inbox, c.ring.on(c.device)
        read = {"groups": self.groups, "effective": self.effective}
        step = {
            "rows": self.rows,
            "state": state,
            **read,
            "squares": double(2),
            "gradient_scale": double(),
            "sums": double(2, 3),
        }
        return {
            "observe_numbers_": {"inbox": inbox, "loss": 1.0, "reward": 1.0},
            "observe_": {"inbox": inbox, "loss": double(), "reward": double()},
            "advance_": {
                "state": state,
                "numbers": numbers,
                "inbox": inbox,
                "trace": trace,
                "groups": self.groups,
                "effective": self.effective,
                "tables": [self.rows],
                "found_inf": torch.zeros(()),
            },
            "reduce_alignment_": {"state": state, "sums": [double(2, 3)]},
            "update_": {"state": state, "numbers": numbers, "inbox": inbox, "trace": trace},
            "pulse_": {"state": state, "numbers": numbers, "sums": double(4)},
            "read_groups_": {"state": state, **read},
            "sum_squares_": {
                "rows": self.rows,
                "state": state,
                "squares": double(2),
                "always": True,
            },
            "adamw_step_": step,
            "sgd_step_": step,
        }

    def everything(self) -> list[bytes]:
        c = self.controller
        tensors = [c.state, c.inbox, c.ring.on(c.device), self.effective]
        tensors += [t for arrays in (*self.arrays, *self.counts) for t in arrays]
        return [t.numpy().tobytes() for t in tensors]


NAMES = tuple(Arguments().of_all())
ON_DEVICE = NAMES[:7]
"""Those that there are for CUDA as well"""


def call(operator: str, arguments: dict[str, Any], key: str = "CPU") -> None:
    getattr(OPERATORS, operator).default._op_dk(KEYS[key], *arguments.values())


def assert_refused(operator: str, message: str, key: str = "CPU", **wrong: Any) -> None:
    given = Arguments()
    before = given.everything()
    with pytest.raises(RuntimeError, match=message):
        call(operator, given.of(operator) | wrong, key)
    assert given.everything() == before


@pytest.mark.parametrize("operator", NAMES)
def test_the_arguments_of_these_tests_are_sound(operator: str) -> None:
    given = Arguments()
    before = given.everything()
    call(operator, given.of(operator))
    unchanged = operator in ("read_groups_", "sum_squares_", "update_")
    assert (given.everything() == before) == unchanged


MISPLACED = [
    (key, operator, name)
    for key, operators in (("CPU", NAMES), ("CUDA", ON_DEVICE))
    for operator in operators
    for name, value in Arguments().of(operator).items()
    if isinstance(value, (Tensor, list)) and operator != "observe_numbers_"  # with one tensor
]


@pytest.mark.parametrize(("key", "operator", "name"), MISPLACED)
def test_a_tensor_on_another_device_is_refused(key: str, operator: str, name: str) -> None:
    """CUDA's operators look at devices before anything else: no GPU is needed to see that."""
    if key == "CUDA" and not placement.has_cuda_controller():
        pytest.skip("built without nvcc: there is no CUDA operator to ask")
    arguments = Arguments().of(operator)
    first = next(iter(arguments))
    value = arguments[name]
    wrong = [value[0].to("meta")] if isinstance(value, list) else value.to("meta")
    # Of the first argument the others are told that they are not where it is.
    found = r"\w+ must be on the device of (\w+), meta, got cpu"
    if name != first:
        found = f"{name} must be on the device of {first}, cpu, got meta"
    assert_refused(operator, found, key, **{name: wrong})


@pytest.mark.parametrize("numbers", [0, 2])
def test_found_inf_is_one_number(numbers: int) -> None:
    message = f"found_inf must have one element, got {numbers}"
    assert_refused("advance_", message, found_inf=torch.zeros(numbers))


@pytest.mark.parametrize("column", ["numel", "offset", "logical_numel"])
@pytest.mark.parametrize("operator", ["advance_", "sum_squares_", "adamw_step_", "sgd_step_"])
def test_a_negative_size_is_refused(operator: str, column: str) -> None:
    rows = Arguments().rows
    rows[1, COLUMNS.index(column)] = -3
    wrong = {"tables": [rows]} if operator == "advance_" else {"rows": rows}
    assert_refused(operator, f"row 1 must have no negative size, got .*{column} = -3", **wrong)


@pytest.mark.parametrize("group", [-1, 1])
@pytest.mark.parametrize("operator", ["advance_", "adamw_step_", "sgd_step_"])
def test_a_group_that_is_not_there_is_refused(operator: str, group: int) -> None:
    rows = Arguments().rows
    rows[1, COLUMNS.index("group")] = group
    wrong = {"tables": [rows]} if operator == "advance_" else {"rows": rows}
    assert_refused(operator, f"row 1 names group {group}, but there are 1", **wrong)


def test_normals_have_no_negative_offset() -> None:
    """Of `philox_words_` any 64 bits are a counter: the published answers include 2^64 − 1."""
    out = torch.zeros(8)
    with pytest.raises(RuntimeError, match="offset must not be negative, got -4"):
        OPERATORS.normals_(1, 2, 3, 4, -4, out)
    assert not out.any()


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.float32, "Float"), (torch.bfloat16, "BFloat16"), (torch.int64, "Long")],
)
def test_a_wrong_dtype_is_named(dtype: torch.dtype, name: str) -> None:
    wrong = double(1, 2).to(dtype)
    assert_refused("read_groups_", f"must be float64, got scalar type {name}$", effective=wrong)
