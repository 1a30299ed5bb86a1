"""`Controller`: the state on the device, the inbox, and what moves them; never sees a parameter.

The state is a `layout.State` as one float64 tensor; all of it but its last number is the memory
that goes into checkpoints.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from adaptiverl.arguments import whole_number
from adaptiverl.control import Control
from adaptiverl.decision import Decision
from adaptiverl.devices import beside
from adaptiverl.law.numbers import numbers_of, packed
from adaptiverl.law.registry import law_of
from adaptiverl.layout import ALIGNMENT, FIELDS, MEMORY_SIZE, SLOT, State
from adaptiverl.limits import BETA1, MomentumKind
from adaptiverl.migrations import ROUNDED, current_layout, from_start, with_seed_of
from adaptiverl.observations import Observations, as_number
from adaptiverl.trace import Ring, Trace


class Controller:
    """Reads losses, keeps averages, moves α, μ and σ; on one device, without waiting for it.

    Args:
        control: Gains, bounds, cadence.
        lr: The first group's learning rate, > 0 in ``mode="replace"``.
        momentum: The first group's μ: AdamW's β₁, SGD's momentum.
        kind: Which of the two.
        seed: The noise's seed, 0 to 2^64 − 1.
        device: Where the state lives.
        observations: Another controller's, where several hear the same losses; ``None``: its own.

    Attributes:
        state: float64 [120]: the state, `layout.State`.
        memory: What checkpoints keep: a view of the state, but for its last number.
        alignment: float64 [3], a view of the state: Σ g·u, Σ g², Σ u² of the last pass.
        aligned_elements: float64 [1], likewise: the elements that they are over.
        numbers: float64 [123 or a multiple]: what the law reads of `control`,
            `layout.ControlNumbers`, and behind it the weights of f_φ, if there are any.
        ring: The trace as it is written.
        observations: The inbox, and what of it counts.
        ever_observed: Whether anything was.
        adoptions: How often a loaded memory was taken over.
        ever_rewarded: Whether a reward was.

    Raises:
        ValueError: A start outside the bounds, or a seed out of range.
    """

    def __init__(
        self,
        control: Control,
        lr: float,
        momentum: float,
        *,
        kind: MomentumKind = BETA1,
        seed: int = 0,
        device: torch.device | str = "cpu",
        observations: Observations | None = None,
    ) -> None:
        seed = whole_number(seed, "seed", "a whole number from 0 to 2**64 - 1", ValueError)
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed must be a whole number from 0 to 2**64 - 1, got {seed!r}")
        self.control = control
        self.limits = control.limits(lr, momentum, kind)
        # On the host first, whatever the default device is.
        here: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
        numbers = torch.tensor(packed(numbers_of(control, self.limits)), **here)
        self._start = torch.empty(len(FIELDS), **here)
        torch.ops.adaptiverl.start_(
            self._start, numbers, control.start_lr(lr), momentum, seed & 0xFFFFFFFF, seed >> 32
        )
        self._place(self._start.clone(), numbers, torch.device(device))
        self.observations = Observations(self.device) if observations is None else observations
        self.ring = Ring()
        self.ever_observed = self.ever_rewarded = False
        self.adoptions = 0
        self._last: Decision | None = None
        # Looked up once: a search by name at every step is felt by small networks.
        self._advance = torch.ops.adaptiverl.advance_.default

    def _place(self, state: Tensor, numbers: Tensor, device: torch.device) -> None:
        self.state, self.numbers = _moved(state, device), _moved(numbers, device)
        self.device = self.state.device
        self.memory, self.alignment = self.state[:MEMORY_SIZE], self.state[ALIGNMENT]
        self.aligned_elements = self.state[SLOT["aligned_elements"] :][:1]

    @property
    def inbox(self) -> Tensor:
        """float64 [4] on the device: a `layout.Inbox`."""
        return self.observations.sums

    @property
    def observed(self) -> int:
        """Observations since the last step, as the host counted them."""
        return self.observations.count

    def to(self, device: torch.device) -> None:
        """Move everything to another device, without waiting for it; addresses change."""
        if device == self.device:
            return
        self._place(self.state, self.numbers, device)
        self.observations.to(partial(_moved, device=device))
        self.ring.to(partial(_moved, device=device))

    def observe(self, loss: Tensor | float, reward: Tensor | float | None = None) -> None:
        """Put one loss (and reward) into the inbox; several before a step are averaged.

        Args:
            loss: One real number: a tensor with one element on any device, or a Python number. NaN
                and infinities are signals, not errors (method.md#non-finite).
            reward: r, where ``Control(reward="given")``; may be left out.

        Raises:
            TypeError: Something without a real value.
            ValueError: More than one element; a reward in a mode that has none (method.md#reward).
        """
        loss_value = as_number(loss, "loss", self.device)
        reward_value = None
        if reward is not None:
            if self.control.reward != "given":
                raise ValueError(
                    f"observe() got a reward, but Control.reward is {self.control.reward!r}: "
                    "use Control(reward='given'), or leave the reward out"
                )
            reward_value = as_number(reward, "reward", self.device)
        self.observations.add(loss_value, reward_value)
        self.ever_observed = True
        self.ever_rewarded |= reward is not None

    def advance(
        self,
        groups: Tensor,
        effective: Tensor,
        tables: Sequence[Tensor] = (),
        found_inf: Tensor | None = None,
        still_read: Callable[[Controller], bool] | None = None,
    ) -> Decision:
        """One optimizer step: sensors, at a multiple of K the laws, then this step's scalars.

        Args:
            groups: float64 [groups, 5]: a `layout.Group` each, on this device.
            effective: float64 [groups, 2]; receives every group's lr and momentum of this step.
            tables: Address tables on this device: their `step` and `mu_product` advance.
            found_inf: The gradient scaler's flag: where it is not 0, nothing at all changes.
            still_read: Says, once all is decided, whether a law that reads the passes' sums will
                read those of this step; None: it will.

        Returns:
            What the passes of this step read.
        """
        self.observations.close()
        self._advance(
            self.state,
            self.numbers,
            self.inbox,
            self.ring.on(self.device),
            groups,
            effective,
            list(tables),
            found_inf,
        )
        self.observations.taken()
        needed = law_of(self.control.law).needs_sums and (still_read is None or still_read(self))
        aligned = needed or self.control.gradient_sensors
        return self._decide(groups, effective, found_inf is not None, aligned)

    def _decide(
        self, groups: Tensor, effective: Tensor, skippable: bool, aligned: bool
    ) -> Decision:
        """The last step's decision where it is the same tensors."""
        last = self._last
        skippable = skippable or law_of(self.control.law).goes_back
        if (
            last is None
            or last.state is not self.state
            or last.groups is not groups
            or last.effective is not effective
            or (last.skippable, last.aligned) != (skippable, aligned)
        ):
            last = self._last = Decision(
                state=self.state,
                groups=groups,
                effective=effective,
                noise_possible=self.limits.noise_max > 0,
                noise_on_parameter=self.control.noise_target == "parameter",
                skippable=skippable,
                aligned=aligned,
            )
        return last

    def reduce_alignment(self, sums: Sequence[Tensor], elements: float = 0.0) -> None:
        """What the passes of this step summed becomes the state's, for the next step's α.

        Args:
            sums: float64 [tensors, 3] of Σ g·u, Σ g², Σ u², on this device. They are added up in
                this order; where the step was skipped, nothing changes.
            elements: That they are over; 0: unknown, and the gradient's size is not sensed.
        """
        torch.ops.adaptiverl.reduce_alignment_.default(self.state, list(sums), float(elements))

    def read_groups(self, groups: Tensor, effective: Tensor) -> None:
        """Every group's lr and momentum as a step would use them now, into `effective`."""
        torch.ops.adaptiverl.read_groups_(self.state, groups, effective)

    def update(
        self,
        loss: Tensor | float,
        reward: Tensor | float | None = None,
        share: Callable[[], None] | None = None,
        others: Sequence[Controller] = (),
    ) -> None:
        """Epoch-wise control: one observation and one update of the knobs, now.

        See method.md#epoch-wise.

        Args:
            loss: As in `observe`.
            reward: As in `observe`.
            share: Makes all ranks' inbox of this one's, between the two.
            others: Those who hear it, too: their observations are this one's.
        """
        self.observations.empty()
        self.observe(loss, reward)
        if share is not None:
            share()
        for one in self.observations.to_each((self, *others)):
            ring = one.ring.on(one.device)
            torch.ops.adaptiverl.update_(one.state, one.numbers, one.inbox, ring)
        self.observations.taken()

    def pulse(
        self,
        held_out: Tensor | float,
        share: Callable[[Tensor], None],
        others: Sequence[Controller] = (),
    ) -> None:
        """One held-out loss, and what follows from it for α (method.md#pulse); nothing waits.

        Args:
            held_out: One real number, as a loss in `observe`.
            share: Makes of `layout.PulseSums`, float64 [4], those of all ranks that decide
                together.
            others: The other groups' controllers, who are told the same.

        Raises:
            TypeError: Something without a real value.
            ValueError: More than one element.
        """
        value = as_number(held_out, "validation_loss", self.device)
        here = self.state.new_ones(4)  # held-out loss, 1, ℓ̄ and 1; ℓ̄ is 0 until one is known
        if isinstance(value, Tensor):
            here[0].copy_(value.reshape(()))
        else:
            here[0].fill_(value)
        here[2].copy_(self.state[SLOT["loss_mean"]])
        here[3].copy_(self.state[SLOT["loss_count"]].clamp(max=1))
        share(here)
        for one in (self, *others):
            told = beside(here, one.device)
            torch.ops.adaptiverl.pulse_(one.state, one.numbers, told)

    def adopt(self, memory: Tensor, *, as_one: bool = False) -> None:
        """Take over a loaded memory, at this one's own address; the trace starts empty.

        One that a loader rounded to float32 warns: of its whole numbers those above 2^24 may be
        others now. The seed's are this optimizer's own where they round to the loaded ones.

        Args:
            memory: It.
            as_one: It was of several groups, and this one's is not their first: its α is told from
                this group's rate now, whatever bounds the user gave.
        """
        adopted = self._from_own_start(memory, as_one)
        if memory.dtype != torch.float64:
            adopted = with_seed_of(self._start[:MEMORY_SIZE], adopted)
            warnings.warn(ROUNDED, UserWarning, stacklevel=2)
        self.memory.copy_(adopted, non_blocking=True)
        self.adoptions += 1
        self.ring.empty()
        self.observations.empty()

    def go_on_from(self, other: Controller) -> None:
        """Be where another one is, at the same factor of the rate; whose sums are not this one's.

        Nothing waits, and what was observed stays.
        """
        self.memory.copy_(from_start(self._start, other.memory, rates_stay=False))
        self.state[SLOT["aligned_pending"]] = 0.0

    def search_anew(self) -> None:
        """A search that was in the middle begins again with the next step; nothing waits."""
        self.state[SLOT["searching"]] = 0.0

    def _from_own_start(self, memory: Tensor, as_one: bool = False) -> Tensor:
        # Bounds that the user gave in "replace" are rates: there a rate stays what it is.
        bounded = self.control.mode == "replace" and self.control.lr_bounds is not None
        rates_stay = bounded and not as_one
        return from_start(self._start, current_layout(memory), rates_stay)

    def reset(self) -> None:
        """Back to the start: nothing observed, α and μ where the user put them."""
        self.adopt(self._start[:MEMORY_SIZE])

    def read(self) -> State:
        """The whole state on the host. Waits for the device."""
        return State(*self.state.tolist())

    def in_effect(
        self, row: Sequence[float], memory: Tensor | None = None
    ) -> tuple[State, float, float]:
        """The state, and what a step would make of a group now. Waits for the device.

        Changes nothing that a step reads: one copy of the state, and the rest is done on that.

        Args:
            row: The group's row of the group table, five numbers.
            memory: A loaded one that the next step will adopt, instead of this controller's.

        Returns:
            The state, as `read` gives it; the group's lr; the group's momentum.

        Raises:
            ValueError: As `current_layout`.
        """
        state = self.state.to("cpu", copy=True)
        if memory is not None:
            state[:MEMORY_SIZE] = self._from_own_start(memory).cpu()
        groups = torch.tensor([row], dtype=torch.float64, device="cpu")
        effective = torch.empty((1, 2), dtype=torch.float64, device="cpu")
        torch.ops.adaptiverl.read_groups_(state, groups, effective)
        lr, momentum = effective[0].tolist()
        return State(*state.tolist()), lr, momentum

    def trace(self) -> Trace:
        """The last updates of the knobs. Waits for the device."""
        return self.ring.read()


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """On another device; the host waits only where it is the one that is going to read."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # a copy from elsewhere waits for all that was asked before
    return tensor.to(device, non_blocking=device.type != "cpu")
