"""What was observed since the last step: sums on the device, and what of it does not count."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from adaptiverl.layout import Inbox, names

INBOX_SIZE = len(names(Inbox))
Taker = TypeVar("Taker")
EXACT = (torch.float32, torch.float64)
"""What the operators read as it is"""


class Observations:
    """The inbox, and whose losses in it are a skipped step's (method.md#skipped-steps).

    A gradient scaler that skips a step says nothing of it: before every step it asks the optimizer
    whether it unscales by itself (`ask`), and then does not call `step`. But a debugger may ask as
    well, at any time, and must change nothing. The two are told apart by what becomes of the
    gradients that were there when it was asked: those of a skipped step are thrown away before the
    next backward, those of a micro-batch are added to. Some loops observe before they throw
    gradients away, so what is observed after an asking is also summed apart until this shows.

    What does not count is dropped only once something newer was observed. Where gradients are
    zeroed in place behind the optimizer's back (``model.zero_grad(set_to_none=False)``), or a
    wrapper hands the same tensor out again, nothing shows and the skipped step's loss is averaged
    with the next one's; ``optimizer.zero_grad()`` is heard at all times. And one look can be taken
    for a scaler's: between an observation and a `zero_grad` that comes only then, if more is
    observed before the step; the first observation is dropped.

    Attributes:
        sums: float64 [4] on the device, a `layout.Inbox`: sums and counts of losses and rewards.
        count: Observations in it, as the host counted them.
    """

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(INBOX_SIZE, dtype=torch.float64, device=device)
        self.count = 0
        # Looked up once: a search by name at every observation is felt by small networks.
        self._observe = torch.ops.adaptiverl.observe_.default
        self._observe_numbers = torch.ops.adaptiverl.observe_numbers_.default
        self._newer: Tensor | None = None
        """Sums of what was observed after the first `_older`; None where that is not kept apart"""
        self._older = 0
        self._asked_at: int | None = None
        """How many there were at the last asking whose gradients are still in use"""
        self._thrown_away: Callable[[], bool] = bool
        self._skipped = 0
        """How many of the first belong to a step that was skipped"""

    def to(self, move: Callable[[Tensor], Tensor]) -> None:
        """Let `move` bring the sums to another device."""
        self.sums = move(self.sums)
        self._newer = None if self._newer is None else move(self._newer)

    def ask(self, thrown_away: Callable[[], bool]) -> None:
        """Somebody asked, perhaps a gradient scaler; a note on the host, and nothing else.

        Args:
            thrown_away: Whether the gradients that are there now have been thrown away since.
        """
        self._look()
        self._asked_at, self._thrown_away = self.count, thrown_away

    def throw_away(self) -> None:
        """The gradients are being thrown away."""
        if self._asked_at is not None:
            self._skipped, self._asked_at = self._asked_at, None

    def add(self, loss: Tensor | float, reward: Tensor | float | None) -> None:
        """One more, as `as_number` gives them."""
        if self._asked_at is not None or self._skipped:
            self._look()
            self._drop_skipped()
            if self._asked_at is not None and self._asked_at == self.count:
                self._newer, self._older = torch.zeros_like(self.sums), self.count
        if isinstance(loss, Tensor) or isinstance(reward, Tensor):
            observe = self._observe
            loss, reward = self._tensor(loss), None if reward is None else self._tensor(reward)
        else:
            observe = self._observe_numbers
        observe(self.sums, loss, reward)
        if self._newer is not None:
            observe(self._newer, loss, reward)
        self.count += 1

    def close(self) -> None:
        """A step is about to take them: drop what belongs to one that was skipped."""
        self._look()
        if self._skipped < self.count:  # else it is this very step that was asked about
            self._drop_skipped()
        self._newer, self._asked_at, self._skipped = None, None, 0

    def empty(self) -> None:
        """None of them counts."""
        self.sums.zero_()
        self.taken()

    def to_each(self, controllers: Sequence[Taker]) -> Iterator[Taker]:
        """Each in turn, with all of them in the sums, which whoever takes them empties."""
        if len(controllers) == 1:
            yield controllers[0]
            return
        self.close()
        heard = self.sums.clone()
        for controller in controllers:
            self.sums.copy_(heard)
            yield controller

    def taken(self) -> None:
        """A step took them, and emptied the sums."""
        self.count, self._newer, self._asked_at, self._skipped = 0, None, None, 0

    def _tensor(self, value: Tensor | float) -> Tensor:
        return value if isinstance(value, Tensor) else self.sums.new_full((), value)

    def _look(self) -> None:
        if self._asked_at is not None and self._thrown_away():
            self.throw_away()

    def _drop_skipped(self) -> None:
        if self._skipped == 0:
            return
        asked = self._asked_at is not None
        if self._skipped >= self.count or self._newer is None:
            self.empty()
        else:
            self.sums.copy_(self._newer)
            self.count -= self._older
            self._newer, self._skipped = None, 0
        # An asking that came later was about what is left.
        self._asked_at = self.count if asked else None


def as_number(value: Any, name: str, device: torch.device) -> Tensor | float:
    """An observation as the operators read it: a float, or a tensor cut from the graph.

    Args:
        value: What was observed.
        name: What the errors call it.
        device: Of the inbox.

    Returns:
        A Python float, or a float32 or float64 tensor of one element on the device.

    Raises:
        TypeError: Something without a real value.
        ValueError: More than one element.
    """
    if type(value) is float:
        return value
    if isinstance(value, Tensor):
        return _element(value, name, device)
    if getattr(value, "shape", None) == () and hasattr(value, "__getitem__"):
        value = value[()]  # the number in a NumPy array of no dimensions
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"{name} must be a real number or a tensor with one element, got {value!r} "
            f"of type {type(value).__name__}"
        )
    try:
        return float(value)
    except OverflowError:
        raise ValueError(
            f"{name} must be a number that float64 holds, got one beyond 1.8e308: give "
            "float('inf') if it is what you mean"
        ) from None


def _element(value: Tensor, name: str, device: torch.device) -> Tensor:
    if value.layout is not torch.strided or value.is_nested or value.is_quantized:
        raise TypeError(_no_plain_tensor(value, name))
    if value.dtype in EXACT and value.device == device and value.numel() == 1:
        if not value.is_meta:
            return value.detach() if value.requires_grad else value
    elif value.numel() != 1:
        raise ValueError(
            f"{name} must have one element, got shape {tuple(value.shape)}: "
            f"reduce it first, as in {name}.mean()"
        )
    if value.is_complex() or value.dtype == torch.bool:
        remedy = f"{name}.real, or {name}.abs()" if value.is_complex() else f"float({name})"
        raise TypeError(
            f"{name} must be a real number, got dtype {value.dtype}: give {remedy} if that is "
            "what you mean"
        )
    if value.is_meta:
        raise TypeError(
            f"{name} has no value: it is a tensor on the meta device. Leave it out where nothing "
            "is computed"
        )
    if value.requires_grad:
        value = value.detach()
    if value.device != device:
        # On the host the operator reads it at once, so there it has to have arrived.
        value = value.to(device, non_blocking=device.type != "cpu")
    # Only here: where it came from there may be no float64.
    return value if value.dtype in EXACT else value.to(torch.float64)


def _no_plain_tensor(value: Tensor, name: str) -> str:
    if value.is_nested:
        what, remedy = "a nested tensor", f"{name}.values().mean()"
    elif value.is_quantized:
        what, remedy = f"quantised, {value.dtype}", f"{name}.dequantize()"
    else:
        what, remedy = f"of layout {value.layout}", f"{name}.to_dense()"
    return f"{name} must be a plain tensor with one element, got one that is {what}: give {remedy}"
