"""Every parameter's count of steps and product of momenta: two vectors that kernels read.

The count is shown as `state[p]["step"]`, a tensor that lies in the vector: who changes it in place
is followed. The product (method.md#bias-correction) is no entry of live state, of which all but
`step` has the parameter's shape. Checkpoints have it as an entry, and an entry that anybody puts
into state is taken in.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from adaptiverl import devices
from adaptiverl.algorithms import Algorithm
from adaptiverl.backends.layouts import is_fake
from adaptiverl.step.products import (
    Known,
    Unknown,
    as_kept,
    as_precise,
    complete_products,
    follow_edits,
)
from adaptiverl.step.state import PRODUCT, STEP, as_counter
from adaptiverl.step.workspace import NEEDS_A_STEP, Workspace

UNTAKEN = (1.0, 1.0, 0.0)
"""The `layout.Product` of a parameter that has taken no step"""


class Member(NamedTuple):
    """A parameter whose step is to be counted."""

    param: Tensor
    group: dict[str, Any]
    state: dict[str, Any]


@dataclass(eq=False, slots=True)
class Place:
    """Where the numbers of one parameter are.

    Attributes:
        count: float32, 0-d, in the vector: steps that were taken.
        kept: float64 [3], likewise, a `layout.Product`; None where no product is kept.
        product: float64, 0-d, its first number: the product of the momenta of those steps.
        vectors: What the workspace has the vectors under.
        shown: The `step` entry that lies here, while anybody has it.
    """

    count: Tensor
    kept: Tensor | None
    product: Tensor | None
    vectors: Hashable
    shown: Callable[[], Tensor | None]

    def show(self) -> Tensor:
        """A new `step` entry that lies here."""
        entry = _alone(self.count)
        self.shown = weakref.ref(entry)
        return entry

    @property
    def known(self) -> Known:
        """What is known here of the parameter."""
        return Known(self.count, self.kept)

    def is_at(self, entry: Any) -> bool:
        """Whether the entry that was shown still lies here, whatever was done to it."""
        if is_fake(entry):
            return True
        return entry.data_ptr() == self.count.data_ptr() and entry.dtype == self.count.dtype


class Counters:
    """Owns the vectors of one optimizer, and knows each parameter's place in them.

    A place belongs to the `step` entry that lies there: who moves a parameter's state to another
    parameter moves its product along. Where the entry was exchanged, the parameter's own last place
    is its place again, and what the new entry says is written there.

    Args:
        algorithm: The update rule.
        workspace: Owns the vectors: what a CUDA graph has captured stays where it is.
    """

    def __init__(self, algorithm: Algorithm, workspace: Workspace) -> None:
        self._algorithm, self._workspace = algorithm, workspace
        self._of_entry: MutableMapping[Tensor, Place] = WeakTensorKeyDictionary()
        self._of_param: MutableMapping[Tensor, Place] = WeakTensorKeyDictionary()
        self._vectors: dict[Hashable, None] = {}
        self._made = 0

    def settle(self, members: Sequence[Member]) -> list[Place]:
        """Every member's place, its numbers there and its state in order; foreign ones taken in.

        Args:
            members: What their state says of counters is sound (`state.check_state`).

        Raises:
            RuntimeError: A stream is capturing, and something would have to be taken in.
        """
        places = [self._settled(member) for member in members]
        # A parameter that is listed twice has one state.
        strange = {id(m.state): m for m, place in zip(members, places, strict=True) if not place}
        if not strange:
            return places  # type: ignore[return-value]
        self._take_in(list(strange.values()))
        return [self._of_entry[member.state[STEP]] for member in members]

    def adopt(self, groups: Iterable[dict[str, Any]], state: Mapping[Tensor, Any]) -> None:
        """Take in what a load has put into state.

        Args:
            groups: The optimizer's.
            state: The optimizer's. What has no count yet gets one in its next step.
        """
        self.settle(
            [
                Member(param, group, state[param])
                for group in groups
                for param in group["params"]
                if param in state and state[param].get(STEP) is not None
            ]
        )

    def forget(self) -> None:
        """The counts that come next have nothing to do with those that were here."""
        self._of_param.clear()

    def exported(
        self, groups: Sequence[dict[str, Any]], keys: Sequence[Any], state: Mapping[Any, Any]
    ) -> dict[Any, Any]:
        """State as checkpoints have it: each parameter's product is among its entries.

        It is the product of the steps that the count says, as the next step will have it.

        Args:
            groups: The optimizer's.
            keys: What stands for its parameters, in order.
            state: Those to their entries.
        """
        self._follow_edits(groups, keys, state)
        return {
            key: entries | product if (product := self._product_of(entries)) else entries
            for key, entries in state.items()
        }

    def show_products(self, state: Mapping[Tensor, Any]) -> None:
        """Put the products into live state, from where the next step takes them."""
        for entries in state.values():
            if product := self._product_of(entries):
                entries.update(product)

    @devices.outside_autograd
    def _follow_edits(
        self, groups: Sequence[dict[str, Any]], keys: Sequence[Any], state: Mapping[Any, Any]
    ) -> None:
        """Where a count was edited in place, its product follows now."""
        if not self._algorithm.corrects_bias:
            return
        following = iter(keys)
        for group in groups:
            found = [
                self._place_in(state.get(key))
                for _, key in zip(group["params"], following, strict=False)
            ]
            places = [place for place in found if place is not None]
            for device in {place.count.device: None for place in places}:
                known = [place.known for place in places if place.count.device == device]
                if not devices.is_capturing(device):
                    follow_edits(known, self._algorithm.numbers_of(group)[1])

    def _product_of(self, entries: Any) -> dict[str, Any]:
        """The entry that a parameter's state lacks, by its name; {} if there is none."""
        place = self._place_in(entries)
        if place is None or place.product is None or PRODUCT in entries:
            return {}
        return {PRODUCT: place.product}

    def _place_in(self, entries: Any) -> Place | None:
        """The place that a parameter's state belongs to; None if it has none of ours."""
        return self._place_under(entries.get(STEP)) if isinstance(entries, dict) else None

    def _place_under(self, entry: Any) -> Place | None:
        return self._of_entry.get(entry) if isinstance(entry, Tensor) else None

    def _settled(self, member: Member) -> Place | None:
        """The place of a member of whom there is nothing to take in."""
        param, _, state = member
        entry = state.get(STEP)
        place = self._place_under(entry)
        if place is None or not place.is_at(entry) or place.count.device != _home(param):
            return None
        if self._algorithm.corrects_bias:
            if state.get(PRODUCT, place.product) is not place.product:
                return None
            state.pop(PRODUCT, None)
        if self._of_param.get(param) is not place:
            self._of_param[param] = place
        return place

    @devices.outside_autograd
    def _take_in(self, members: Sequence[Member]) -> None:
        for member in members:
            if devices.is_capturing(_home(member.param)):
                raise RuntimeError(f"a parameter's step is not counted yet: {NEEDS_A_STEP}")
        before = [self._last_of(member) for member in members]
        counts = [_count_of(member) for member in members]
        products = self._products(members, before, counts)
        places = self._places(members, before)
        news = [i for i, count in enumerate(counts) if count is not None]
        _write([(places[i].count, counts[i]) for i in news])
        _write([(p.kept, kept) for p, kept in zip(places, products, strict=True)])
        for (param, _, state), place in zip(members, places, strict=True):
            if self._algorithm.corrects_bias:
                state.pop(PRODUCT, None)
            state[STEP] = entry = place.show()
            self._of_entry[entry] = self._of_param[param] = place

    def _last_of(self, member: Member) -> Place | None:
        """Where a member was counted last."""
        entry = member.state.get(STEP)
        if entry is None:
            return None
        return self._place_under(entry) or self._of_param.get(member.param)

    def _products(
        self,
        members: Sequence[Member],
        before: Sequence[Place | None],
        counts: Sequence[Tensor | None],
    ) -> list[Tensor | None]:
        """Each a `layout.Product`; None for one that is new, or where none is kept."""
        products: list[Tensor | None] = [None] * len(members)
        if not self._algorithm.corrects_bias:
            return products
        unknown: dict[int, list[tuple[int, Unknown]]] = {}
        groups: dict[int, Mapping[str, Any]] = {}
        for i, ((_, group, state), place, count) in enumerate(
            zip(members, before, counts, strict=True)
        ):
            if count is None:
                continue
            groups[id(group)] = group
            momentum = self._algorithm.numbers_of(group)[1]
            if state.get(PRODUCT) is not None:
                products[i] = as_kept(as_precise(state[PRODUCT], momentum, count), count)
            else:
                last = None if place is None else place.known
                unknown.setdefault(id(group), []).append((i, Unknown(count, last)))
        for key, those in unknown.items():
            found = complete_products(
                [one for _, one in those],
                self._known(groups[key], members, counts, products),
                self._algorithm.numbers_of(groups[key])[1],
            )
            for (i, one), product in zip(those, found, strict=True):
                products[i] = as_kept(product, one.steps)
        return products

    def _known(
        self,
        group: Mapping[str, Any],
        members: Sequence[Member],
        counts: Sequence[Tensor | None],
        products: Sequence[Tensor | None],
    ) -> list[Known]:
        """Counts and products that parameters of a group have now."""
        known = [
            Known(count, kept)
            for member, count, kept in zip(members, counts, products, strict=True)
            if member.group is group and count is not None and kept is not None
        ]
        coming = {id(member.param) for member in members}
        for param in group["params"]:
            place = None if id(param) in coming else self._of_param.get(param)
            if place is not None:
                known.append(place.known)
        return known

    def _places(self, members: Sequence[Member], before: Sequence[Place | None]) -> list[Place]:
        """A place for each: the last one where nobody else has it, and otherwise a new one."""
        found: list[Place | None] = []
        claimed: set[int] = set()
        for (param, _, state), place in zip(members, before, strict=True):
            if place is not None:
                shown = place.shown()
                taken = shown is not None and shown is not state.get(STEP)
                if taken or id(place) in claimed or place.count.device != _home(param):
                    place = None
                else:
                    claimed.add(id(place))
            found.append(place)
        lacking: dict[torch.device, list[int]] = {}
        for i, place in enumerate(found):
            if place is None:
                lacking.setdefault(_home(members[i].param), []).append(i)
        for device, indices in lacking.items():
            for i, place in zip(indices, self._make(device, len(indices)), strict=True):
                found[i] = place
        return found  # type: ignore[return-value]

    def _make(self, device: torch.device, count: int) -> list[Place]:
        """New places in vectors of their own: those that are there stay where they are."""
        self._drop_unused()
        self._made += 1
        name = ("counters", device, self._made)

        def make() -> tuple[Tensor, ...]:
            steps = torch.zeros(count, dtype=torch.float32, device=device)
            if not self._algorithm.corrects_bias:
                return (steps,)
            untaken = torch.tensor(UNTAKEN, dtype=torch.float64, device=device)
            return steps, untaken.repeat(count, 1)

        steps, *products = self._workspace.hold(name, None, device, make)
        self._vectors[name] = None
        rows = products[0].unbind() if products else [None] * count
        return [
            Place(_alone(step), kept, None if kept is None else _alone(kept[0]), name, lambda: None)
            for step, kept in zip(steps.unbind(), rows, strict=True)
        ]

    def _drop_unused(self) -> None:
        used = {place.vectors for place in (*self._of_entry.values(), *self._of_param.values())}
        for name in [name for name in self._vectors if name not in used]:
            self._workspace.drop(name)
            del self._vectors[name]


def _home(param: Tensor) -> torch.device:
    return devices.numbers_device(param.device)


def _count_of(member: Member) -> Tensor | None:
    """The count that a member brings, in memory that nobody writes to; None for a new one."""
    count = member.state.get(STEP)
    if count is None:
        return None
    return as_counter(count, torch.float32, _home(member.param)).clone()


def _write(pairs: Iterable[tuple[Tensor | None, Tensor | None]]) -> None:
    """Copy each second into its first, where there are both."""
    both = [(to, of) for to, of in pairs if to is not None and of is not None]
    if both:
        torch._foreach_copy_([to for to, _ in both], [of for _, of in both])


def _alone(element: Tensor) -> Tensor:
    """An element of a vector as a tensor of its own, in the same memory.

    A view would bring the whole vector into every pickle and copy of it.
    """
    if is_fake(element) or element.device.type not in ("cpu", "cuda"):
        return element
    return torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(element))
