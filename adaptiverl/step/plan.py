"""Plan: what changed since the last step, and who takes which tensor."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import chain, groupby
from typing import Any

import torch
from torch import Tensor

from adaptiverl import devices
from adaptiverl.algorithms import Algorithm
from adaptiverl.codecs import Storage
from adaptiverl.step.bucket import Bucket
from adaptiverl.step.entries import GRAD, PARAM, Entries, Numbered, ParameterEntry, names_of
from adaptiverl.step.fingerprint import Fingerprint, GroupKey, Watch
from adaptiverl.step.look import DTYPE
from adaptiverl.step.overlaps import overlapping_rows
from adaptiverl.step.workspace import Workspace


class Plan:
    """Sorts a step's entries by who takes them; the buckets and their tables outlive the step.

    Args:
        algorithm: The update rule.
        storage: How it stores what it steps.
        entries: Makes a step's entries.
        choose: An entry's backend: of (entry, shares_memory).
        workspace: Owns what the buckets' launches read.
        only: The place of the one parameter that this is the plan of; None: of all. It tells this
            plan's memory there from other plans'.
        by_group: Every group has a controller of its own: no bucket has tensors of two.

    Attributes:
        only: As given.
        dtensors: Of this step's parameters, if it made no entries; until it is over.
        followed: Nothing but gradients had moved since the step before.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        storage: Storage,
        entries: Entries,
        choose: Callable[..., Any],
        workspace: Workspace,
        only: int | None = None,
        by_group: bool = False,
    ) -> None:
        self._algorithm, self._storage, self._entries = algorithm, storage, entries
        self._choose = choose
        self._workspace, self._by_group, self.only = workspace, by_group, only
        self._owner: tuple[Hashable, ...] = () if only is None else ("released", only)
        self._buckets: dict[Hashable, Bucket] = {}
        self._sorted: list[Bucket] = []
        self._places: list[list[int]] = []
        self._last: Fingerprint | None = None
        self._watch: Watch | None = None
        self.dtensors: list[Tensor] = []
        self.followed = False
        self._squares: dict[torch.device, Tensor] = {}

    def of_step(
        self,
        groups: Sequence[dict[str, Any]],
        state: Mapping[Tensor, Any],
        only: Numbered | None = None,
    ) -> list[Bucket]:
        """The buckets that have something to do, always in the same order.

        Where only gradients have moved since the last step, which is how training goes, no entry is
        made: their addresses are read, and that is all.

        Args:
            groups: The optimizer's groups.
            state: The optimizer's state.
            only: The one parameter that this is the plan of; None: all of the groups'.

        Raises:
            RuntimeError: A gradient or a state that a step cannot take; nothing has changed then.
        """
        keys = self.group_keys(groups) if only is None else self._keys_of(only, groups)
        if self._last is not None and self._watch is not None and self._watch.is_whole:
            seen = Fingerprint.of(keys, state)
            if seen is not None and self._last.is_followed_by(seen):
                self._follow(seen)
                self.followed = True
                return self._sorted
        self.followed = False
        self.sort(self._entries.of(groups, state, only))
        for bucket in self._sorted:
            if bucket.backend.addressed:
                bucket.rows()  # or an error, while nothing has moved
        seen = self._fingerprint(keys, state)
        if seen is not None:
            self._last, self._watch = seen.without_tensors(), Watch(keys, state)
        return self._sorted

    def group_keys(self, groups: Sequence[dict[str, Any]]) -> list[GroupKey]:
        """What of the groups decides which backend takes their tensors."""
        return [key for group in groups for key in self._keys(group["params"], group)]

    def _keys_of(self, only: Numbered, groups: Sequence[dict[str, Any]]) -> list[GroupKey]:
        return self._keys([only.param], groups[only.group])

    def _keys(self, params: list[Tensor], group: dict[str, Any]) -> list[GroupKey]:
        """Of a group; of each run of it where some have error terms and others have none."""
        rules, maximize = (self._algorithm, self._storage, group), bool(group["maximize"])
        if self._storage.master_bits is None or not params:
            return [GroupKey(params, self._algorithm.slots_of(group), maximize)]
        runs = [params]
        if len(set(map(DTYPE, params))) > 1:
            runs = [list(run) for _, run in groupby(params, key=self._storage.keeps_error)]
        return [GroupKey(run, names_of(*rules, run[0]), maximize) for run in runs]

    def _follow(self, seen: Fingerprint) -> None:
        """The last step's buckets, with this step's tensors and their gradients' addresses."""
        self.dtensors, gradients = seen.dtensors, seen.gradients.numbers()
        if len(self._sorted) == 1:  # which has them all, in this order
            self._sorted[0].params = seen.tensors
            self._sorted[0].move_gradients(gradients)
            return
        for bucket, places in zip(self._sorted, self._places, strict=True):
            bucket.params = [seen.tensors[i] for i in places]
            bucket.move_gradients(array("q", [gradients[i] for i in places]))

    def release(self) -> None:
        """The step is over: between steps nothing here keeps a tensor alive."""
        self.dtensors = []
        for bucket in self._sorted:
            bucket.release()

    def squares_by_device(self) -> dict[torch.device, Tensor]:
        """The places of all this step's buckets for sums, one piece of memory per device."""
        return {b.device: self._squares[b.device] for b in self._sorted}

    def sort(self, entries: Iterable[ParameterEntry]) -> list[Bucket]:
        """Every entry to who takes it, whatever the last step was like.

        Tensors that lie in each other's memory are taken one after another, in the optimizer's
        order: threads that walk them at once would race.
        """
        self._last = self._watch = None
        entries = list(entries)
        self._fill(entries, shared=set())
        shared = self._places_in_shared_memory()
        if shared:
            self._fill(entries, shared)
        self._share_squares()
        return self._sorted

    def _fill(self, entries: Sequence[ParameterEntry], shared: set[int]) -> None:
        """Make the step's buckets; those in `shared` share memory with others."""
        for bucket in self._buckets.values():
            bucket.start()
        places: dict[Hashable, list[int]] = {}
        for place, entry in enumerate(entries):
            backend = self._choose(entry, shares_memory=place in shared)
            controller = entry.group if self._by_group else 0
            key = (backend.name, entry.param.device, backend.variant(entry), controller)
            if key not in self._buckets:
                self._buckets[key] = self._new_bucket(backend, *key[1:])
                self._buckets[key].start()
            self._buckets[key].take(entry)
            places.setdefault(key, []).append(place)
        taken = {key: bucket for key, bucket in self._buckets.items() if bucket.entries}
        self._sorted = list(taken.values())
        self._places = [places[key] for key in taken]

    def _new_bucket(
        self, backend: Any, device: torch.device, variant: tuple[Any, ...], controller: int
    ) -> Bucket:
        owner = self._owner if controller == 0 else (*self._owner, "group", controller)
        rule = self._algorithm.name
        return Bucket(backend, device, variant, rule, self._workspace, owner, controller)

    def _places_in_shared_memory(self) -> set[int]:
        """Which of the entries would race in a sweep over addresses."""
        found: set[int] = set()
        walked = [
            pair
            for pair in zip(self._sorted, self._places, strict=True)
            if pair[0].backend.addressed
        ]
        for device in {bucket.device: None for bucket, _ in walked}:
            here = [pair for pair in walked if pair[0].device == device]
            rows = overlapping_rows([bucket.spans() for bucket, _ in here])
            for (_, places), numbers in zip(here, rows, strict=True):
                found |= {places[number] for number in numbers}
        return found

    def _share_squares(self) -> None:
        """One piece of memory per device, so that a norm over all tensors is one launch."""
        for device in {bucket.device: None for bucket in self._sorted}:
            buckets = [b for b in self._sorted if b.device == device]
            sizes = [len(b.entries) for b in buckets]
            whole = self._squares[device] = self._places_for_sums(device, sum(sizes))
            for bucket, part in zip(buckets, whole.split(sizes), strict=True):
                bucket.squares = part

    def _places_for_sums(self, device: torch.device, count: int) -> Tensor:
        (whole,) = self._workspace.hold(
            ("squares", device, *self._owner),
            count,
            device,
            lambda: (devices.zeros((count,), device),),
        )
        return whole

    def _fingerprint(
        self, groups: Sequence[GroupKey], state: Mapping[Tensor, Any]
    ) -> Fingerprint | None:
        """What the next step is compared with; None where a glance would not tell enough."""
        entries = [entry for bucket in self._sorted for entry in bucket.entries]
        if not all(bucket.backend.addressed for bucket in self._sorted):
            return None
        if not all(map(_is_plain, chain.from_iterable(entry.shaped() for entry in entries))):
            return None
        seen = Fingerprint.of(groups, state)
        if seen is None:
            return None
        params, gradients = seen.params.numbers(), seen.gradients.numbers()
        for bucket, places in zip(self._sorted, self._places, strict=True):
            # A view or a copy may have been made for the step: the next glance would not see it.
            glanced = [[params[i], gradients[i]] for i in places]
            if bucket.described(PARAM, GRAD) != glanced:
                return None
        return seen


def _is_plain(tensor: Tensor) -> bool:
    return tensor.is_contiguous() and not tensor.is_neg()
