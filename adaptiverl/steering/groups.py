"""A torch optimizer's groups: the rate and the momentum that a step reads, and the user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from adaptiverl.limits import BETA1, HEAVY_BALL, MomentumKind

Group = Mapping[str, Any]


def kind_of(group: Group) -> MomentumKind:
    """What μ is to this optimizer; β₁ where it has none, and then nothing reads it."""
    sums = "betas" not in group and "momentum" in group
    return HEAVY_BALL if sums else BETA1


def momentum_of(group: Group) -> Any:
    """β₁ or the momentum, a number or a tensor; 0 where the optimizer has none."""
    betas = group.get("betas")
    return betas[0] if betas else group.get("momentum", 0.0)


def numbers_of(group: Group) -> tuple[Any, ...]:
    """A row of the group table (`layout.Group`), of which only two numbers are read."""
    return group["lr"], momentum_of(group), 0.0, 0.0, 0.0


class InEffect:
    """The numbers in effect, in one optimizer's groups for as long as a step of its runs.

    Between two steps every group holds what the user or a scheduler put there, as ours do: a
    schedule that multiplies the rate multiplies that, and a checkpoint has that.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[dict[str, Any], str, Any]] = []

    def write(
        self,
        groups: Sequence[dict[str, Any]],
        effective: Tensor,
        numbers: Sequence[Sequence[float]] | None,
        with_momentum: bool,
    ) -> None:
        """Put them there; a tensor in place, so that nothing waits and a compiled step sees it.

        Args:
            groups: One optimizer's.
            effective: float64 [groups, 2], each one's rate and momentum of this step.
            numbers: The same on the host; None where all are tensors, and nobody asked.
            with_momentum: μ can move.
        """
        for i, group in enumerate(groups):
            there, here = effective[i], None if numbers is None else numbers[i]
            self._put(group, "lr", group["lr"], there[0], None if here is None else here[0])
            if with_momentum and "betas" in group:
                self._kept.append((group, "betas", _kept(group["betas"])))
                first, *rest = group["betas"]
                value = _written(first, there[1], None if here is None else here[1])
                group["betas"] = (value, *rest)
            elif with_momentum and "momentum" in group:
                now = group["momentum"]
                self._put(group, "momentum", now, there[1], None if here is None else here[1])

    def _put(
        self, group: dict[str, Any], name: str, now: Any, there: Tensor, here: float | None
    ) -> None:
        self._kept.append((group, name, _kept(now)))
        group[name] = _written(now, there, here)

    def take_back(self) -> None:
        """The user's own again."""
        for group, name, value in reversed(self._kept):
            group[name] = _restored(group[name], value)
        self._kept = []


def _kept(value: Any) -> Any:
    """What is put back: of a tensor, which is written in place, a copy."""
    if isinstance(value, (tuple, list)):
        return type(value)(_kept(x) for x in value)
    return value.clone() if isinstance(value, Tensor) else value


def _written(now: Any, there: Tensor, here: float | None) -> Any:
    if isinstance(now, Tensor):
        return now.copy_(there, non_blocking=now.device.type != "cpu")
    assert here is not None
    return here


def _restored(now: Any, value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_restored(x, y) for x, y in zip(now, value, strict=True))
    return now.copy_(value) if isinstance(value, Tensor) and isinstance(now, Tensor) else value


def reads_floats(groups: Sequence[Group], with_momentum: bool) -> bool:
    """Whether some group's rate or moving momentum is a Python number, which the host has to know.

    Args:
        groups: All.
        with_momentum: μ can move.
    """
    numbers = [group["lr"] for group in groups]
    if with_momentum:
        numbers += [
            momentum_of(group) for group in groups if "betas" in group or "momentum" in group
        ]
    return not all(isinstance(number, Tensor) for number in numbers)
