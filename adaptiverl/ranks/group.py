"""The ranks that decide together: one mean of what they observed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from adaptiverl.ranks.collectives import all_reduce
from adaptiverl.ranks.joining import Meetings, entered

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

if TYPE_CHECKING or dist.is_available():
    ProcessGroup = dist.ProcessGroup | Literal[False] | None
else:
    ProcessGroup = Literal[False] | None


class Ranks:
    """The ranks that decide together: they average what they observed, so that all decide alike.

    The rule that keeps them from waiting for each other for ever: who meets is decided by what
    every rank knows alike, never by whether this rank observed something. All ranks of the group
    meet once in every step whose control can move a knob (step-wise, some gain above 0), with an
    observation or without; `update` meets when it is called, which every rank must do. A rank
    without an observation brings none and gets the others' mean; where no rank observed, nothing
    is observed (method.md#unobserved-steps). Where the law reads the sweep's sums
    (method.md#alignment) all meet once more in every step, with gradients or without. No rank meets
    where nothing can come of it: one rank, frozen control, and every step in which all groups'
    rates are 0, which the host knows and which is so on all ranks or on none. Such a step moves no
    parameter, decides nothing and does not count: not what was observed for it, nor its gradients'
    alignment. It is how a checkpoint library makes an optimizer's state
    (torch.distributed.checkpoint: one step at a rate of 0 wherever there is no state yet), and that
    may happen on some ranks alone, at any time: on the one that saves replicas before training, on
    one that has nothing to train. A rate that lies on an accelerator counts as above 0.

    Shards' sums of squares are met for in every step that clips or draws noise, at a rate of 0 as
    well, for moments take in what was clipped: there all ranks of a mesh make their state together,
    as they take every step together.

    A rank that has left a `Join` (``with model.join():``) before others brings no observation to
    the meetings of those that go on, and is none of those whose mean is taken (`joining`).

    Each rank's own mean counts the same, however many micro-batches it saw. One rank's NaN or
    infinity makes the mean non-finite, which every rank then sees (method.md#non-finite).

    Args:
        group: A process group; ``None``: the world, once torch.distributed is initialised;
            ``False``: this rank decides alone.

    Raises:
        TypeError: Something else.
        ValueError: A process group that this rank isn't in.
    """

    def __init__(self, group: ProcessGroup = None) -> None:
        if group is not None and group is not False:
            _check_group(group)
        self.group = group

    def is_first(self) -> bool:
        """Whether this is the rank that speaks for all that decide together."""
        return self.size == 1 or dist.get_rank(self.group or None) == 0

    @property
    def agree(self) -> bool:
        """Whether all ranks have the same knobs; ``False`` leaves that to the user."""
        return self.group is not False

    @property
    def size(self) -> int:
        """How many decide together; 1 before torch.distributed is initialised."""
        # A torch built without distributed has neither function.
        if self.group is False or not getattr(dist, "is_initialized", bool)():
            return 1
        return dist.get_world_size(self.group)

    def average(self, inbox: Tensor, observations: int) -> None:
        """This rank's inbox becomes all ranks' together, in one collective; nothing waits.

        Args:
            inbox: float64 [4]: sum and count of losses, sum and count of rewards.
            observations: How many this rank made, as the host counted them.
        """
        if self.group is False:
            return
        if observations > 1:
            counts = inbox[1::2]
            inbox[0::2].div_(counts.clamp(min=1))
            counts.clamp_(max=1)
        joined = entered(self.group)
        if joined is None:
            all_reduce(inbox, self.group)
        else:
            joined.meet(inbox, self)

    def add_up(self, sums: Tensor) -> None:
        """This rank's four numbers become the sums over all ranks; nothing waits.

        Args:
            sums: float64 [4]; a rank that has left a `Join` brings zeros.
        """
        if self.size == 1:
            return
        joined = entered(self.group)
        if joined is None:
            all_reduce(sums, self.group)
        else:
            joined.meet(sums, self)

    def average_alignment(
        self, told: Sequence[tuple[Tensor, Tensor]], actives: Sequence[Tensor | None]
    ) -> None:
        """This rank's sums become the mean of all ranks', in one collective; nothing waits.

        In a `Join`, whose messages are of one size, in one of each controller.

        Args:
            told: Of each controller float64 [3], Σ g·u, Σ g², Σ u² of this step, and float64 [1],
                the elements that they are over.
            actives: Of each: where it is 0, the step is skipped, and its numbers, an earlier
                step's, stay as they are to the bit; ``None``: no step can be.
        """
        if self.size == 1:
            return
        joined, sizes = entered(self.group), [len(part) for part in told[0]]
        own = [torch.cat(parts) for parts in told]
        if joined is None:
            together = torch.stack(own)
            all_reduce(together, self.group)
            means = (together / self.size).unbind()
        else:
            means = tuple(self._mean_in_join(joined, numbers) for numbers in own)
        for parts, mean, active in zip(told, means, actives, strict=True):
            for part, new in zip(parts, mean.split(sizes), strict=True):
                part.copy_(new if active is None else torch.where(active != 0, new, part))

    def _mean_in_join(self, joined: Meetings, numbers: Tensor) -> Tensor:
        total = torch.cat([numbers, numbers.new_ones(1)])
        joined.meet(total, self)
        return total[:-1] / total[-1]

    def check_mesh(self, mesh: DeviceMesh) -> None:
        """Refuse shards whose ranks decide apart.

        Raises:
            ValueError: A rank that holds shards on this mesh isn't in the process group.
        """
        if self.group is False or self.group is None:
            return
        members, holders = (
            set(dist.get_process_group_ranks(self.group)),
            set(mesh.mesh.flatten().tolist()),
        )
        if not holders <= members:
            raise ValueError(
                f"process_group must hold every rank that a parameter is sharded over, got ranks "
                f"{sorted(members)} for a parameter on ranks {sorted(holders)}: those would step "
                "shards of one tensor with different knobs. Leave process_group out, or give the "
                "group of all of them"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Ranks:
        return self

    def __reduce__(self) -> tuple[type[Ranks], tuple[ProcessGroup]]:
        if self.group is not None and self.group is not False:
            raise TypeError(
                "an optimizer with a process_group of its own cannot be pickled, because a process "
                "group cannot: save optimizer.state_dict()"
            )
        return Ranks, (self.group,)


def _check_group(group: Any) -> None:
    if group == dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(
            "process_group must be a group that this rank is in, got one that it isn't in: "
            "new_group() gives such a value to the ranks it leaves out; pass each rank its own "
            "group, or False to let it decide alone"
        )
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            "process_group must be a torch.distributed process group, None (the world) or False "
            f"(this rank alone), got {group!r} of type {type(group).__name__}"
        )
