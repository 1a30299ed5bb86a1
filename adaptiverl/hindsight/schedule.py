"""`Schedule`: α, μ and σ of a whole run, in the spaces that the laws move them in."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

KNOTS = 8
"""Equal parts of a run that a schedule bends between, where nothing is said"""
RISE = 0.03
"""Share of the run at which one knot more stands: a warm-up is short"""
VERSION = 1
LOWEST = 1e-3
"""A cosine ends at 0, which has no logarithm: it ends at so much of its peak"""


@dataclass(frozen=True)
class Schedule:
    """log α, logit μ and log σ at knots, linear between them (method.md#hindsight).

    Attributes:
        steps: T, optimizer steps of the run.
        places: The knots' steps, rising from 0 to T − 1.
        knots: float64 [knots, 3]: log α, logit μ, log σ; log σ is −∞ throughout where there is no
            noise.
    """

    steps: int
    places: tuple[float, ...]
    knots: Tensor

    def __post_init__(self) -> None:
        if tuple(self.knots.shape) != (len(self.places), 3):
            raise ValueError(
                f"Schedule.knots must be of shape {(len(self.places), 3)}, a row for each place, "
                f"got {tuple(self.knots.shape)}"
            )

    @classmethod
    def constant(
        cls,
        lr: float,
        steps: int,
        momentum: float = 0.9,
        noise: float = 0.0,
        knots: int = KNOTS,
    ) -> Schedule:
        """The same α, μ and σ throughout.

        Args:
            lr: α > 0.
            steps: T.
            momentum: μ in (0, 1).
            noise: σ >= 0; at 0 it is off and stays off.
            knots: Equal parts that it can bend between.

        Raises:
            ValueError: A number out of its range.
        """
        for name, value, ok, expected in (
            ("lr", lr, 0 < lr < math.inf, "finite and > 0"),
            ("steps", steps, steps >= 2, "2 at least"),
            ("momentum", momentum, 0 < momentum < 1, "in (0, 1)"),
            ("noise", noise, 0 <= noise < math.inf, "finite and >= 0"),
            ("knots", knots, knots >= 1, "1 at least"),
        ):
            if not ok:
                raise ValueError(f"{name} must be {expected}, got {value!r}")
        last = steps - 1
        shares = sorted({0.0, RISE, *(k / knots for k in range(1, knots + 1))})
        logit = math.log(momentum / (1 - momentum))
        row = [math.log(lr), logit, math.log(noise) if noise else -math.inf]
        spaces = torch.tensor([row] * len(shares), dtype=torch.float64)
        return cls(steps, tuple(last * share for share in shares), spaces)

    @classmethod
    def like(cls, rates: Tensor, momentum: float = 0.9, knots: int = KNOTS) -> Schedule:
        """The nearest one to rates that are given step by step: equal to them at the knots.

        Args:
            rates: float [steps], each >= 0; what is below a thousandth of the highest is that.
            momentum: μ.
            knots: As `constant`.
        """
        flat = cls.constant(float(rates.max()), len(rates), momentum, knots=knots)
        at = rates.double()[[round(place) for place in flat.places]]
        spaces = flat.knots.clone()
        spaces[:, 0] = at.clamp(min=LOWEST * float(rates.max())).log()
        return replace(flat, knots=spaces)

    @property
    def noisy(self) -> bool:
        """There is a σ to be moved."""
        return bool(torch.isfinite(self.knots[:, 2]).all())

    def weights(self) -> Tensor:
        """How much of each knot is in each step's knobs, float64 [steps, knots]."""
        steps = torch.arange(self.steps, dtype=torch.float64)
        places = torch.tensor(self.places, dtype=torch.float64)
        above = torch.searchsorted(places, steps).clamp(1, len(places) - 1)
        share = (steps - places[above - 1]) / (places[above] - places[above - 1])
        weights = torch.zeros(self.steps, len(places), dtype=torch.float64)
        weights.scatter_(1, above[:, None], share[:, None])
        weights.scatter_(1, above[:, None] - 1, 1 - share[:, None])
        return weights

    def knobs(self) -> Tensor:
        """α, μ, σ of every step, float64 [steps, 3]; autograd follows it to `knots`."""
        weights = self.weights()
        lr = (weights @ self.knots[:, 0]).exp()
        momentum = (weights @ self.knots[:, 1]).sigmoid()
        noise = (weights @ self.knots[:, 2]).exp() if self.noisy else torch.zeros_like(lr)
        return torch.stack([lr, momentum, noise], 1)

    def save(self, path: Path | str) -> None:
        """Write it as JSON."""
        knots = [[None if x == -math.inf else x for x in row] for row in self.knots.tolist()]
        content = {"version": VERSION, "steps": self.steps, "places": self.places, "knots": knots}
        Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str) -> Schedule:
        """Read what `save` wrote.

        Raises:
            ValueError: It is none, or of another version.
        """
        try:
            content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
            version = content["version"]
            rows = [[-math.inf if x is None else x for x in row] for row in content["knots"]]
            found = cls(
                content["steps"],
                tuple(content["places"]),
                torch.tensor(rows, dtype=torch.float64),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is no schedule that adaptiverl.hindsight wrote ({error!r}): make it again"
            ) from error
        if version != VERSION:
            raise ValueError(
                f"{path} is a schedule of version {version!r}, expected {VERSION}: make it again"
            )
        return found


class Found(NamedTuple):
    """What an optimisation of a schedule came to."""

    schedule: Schedule
    """The best that was met"""
    before: float
    """Mean judged loss at the end of the runs, with the schedule that it started from"""
    after: float
    """With the best"""
    losses: list[float]
    """Of each round's schedule"""


def cosine_rates(lr: float, steps: int, warm_up: float = 0.05) -> Tensor:
    """A rise over a share of the run, then a cosine to 0: α of each step, float64 [steps]."""
    taken = torch.arange(steps, dtype=torch.float64)
    rise = max(1, round(warm_up * steps))
    left = ((steps - taken) / max(1, steps - rise)).clamp(0, 1)
    return lr * torch.where(taken < rise, (taken + 1) / rise, (1 - (math.pi * left).cos()) / 2)
