"""Every group's numbers, where the controller's kernel reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from adaptiverl import devices
from adaptiverl.layout import Group, names
from adaptiverl.step.workspace import DeviceTable, Workspace

GROUP_COLUMNS = names(Group)
"""A row of the group table: `Algorithm.numbers_of`"""


class GroupTable:
    """Every group's numbers on the device, `GROUP_COLUMNS`; written only where changed.

    In a capture the numbers that the host knows become constants of the graph: the last step's
    table where it says the same, and otherwise one that only the graph writes and reads.

    Attributes:
        numbers: float64 [groups, 5], as the user or a scheduler set them.
        effective: float64 [groups, 2], lr and momentum of this step; the (first) controller writes
            it.
    """

    def __init__(
        self,
        device: torch.device,
        numbers_of: Callable[[dict[str, Any]], Sequence[Any]],
        workspace: Workspace,
    ) -> None:
        self.device = device
        self._numbers_of = numbers_of
        self._workspace = workspace
        self._table = DeviceTable(workspace, ("numbers", device), device)
        self._known: list[tuple[float | None, ...]] = []
        self._written: list[tuple[float | None, ...]] | None = None
        self._plain: list[Any] | None = None
        """What the table says, where all are Python's numbers"""
        self.numbers = devices.zeros((0, len(GROUP_COLUMNS)), device)
        self.effective = devices.zeros((0, 2), device)

    def refresh(self, groups: Sequence[dict[str, Any]]) -> None:
        """Take over the groups' entries. A number that lives on a device never visits the host.

        Raises:
            RuntimeError: The stream is capturing, and the last step had another number of groups.
        """
        values = [self._numbers_of(group) for group in groups]
        if _are_plain(values) and values == self._plain:
            self._table.prepare()
            return
        self._plain = None
        self._known = [
            tuple(None if on_accelerator(x) else float(x) for x in row) for row in values
        ]
        self.numbers = self._constants()
        self.effective = self.effective_of(0)
        if any(None in known for known in self._known):
            self._copy_from_devices(values)
        elif self._known == self._written and _are_plain(values):
            self._plain = values

    def effective_of(self, place: int) -> Tensor:
        """The same, of another controller's: where each group has one, its own group's row counts.

        Args:
            place: The controller's.
        """
        owner = ("effective", self.device) if place == 0 else ("effective", self.device, place)
        shape = (len(self._known), 2)
        (effective,) = self._workspace.hold(
            owner, shape, self.device, lambda: (devices.zeros(shape, self.device),)
        )
        return effective

    def _constants(self) -> Tensor:
        """A table with the numbers that the host knows."""
        if self._known == self._written:
            self._table.prepare()
            assert self._table.rows is not None
            return self._table.rows
        rows = [[UNKNOWN if x is None else x for x in known] for known in self._known]
        wanted = torch.tensor(rows, dtype=torch.float64, device="cpu")
        wanted = wanted.reshape(len(rows), len(GROUP_COLUMNS))
        if devices.is_capturing(self.device):
            return self._table.record(wanted)
        numbers = self._table.write(wanted)
        self._written = self._known
        return numbers

    def _copy_from_devices(self, values: Sequence[Sequence[Any]]) -> None:
        there = [
            (g, column, value.detach())
            for g, row in enumerate(values)
            for column, value in enumerate(row)
            if on_accelerator(value)
        ]
        if devices.is_capturing(self.device):
            self._workspace.keep(self.device, [value for _, _, value in there])
        for g, column, value in there:
            # It becomes float64 only here: its own device may have none.
            self.numbers[g, column].copy_(value.reshape(()).to(self.device))


UNKNOWN = float("nan")
"""Written for a number that lives on a device, until it is copied from there"""


def any_rate(groups: Iterable[dict[str, Any]]) -> bool:
    """Some group's learning rate is not 0, or on an accelerator, where the host does not look."""
    for group in groups:
        lr = group["lr"]
        if on_accelerator(lr) or float(lr) != 0:
            return True
    return False


def on_accelerator(value: Any) -> bool:
    """Whether the host would wait for this number."""
    return isinstance(value, Tensor) and value.device.type != "cpu"


def _are_plain(values: Sequence[Sequence[Any]]) -> bool:
    """Whether all are Python's own numbers, which nobody changes in place."""
    return all(PLAIN_NUMBERS.issuperset(map(type, row)) for row in values)


PLAIN_NUMBERS = {float, int}
