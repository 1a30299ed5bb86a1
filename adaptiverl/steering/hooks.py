"""Around an optimizer's step: once before and once after it, whatever it does in between."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch.optim import Optimizer

Before = Callable[[Optimizer, Any], None]
"""Called with the optimizer, and the loss that its closure returned, or None"""
After = Callable[[Optimizer], None]


class StepHooks:
    """Calls `before` and `after` around every step of an optimizer.

    A closure computes the gradients inside the step: then `before` comes after the closure. A step
    that calls its base class's, which torch wraps as well, is one step. One that raised is over.

    Args:
        optimizer: Whose steps.
        before: When the gradients are there, and nothing has been read yet.
        after: When the parameters have moved.
        abandon: Where a step raised, before the next one.
    """

    def __init__(self, optimizer: Optimizer, before: Before, after: After, abandon: After) -> None:
        self._before, self._after, self._abandon = before, after, abandon
        self._depth = 0
        self._outermost: FrameType | None = None
        self._closed = False
        self._handles = [
            optimizer.register_step_pre_hook(self._enter),
            optimizer.register_step_post_hook(self._leave),
        ]

    def remove(self) -> None:
        """No step is followed any more."""
        for handle in self._handles:
            handle.remove()

    def _enter(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        frame = sys._getframe(1)
        if self._depth and _is_running(self._outermost, frame):
            self._depth += 1
            return None
        if self._depth:
            self._abandon(optimizer)
        self._depth, self._outermost, self._closed = 1, frame, False
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):
            self._before(optimizer, None)
            return None
        followed = self._followed(optimizer, closure)
        if len(args) > 1:
            return (args[0], followed, *args[2:]), kwargs
        return args, {**kwargs, "closure": followed}

    def _followed(self, optimizer: Optimizer, closure: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            if self._closed:
                raise RuntimeError(
                    f"{type(optimizer).__name__} evaluates its closure more than once in a step, "
                    "each time with other parameters, so there is no one rate to steer: take "
                    "steer() off, or an optimizer that evaluates it once"
                )
            loss = closure()
            self._closed = True
            self._before(optimizer, loss)
            return loss

        return run

    def _leave(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._outermost = None
            self._after(optimizer)


def _is_running(wanted: FrameType | None, frame: FrameType | None) -> bool:
    """Whether that call has not returned yet."""
    while frame is not None and frame is not wanted:
        frame = frame.f_back
    return frame is not None
