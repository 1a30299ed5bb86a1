"""What the passes of a step summed, to the controllers (method.md#alignment)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from adaptiverl.announcements import Announcements
from adaptiverl.controller import Controller
from adaptiverl.decision import Decision
from adaptiverl.devices import beside
from adaptiverl.law.numbers import hold_by
from adaptiverl.law.registry import law_of
from adaptiverl.layout import SLOT
from adaptiverl.ranks.group import Ranks
from adaptiverl.ranks.shards import Shards
from adaptiverl.step.bucket import Bucket, Home


def still_read(controller: Controller, heard: Announcements, ranks: Ranks) -> bool:
    """Whether the law will read the sums of the pass that follows, once a step is decided.

    Asked where the answer costs nothing: on the host. From a GPU it would come late, now sooner and
    now later, and ranks have to agree on whether they meet; there it is always yes.

    Args:
        controller: It has decided.
        heard: What it announced.
        ranks: Those that decide together.
    """
    until, state = law_of(controller.control.law).reads_sums_until, controller.state
    if until == "end" or not heard.held or ranks.size > 1 or state.device.type != "cpu":
        return True
    held, climbing, step = (float(state[SLOT[name]]) for name in ("held", "climbing", "step"))
    if not held:  # it was, and is looked for again (method.md#watch)
        return True
    return until != "held" and not climbing and step < hold_by(controller.control)


def reduce_alignment(
    controllers: Sequence[Controller],
    passes: Sequence[Sequence[Bucket]],
    decisions: Mapping[Home, Decision],
    shards: Shards,
    ranks: Ranks,
    resting: Collection[int] = (),
) -> None:
    """To each controller its own passes' sums: over all tensors, shards and ranks.

    Args:
        controllers: One, or one of each group.
        passes: The step's buckets; those that are listed together count as one.
        decisions: The step's.
        shards: Those of the optimizer.
        ranks: Those that decide together: they meet once for all controllers.
        resting: Controllers whose group has a rate of 0: its directions are taken by no parameter,
            so that they say nothing of any rate.
    """
    here = controllers[0].device
    for place, controller in enumerate(controllers):
        if place in resting or not decisions[place, here].aligned:
            continue
        own = [buckets for buckets in passes if buckets[0].place == place]
        sums = [_in_one([bucket.sums for bucket in buckets]) for buckets in own]
        elements = sum(bucket.elements_in_all for buckets in own for bucket in buckets)
        if shards:
            indices = [[i for bucket in buckets for i in bucket.indices] for buckets in own]
            sums = [shards.as_whole(*pair) for pair in zip(sums, indices, strict=True)]
            parts = [(b.elements, b.indices) for buckets in own for b in buckets]
            elements = sum(shards.elements_as_whole(*part) for part in parts)
        controller.reduce_alignment([beside(s, here) for s in sums], elements)
    made = [decisions[place, here] for place in range(len(controllers))]
    active = [decision.active if decision.skippable else None for decision in made]
    told = [(controller.alignment, controller.aligned_elements) for controller in controllers]
    ranks.average_alignment(told, active)


def _in_one(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
