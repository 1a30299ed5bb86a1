"""Ranks that run out of batches at different times: `Join`, and DDP's ``with model.join():``.

In such a context a rank that has left goes on taking part in what the others' DDP adds up, until
they have left too. It asks again and again how many are still there: an all-reduce of one number,
to which a rank that trains brings 1 at the start of its forward pass. Of an optimizer whose ranks
meet in `step`, `Join` knows nothing. So there every meeting is announced, by the same all-reduce
with −1: a sum below 0 tells those that have left that a few numbers are about to be added up, and
they bring zeros, as a rank without an observation does. They need not know how many forward passes
come before a step, nor which optimizers there are.

`Join` tells nobody that it is entered, so its `__enter__` and `__exit__` are wrapped when this is
imported; for a `Join` in which none of ours meets nothing changes.

DDP gives all ranks the parameters of one that stepped to the end. An optimizer of these parameters
gets that rank's state in the same way, or the replicas would part in their next step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import wraps
from itertools import chain
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from adaptiverl.devices import numbers_device
from adaptiverl.layout import AlignmentSums, Inbox, names
from adaptiverl.ranks.collectives import all_reduce, broadcast

if TYPE_CHECKING:
    from torch.distributed.algorithms.join import Join

MESSAGE_SIZE = max(len(names(Inbox)), len(names(AlignmentSums)) + 2)
"""float64 numbers that every meeting in a `Join` adds up: an inbox, or sums, of how many elements
and of how many ranks"""

_optimizers: WeakKeyDictionary[torch.optim.Optimizer, Any] = WeakKeyDictionary()
"""All of ours that live, the oldest first, and for each who it decides together with"""
_entered: list[Meetings] = []


def watch(optimizer: torch.optim.Optimizer, ranks: Any) -> None:
    """Give this optimizer the others' state where its rank leaves a `Join` before them.

    Args:
        optimizer: One of ours.
        ranks: Its `Ranks`.
    """
    _optimizers[optimizer] = ranks


class Joins:
    """What `Join` asks of what it is given, so that ``Join([model, optimizer])`` works as well.

    It has no hook of its own to give: `Meetings` has one for all optimizers.
    """

    param_groups: list[dict[str, Any]]
    _ranks: Any

    def join_hook(self, **_: Any) -> Any:
        """Nothing to do that `Meetings` does not."""
        from torch.distributed.algorithms.join import JoinHook

        return JoinHook()

    @property
    def join_device(self) -> torch.device:
        """The first parameter's."""
        return self.param_groups[0]["params"][0].device

    @property
    def join_process_group(self) -> Any:
        """The ranks that decide together."""
        return self._ranks.group or dist.group.WORLD


def entered(group: Any) -> Meetings | None:
    """The innermost `Join` that is entered, if a meeting of this group has to be announced there.

    Args:
        group: A process group, or None for the world.

    Raises:
        ValueError: Some of its ranks and some others may leave: a meeting would wait for ever.
    """
    if not _entered or not _entered[-1].concerns(group):
        return None
    return _entered[-1]


class Meetings:
    """The meetings in one entered `Join`.

    Raises:
        ValueError: An optimizer comes before a model: who comes first tells who is still there.
    """

    def __init__(self, join: Join) -> None:
        first, *others = join._joinables
        if isinstance(first, Joins) and others:
            raise ValueError(
                f"Join() got {type(first).__name__} first, which does not tell the others when "
                "a forward pass begins: put the model first, as in Join([model, optimizer])"
            )
        self.join = join
        device: Any = join._device  # torch says that it may be None
        self._device = numbers_device(torch.device(device))
        self._met: WeakSet[Any] = WeakSet()
        self._shadowed = self._any = False
        self._members = set(dist.get_process_group_ranks(join._process_group))
        count = join._get_num_nonjoined_procs

        def count_after_meetings() -> float:
            while (found := count()) < 0:
                self._add_up(torch.zeros(MESSAGE_SIZE, dtype=torch.float64, device=self._device))
                self._shadowed = True
            return found

        join._get_num_nonjoined_procs = count_after_meetings  # type: ignore[method-assign]
        join._join_hooks.append(self)  # type: ignore[arg-type]

    def close(self) -> None:
        """The `Join` is left, by an error perhaps."""
        self.join._join_hooks.remove(self)  # type: ignore[arg-type]
        del self.join._get_num_nonjoined_procs

    def concerns(self, group: Any) -> bool:
        """Whether its ranks are those that may leave.

        Raises:
            ValueError: Some are, and there are others.
        """
        members = set(dist.get_process_group_ranks(group))
        if members == self._members:
            return True
        if len(members & self._members) == 1:
            return False
        raise ValueError(
            f"ranks {sorted(self._members)} may leave this join() at different times, and the "
            f"optimizer's decide together on ranks {sorted(members)}: those would wait for each "
            "other for ever. Give the optimizer the model's process_group, or False"
        )

    def meet(self, numbers: Tensor, ranks: Any) -> None:
        """Add up numbers over the ranks that are still there, in place; nothing waits.

        Args:
            numbers: float64, at most `MESSAGE_SIZE`.
            ranks: The optimizer's `Ranks`.
        """
        self._met.add(ranks)
        device = self.join._device
        all_reduce(torch.full((1,), -1.0, device=device), self.join._process_group)
        message = torch.zeros(MESSAGE_SIZE, dtype=torch.float64, device=self._device)
        message[: len(numbers)] = numbers.to(self._device)
        self._add_up(message)
        numbers.copy_(message[: len(numbers)])

    def _add_up(self, message: Tensor) -> None:
        self._any = True
        all_reduce(message, self.join._process_group)

    # What `Join` calls of a hook

    def main_hook(self) -> None:
        """The others begin a forward pass, whose collectives are DDP's."""

    def post_hook(self, is_last_joiner: bool) -> None:
        """All have left. Who left early goes on with the optimizers' state of one who did not."""
        if not self._any:  # which is so on all ranks, or on none
            return
        group = self.join._process_group
        own = dist.get_rank(group) if is_last_joiner else -1
        votes = torch.tensor([own, self._shadowed], dtype=torch.int64, device=self.join._device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=group)
        source, shadowed = votes.tolist()
        if shadowed:
            self._share(source)

    # One rank's state for all

    def _share(self, source: int) -> None:
        group = self.join._process_group
        is_source = dist.get_rank(group) == source
        here = dict(self._trained(steppers_only=is_source))
        saved = {key: optimizer.state_dict() for key, optimizer in here.items()}
        told = [tree_map_only(Tensor, Blank.of, saved) if is_source else None]
        dist.broadcast_object_list(told, group=group, device=self.join._device, group_src=source)
        blanks: Any = told[0]
        if is_source:
            for tensor in filter(torch.is_tensor, tree_leaves(saved)):
                broadcast(tensor.detach().contiguous(), source, group)
            return

        def receive(blank: Blank) -> Tensor:
            content = torch.empty(blank.shape, dtype=blank.dtype, device=blank.device(self.join))
            broadcast(content, source, group)
            return torch.empty_strided(
                blank.shape, blank.strides, dtype=blank.dtype, device=content.device
            ).copy_(content)

        for key, state in tree_map_only(Blank, receive, blanks).items():
            if key in here:
                here[key].load_state_dict(state)

    def _trained(self, steppers_only: bool) -> Iterator[tuple[Any, torch.optim.Optimizer]]:
        """Optimizers of what is joined, by what they train; the newest comes last."""
        modules = [joined for joined in self.join._joinables if isinstance(joined, nn.Module)]
        params = chain.from_iterable(module.parameters() for module in modules)
        places = {param: place for place, param in enumerate(params)}
        for optimizer, ranks in list(_optimizers.items()):
            trained = [[places.get(p, -1) for p in g["params"]] for g in optimizer.param_groups]
            if any(place >= 0 for group in trained for place in group) and (
                ranks in self._met or not steppers_only
            ):
                yield (type(optimizer).__qualname__, *map(tuple, trained)), optimizer


@dataclass(frozen=True)
class Blank:
    """Stands for a tensor that is sent after it."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    on_host: bool

    @classmethod
    def of(cls, tensor: Tensor) -> Blank:
        """The blank of a tensor."""
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device.type == "cpu")

    def device(self, join: Join) -> torch.device:
        """Where a rank makes its own."""
        device: Any = "cpu" if self.on_host else join._device
        return torch.device(device)


def _wrap(join: type[Join]) -> None:
    enter, leave = join.__enter__, join.__exit__

    @wraps(enter)
    def enter_watched(self: Join) -> Any:
        if self._enable:
            _entered.append(Meetings(self))
        return enter(self)

    @wraps(leave)
    def leave_watched(self: Join, *error: Any) -> Any:
        try:
            return leave(self, *error)
        finally:
            if _entered and _entered[-1].join is self:
                _entered.pop().close()

    join.__enter__ = enter_watched  # type: ignore[method-assign]
    join.__exit__ = leave_watched  # type: ignore[method-assign]


if dist.is_available():
    from torch.distributed.algorithms.join import Join as TorchsJoin

    _wrap(TorchsJoin)
