"""`Controller`: the packed block on the device, the inbox, the trace ring, and what moves them.

Never sees a parameter. The block is the controller's whole memory (`laws.State` as float64); it
goes into checkpoints. The trace does not.
"""

from __future__ import annotations

import csv
import math
import numbers
import os
import warnings
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from adaptiverl.control import BETA1, Control, Limits, MomentumKind
from adaptiverl.observations import Observations

LAYOUT_VERSION = 3

FIELDS = (
    "version",
    "step",
    "seed_low",
    "seed_high",
    "log_lr",
    "logit_momentum",
    "log_noise",
    "log_lr_start",
    "logit_momentum_start",
    "lr",
    "momentum",
    "noise",
    "loss_count",
    "loss_mean",
    "loss_trend",
    "loss_scale",
    "loss_direction",
    "variance",
    "variance_scale",
    "plateau",
    "reward_count",
    "reward_mean",
    "reward_trend",
    "reward_scale",
    "reward_direction",
    "loss",
    "reward",
    "observed_pending",
    "rewarded_pending",
    "nonfinite_pending",
    "nonfinite",
    "updates",
    "aligned_gu",
    "aligned_gg",
    "aligned_uu",
    "aligned_pending",
    "alignment",
    "alignment_square",
    "alignment_weight",
    "alignment_direction",
    "alignment_mean",
    "overshoot",
    "log_lr_downhill",
    "log_lr_doubted",
    "held",
    "anneal",
    "active",
)
"""The block's numbers in order: `State` in csrc/control_law.h, `State` in laws.py. All but the
last are the controller's memory; that one is of the step in progress."""

AS_THEY_CAME = {"loss", "reward", "aligned_gu", "aligned_gg", "aligned_uu"}
"""Numbers that may be NaN or infinite in a sound memory (decisions.md 12, 22)."""
LOGARITHMS_OF_ZERO = {
    "log_noise",
    "logit_momentum",
    "logit_momentum_start",
    "log_lr_downhill",
    "log_lr_doubted",
}
"""Numbers that may be −∞ in a sound memory: σ switched off, μ = 0, no such rate yet."""

WIDEST = 20 * math.log(10)
"""log-units that α may be from its start: no bounds that anybody gives leave more room"""
LARGEST_COUNT = 2.0**53
SEED_WORDS = ("seed_low", "seed_high")
FLAGS = ("observed_pending", "rewarded_pending", "nonfinite_pending", "aligned_pending", "held")
COUNTS = ("step", "loss_count", "reward_count", "nonfinite", "updates")
SIZES = (
    "lr",
    "noise",
    "loss_scale",
    "variance",
    "variance_scale",
    "reward_scale",
    "alignment_square",
)
DIRECTIONS = ("loss_direction", "reward_direction", "alignment_direction", "alignment_mean")
SHARES = ("momentum", "plateau", "alignment_weight", "anneal")
LOGARITHMS = (
    "log_lr",
    "log_lr_start",
    "logit_momentum",
    "logit_momentum_start",
    "log_noise",
    "log_lr_downhill",
    "log_lr_doubted",
)
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(SEED_WORDS, (0.0, 2.0**32 - 1)),
    **dict.fromkeys(COUNTS, (0.0, LARGEST_COUNT)),
    **dict.fromkeys(FLAGS, (0.0, 1.0)),
    **dict.fromkeys(SIZES, (0.0, math.inf)),
    **dict.fromkeys(SHARES, (0.0, 1.0)),
    **dict.fromkeys(DIRECTIONS, (-1.0, 1.0)),
    **dict.fromkeys(LOGARITHMS, (math.log(5e-324), math.log(1.7e308))),
}
"""What a sound memory's numbers lie in, whatever `Control` they come from"""
WHOLE = {*SEED_WORDS, *COUNTS, *FLAGS}
"""Numbers without a fraction"""

SLOT = {name: i for i, name in enumerate(FIELDS)}
LOGARITHMS_OF_LR = [
    SLOT[name] for name in ("log_lr", "log_lr_start", "log_lr_downhill", "log_lr_doubted")
]
MEMORY_SIZE = len(FIELDS) - 1
ALIGNMENT = slice(SLOT["aligned_gu"], SLOT["aligned_uu"] + 1)
"""Σ g·u, Σ g², Σ u² in the block"""
State = namedtuple("State", FIELDS)  # type: ignore[misc]

LAYOUT_1_SIZE = 32
"""Numbers in the first layout's memory, those from `version` to `updates`"""
LAYOUT_2_SIZE = 45
"""Numbers in the second's: all but `log_lr_doubted`"""


def add_alignment(memory: Tensor) -> Tensor:
    """The second layout of the first's memory: no sums yet, no rate found, nothing annealed.

    Raises:
        ValueError: A memory of another size.
    """
    _check_size(memory, 1, LAYOUT_1_SIZE)
    downhill, held, anneal = -math.inf, 0.0, 1.0
    averages = memory.new_zeros(LAYOUT_2_SIZE - LAYOUT_1_SIZE - 3)
    migrated = torch.cat([memory, averages, memory.new_tensor([downhill, held, anneal])])
    migrated[SLOT["version"]] = 2
    return migrated


def add_doubt(memory: Tensor) -> Tensor:
    """The third layout of the second's memory: no rate was ever doubted.

    Raises:
        ValueError: A memory of another size.
    """
    _check_size(memory, 2, LAYOUT_2_SIZE)
    slot = SLOT["log_lr_doubted"]
    migrated = torch.cat([memory[:slot], memory.new_tensor([-math.inf]), memory[slot:]])
    migrated[SLOT["version"]] = 3
    return migrated


def _check_size(memory: Tensor, layout: int, size: int) -> None:
    if memory.shape != (size,):
        raise _refusal(f"{memory.dtype} of shape {tuple(memory.shape)} in layout {layout}")


MIGRATIONS: dict[int, Callable[[Tensor], Tensor]] = {1: add_alignment, 2: add_doubt}
"""A layout's version to what makes the next version's memory of it. A change of `FIELDS` raises
`LAYOUT_VERSION` and adds a line here."""

REWARD_SOURCES = {"none": 0.0, "neg_loss": 1.0, "given": 2.0}
LAWS = {"loss": 0.0, "alignment": 1.0}
TRACE_COLUMNS = (
    "step",
    "loss",
    "reward",
    "loss_mean",
    "reward_mean",
    "loss_direction",
    "reward_direction",
    "variance",
    "plateau",
    "lr",
    "momentum",
    "noise",
    "alignment",
    "alignment_direction",
    "alignment_mean",
    "held",
)
TRACE_CAPACITY = 4096


class Trace(Mapping[str, Tensor]):
    """The last updates of the knobs, oldest first: a column name to a float64 CPU tensor [updates].

    Columns: step, loss, reward, loss_mean, reward_mean, loss_direction, reward_direction, variance,
    plateau, lr (α), momentum (μ), noise (σ); of the alignment law, which adds a row every K steps,
    observed or not: alignment (h), alignment_direction (x), alignment_mean (e), held (0 or 1).
    """

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows

    def __getitem__(self, column: str) -> Tensor:
        if column not in TRACE_COLUMNS:
            raise KeyError(f"the trace has no column {column!r}; it has {', '.join(TRACE_COLUMNS)}")
        return self._rows[:, TRACE_COLUMNS.index(column)]

    def __iter__(self) -> Iterator[str]:
        return iter(TRACE_COLUMNS)

    def __len__(self) -> int:
        return len(TRACE_COLUMNS)

    def __repr__(self) -> str:
        return f"Trace({self._rows.shape[0]} updates: {', '.join(TRACE_COLUMNS)})"

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the columns' names, then one row per update; every float64 reads back the same.

        Raises:
            OSError: The file cannot be written.
        """
        with open(path, "w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(TRACE_COLUMNS)
            writer.writerows((int(step), *rest) for step, *rest in self._rows.tolist())


@dataclass(frozen=True)
class Decision:
    """What a sweep reads besides its tensors, all on one device.

    Attributes:
        block: The controller's block; a name in `FIELDS` is an attribute too, a 0-d view of it.
        groups: float64 [groups, 5]: lr, β₁, β₂, eps, weight decay as the user set them.
        effective: float64 [groups, 2]: lr and momentum of this step.
        noise_possible: σ may be above 0 in this run.
        noise_on_parameter: It goes to the parameter after its update, not to the gradient.
        skippable: A gradient scaler may ask for this step to be skipped.
        aligned: The law reads the sweep's sums Σg·u, Σg², Σu² (decisions.md 22).
    """

    block: Tensor
    groups: Tensor
    effective: Tensor
    noise_possible: bool
    noise_on_parameter: bool
    skippable: bool
    aligned: bool = False

    def to(self, device: torch.device) -> Decision:
        """The same on another device, without waiting for it unless that is the host itself."""
        if device == self.block.device:
            return self
        on_host = device.type == "cpu"  # which would read what has not arrived yet
        return replace(
            self,
            block=self.block.to(device, non_blocking=not on_host),
            groups=self.groups.to(device, non_blocking=not on_host),
            effective=self.effective.to(device, non_blocking=not on_host),
        )

    def __getattr__(self, name: str) -> Tensor:
        if name in SLOT:
            return self.block[SLOT[name]]
        raise AttributeError(f"a Decision has no {name!r}")


class Controller:
    """Reads losses, keeps averages, moves α, μ and σ; on one device, without waiting for it.

    Args:
        control: Gains, bounds, cadence.
        lr: The first group's learning rate, > 0 in ``mode="replace"``.
        momentum: The first group's μ: AdamW's β₁, SGD's momentum.
        kind: Which of the two.
        seed: The noise's seed, 0 to 2^64 − 1.
        device: Where the block lives.

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
    ) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
            raise ValueError(f"seed must be a whole number from 0 to 2**64 - 1, got {seed!r}")
        self.control = control
        self.limits = control.limits(lr, momentum, kind)
        # On the host first, whatever the default device is.
        here: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
        packed = torch.tensor(pack_parameters(control, self.limits), **here)
        self._start = torch.empty(len(FIELDS), **here)
        torch.ops.adaptiverl.start_(
            self._start, packed, control.start_lr(lr), momentum, seed & 0xFFFFFFFF, seed >> 32
        )
        device = torch.device(device)
        self.block, self._parameters = _moved(self._start.clone(), device), _moved(packed, device)
        self._memory, self._alignment = self.block[:MEMORY_SIZE], self.block[ALIGNMENT]
        self.observations = Observations(device)
        self._made_ring: Tensor | None = None
        self.ever_observed = False

    @property
    def memory(self) -> Tensor:
        """What checkpoints keep: the block without its last number; always the same view."""
        return self._memory

    @property
    def _ring(self) -> Tensor:
        """float64 [1 + capacity, columns]: how many rows were written, then the rows.

        Made when something may be written. Only what was written is ever touched, so that many
        optimizers of few updates do not fill the host's memory with what is empty.
        """
        if self._made_ring is None:
            shape = (1 + TRACE_CAPACITY, len(TRACE_COLUMNS))
            self._made_ring = torch.empty(shape, dtype=torch.float64, device=self.device)
            self._empty_ring()
        return self._made_ring

    def _empty_ring(self) -> None:
        if self._made_ring is not None:
            self._made_ring[0].zero_()

    @property
    def inbox(self) -> Tensor:
        """float64 [4] on the device: sum and count of losses, sum and count of rewards."""
        return self.observations.sums

    @property
    def observed(self) -> int:
        """Observations since the last step, as the host counted them."""
        return self.observations.count

    @property
    def alignment(self) -> Tensor:
        """float64 [3] on the device, a view of the block: Σ g·u, Σ g², Σ u² of the last sweep."""
        return self._alignment

    @property
    def device(self) -> torch.device:
        """Where the block lives."""
        return self.block.device

    def to(self, device: torch.device) -> None:
        """Move everything to another device, without waiting for it; addresses change."""
        if device == self.device:
            return
        self.block, self._parameters = _moved(self.block, device), _moved(self._parameters, device)
        self._memory, self._alignment = self.block[:MEMORY_SIZE], self.block[ALIGNMENT]
        self.observations.to(partial(_moved, device=device))
        if self._made_ring is not None:
            self._made_ring = _moved(self._made_ring, device)

    def observe(self, loss: Tensor | float, reward: Tensor | float | None = None) -> None:
        """Put one loss (and reward) into the inbox; several before a step are averaged.

        Args:
            loss: One real number: a tensor with one element on any device, or a Python number. NaN
                and infinities are signals, not errors (decisions.md 12).
            reward: r, where ``Control(reward="given")``; may be left out.

        Raises:
            TypeError: Something without a real value.
            ValueError: More than one element; a reward in a mode that has none (decisions.md 11).
        """
        loss_value = _scalar(loss, "loss", self.device)
        reward_value = None
        if reward is not None:
            if self.control.reward != "given":
                raise ValueError(
                    f"observe() got a reward, but Control.reward is {self.control.reward!r}: "
                    "use Control(reward='given'), or leave the reward out"
                )
            reward_value = _scalar(reward, "reward", self.device)
        self.observations.add(loss_value, reward_value)
        self.ever_observed = True

    def advance(
        self,
        groups: Tensor,
        effective: Tensor,
        tables: Sequence[Tensor] = (),
        found_inf: Tensor | None = None,
    ) -> Decision:
        """One optimizer step: sensors, at a multiple of K the laws, then this step's scalars.

        Args:
            groups: float64 [groups, 5] of lr, β₁, β₂, eps, weight decay, on this device.
            effective: float64 [groups, 2]; receives every group's lr and momentum of this step.
            tables: Address tables on this device: their `step` and `mu_product` advance.
            found_inf: The gradient scaler's flag: where it is not 0, nothing at all changes.

        Returns:
            What the sweeps of this step read.
        """
        self.observations.close()
        torch.ops.adaptiverl.advance_(
            self.block,
            self._parameters,
            self.inbox,
            self._ring,
            groups,
            effective,
            list(tables),
            found_inf,
        )
        self.observations.taken()
        noise_possible = self.limits.noise_max > 0
        return Decision(
            block=self.block,
            groups=groups,
            effective=effective,
            noise_possible=noise_possible,
            noise_on_parameter=self.control.noise_target == "parameter",
            skippable=found_inf is not None,
            aligned=self.control.law == "alignment",
        )

    def gather(self, sums: Sequence[Tensor]) -> None:
        """What the sweeps of this step summed becomes the block's, for the next step's α.

        Args:
            sums: float64 [tensors, 3] of Σ g·u, Σ g², Σ u², on this device. They are added up in
                this order; where the step was skipped, nothing changes.
        """
        torch.ops.adaptiverl.gather_alignment_(self.block, list(sums))

    def read_groups(self, groups: Tensor, effective: Tensor) -> None:
        """Every group's lr and momentum as a step would use them now, into `effective`."""
        torch.ops.adaptiverl.read_groups_(self.block, groups, effective)

    def update(
        self,
        loss: Tensor | float,
        reward: Tensor | float | None = None,
        share: Callable[[], None] | None = None,
    ) -> None:
        """Epoch-wise control (§5): one observation and one update of the knobs, now.

        Args:
            loss: As in `observe`.
            reward: As in `observe`.
            share: Makes all ranks' inbox of this one's, between the two.
        """
        self.observations.empty()
        self.observe(loss, reward)
        if share is not None:
            share()
        torch.ops.adaptiverl.update_(self.block, self._parameters, self.inbox, self._ring)
        self.observations.taken()

    def adopt(self, memory: Tensor) -> None:
        """Take over a loaded memory, at this one's own address; the trace starts empty.

        One that a loader rounded to float32 warns: of its whole numbers those above 2^24 may be
        others now. The seed's are this optimizer's own where they round to the loaded ones.
        """
        adopted = self._from_own_start(current_layout(memory))
        if memory.dtype != torch.float64:
            adopted = self._with_own_seed(adopted)
            warnings.warn(ROUNDED, UserWarning, stacklevel=2)
        self._memory.copy_(adopted, non_blocking=True)
        self._empty_ring()
        self.observations.empty()

    def _from_own_start(self, memory: Tensor) -> Tensor:
        """A memory whose α is told from this controller's start; α over its start stays.

        That quotient is what multiplies the groups' rates (decisions.md 20), so the rate in effect
        stays, too, whatever mode or rate the run was made with. Bounds that the user gave in
        ``"replace"`` are rates: there an α from ``"replace"`` stays as it is.
        """
        start = memory[SLOT["log_lr_start"]]
        shift = self._start[SLOT["log_lr_start"]].to(memory.device) - start
        if self.control.mode == "replace" and self.control.lr_bounds is not None:
            shift = torch.where(start == 0, shift, 0.0)  # 0: α started at 1, as in "modulate"
        adopted = memory.clone()
        adopted[LOGARITHMS_OF_LR] += shift
        adopted[SLOT["lr"]] *= shift.exp()
        return adopted

    def _with_own_seed(self, rounded: Tensor) -> Tensor:
        own = self._start[:MEMORY_SIZE].to(rounded.device)
        same = (own.to(torch.float32).to(torch.float64) == rounded) & _seeds_of(rounded)
        return torch.where(same, own, rounded)

    def reset(self) -> None:
        """Back to the start: nothing observed, α and μ where the user put them."""
        self.adopt(self._start[:MEMORY_SIZE])

    def read(self) -> Any:
        """The whole state on the host, a `State` of floats. Waits for the device."""
        return State(*self.block.tolist())

    def in_effect(
        self, numbers: Sequence[float], memory: Tensor | None = None
    ) -> tuple[Any, float, float]:
        """The state, and what a step would make of a group now. Waits for the device.

        Changes nothing that a step reads: one copy of the block, and the rest is done on that.

        Args:
            numbers: The group's row of the group table, five numbers.
            memory: A loaded one that the next step will adopt, instead of this controller's.

        Returns:
            The state, as `read` gives it; the group's lr; the group's momentum.

        Raises:
            ValueError: As `current_layout`.
        """
        block = self.block.to("cpu", copy=True)
        if memory is not None:
            block[:MEMORY_SIZE] = self._from_own_start(current_layout(memory)).cpu()
        groups = torch.tensor([numbers], dtype=torch.float64, device="cpu")
        effective = torch.empty((1, 2), dtype=torch.float64, device="cpu")
        torch.ops.adaptiverl.read_groups_(block, groups, effective)
        return State(*block.tolist()), *effective[0].tolist()

    def trace(self) -> Trace:
        """The last updates of the knobs. Waits for the device."""
        if self._made_ring is None:
            shape = (0, len(TRACE_COLUMNS))
            return Trace(torch.empty(shape, dtype=torch.float64, device="cpu"))
        written = int(self._ring[0, 0])
        rows = self._ring[1 : 1 + min(written, TRACE_CAPACITY)].to("cpu", copy=True)
        if written <= TRACE_CAPACITY:
            return Trace(rows)
        return Trace(rows.roll(-(written % TRACE_CAPACITY), dims=0))


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """On another device; the host waits only where it is the one that is going to read."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # a copy from elsewhere waits for all that was asked before
    return tensor.to(device, non_blocking=device.type != "cpu")


ROUNDED = (
    "'adaptive_state' was loaded as float32 and is float64 again; something between saving and "
    "loading rounded it (a framework that casts all float64 to float32). The averages lost digits "
    "that do not matter; the seed of the noise and the step count are others than they were where "
    "they are above 2**24: then the noise, where there is any, is not the one that the run would "
    "have drawn. Save and load 'adaptive_state' as it is to resume exactly"
)


def _seeds_of(memory: Tensor) -> Tensor:
    """Which of a memory's numbers are the seed's two words, in every layout."""
    places = torch.arange(len(memory), device=memory.device)
    return (places == SLOT["seed_low"]) | (places == SLOT["seed_high"])


def current_layout(memory: Any) -> Tensor:
    """A memory as this version lays it out, an older one migrated; `memory` itself is left alone.

    A float32 one is made float64.

    Args:
        memory: What a checkpoint holds under ``adaptive_state``.

    Raises:
        ValueError: No controller's memory, one of an unknown layout, or a damaged one; says what
            was found, what was expected, and what to do.
    """
    if not isinstance(memory, Tensor):
        raise _refusal(repr(memory))
    right = memory.dtype in (torch.float64, torch.float32)
    if not right or memory.dim() != 1 or memory.numel() == 0:
        raise _refusal(f"{memory.dtype} of shape {tuple(memory.shape)}")
    if memory.dtype == torch.float32:
        memory = memory.to(torch.float64)
        # The next float32 above 2^32 − 1 is one more than a word holds.
        memory = torch.where(_seeds_of(memory) & (memory == 2.0**32), 2.0**32 - 1, memory)
    version = memory[SLOT["version"]].item()
    while version in MIGRATIONS:
        memory = MIGRATIONS[int(version)](memory)
        version += 1
    if version != LAYOUT_VERSION:
        raise _refusal(f"version {version}")
    if memory.shape != (MEMORY_SIZE,):
        raise _refusal(f"{memory.dtype} of shape {tuple(memory.shape)}")
    for name, value in zip(FIELDS, memory.tolist(), strict=False):
        off = value == -math.inf and name in LOGARITHMS_OF_ZERO
        if not (math.isfinite(value) or off or name in AS_THEY_CAME):
            raise _refusal(f"{name} = {value}")
        low, high = RANGES.get(name, (-math.inf, math.inf))
        if not (off or name in AS_THEY_CAME or low <= value <= high):
            raise _refusal(f"{name} = {value}, which is not in [{low:.6g}, {high:.6g}]")
        if name in WHOLE and value != int(value):
            raise _refusal(f"{name} = {value}, which is no whole number")
    _check_knobs(*memory[[SLOT["log_lr"], SLOT["log_lr_start"]]].tolist())
    return memory


def _check_knobs(log_lr: float, log_lr_start: float) -> None:
    """Every group's rate is multiplied by how far α has come from its start."""
    if abs(log_lr - log_lr_start) > WIDEST:
        raise _refusal(
            f"log_lr = {log_lr}, which is further than {WIDEST:.6g} from log_lr_start = "
            f"{log_lr_start}"
        )


def _refusal(found: str) -> ValueError:
    return ValueError(
        f"'adaptive_state' must be a float64 tensor of {MEMORY_SIZE} numbers whose first is "
        f"{LAYOUT_VERSION}, got {found}: the checkpoint is from another version of adaptiverl, or "
        "damaged; nothing was changed"
    )


def pack_parameters(control: Control, limits: Limits) -> list[float]:
    """`Control` and its limits as `Parameters` in csrc/control_law.h has them, in that order."""
    log_noise_max = math.log(limits.noise_max) if limits.noise_max > 0 else -math.inf
    log_noise_floor = math.log(limits.noise_floor) if limits.noise_max > 0 else -math.inf
    return [
        float(control.every or 0),
        REWARD_SOURCES[control.reward],
        control.beta_loss,
        control.beta_reward,
        control.beta_variance,
        control.gain_lr_reward,
        control.gain_lr_loss,
        control.gain_momentum_reward,
        control.gain_momentum_loss,
        control.gain_noise_plateau,
        control.gain_noise_reward,
        limits.lr_min,
        limits.lr_max,
        limits.momentum_min,
        limits.momentum_max,
        limits.noise_min,
        limits.noise_max,
        math.log(limits.lr_min),
        math.log(limits.lr_max),
        _logit(limits.momentum_min),
        _logit(limits.momentum_max),
        log_noise_floor,
        log_noise_max,
        math.log(control.lr_change[0]),
        math.log(control.lr_change[1]),
        control.spike_clip,
        *control.plateau_trend,
        *control.plateau_variance,
        LAWS[control.law],
        math.log(limits.lr_acquire),
        float(control.horizon or 0),
        control.hold_by,
        control.annealed_over,
        math.log(control.held_share),
    ]


def _logit(x: float) -> float:
    return math.log(x / (1 - x)) if x > 0 else -math.inf


def _scalar(value: Any, name: str, device: torch.device) -> Tensor:
    """The value as a 0-d float32 or float64 tensor on the device, cut from the graph."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(
                f"{name} must have one element, got shape {tuple(value.shape)}: "
                f"reduce it first, as in {name}.mean()"
            )
        if value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"{name} must be a real number, got dtype {value.dtype}")
        if value.is_meta:
            raise TypeError(f"{name} has no value: it is a tensor on the meta device")
        # On the host the next line reads it, so there it has to have arrived.
        value = value.detach().reshape(()).to(device, non_blocking=device.type != "cpu")
        # Only here: where it came from there may be no float64.
        exact = value.dtype in (torch.float32, torch.float64)
        return value if exact else value.to(torch.float64)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"{name} must be a real number or a tensor with one element, got {value!r} "
            f"of type {type(value).__name__}"
        )
    return torch.full((), float(value), dtype=torch.float64, device=device)
