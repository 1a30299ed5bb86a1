"""Every law by its number (`layout.LAWS`), a line each. The twin of csrc/law/registry.h."""

from __future__ import annotations

from adaptiverl.law.alignment import ALIGNMENT
from adaptiverl.law.bandit import BANDIT
from adaptiverl.law.base import Law
from adaptiverl.law.distilled import DISTILLED
from adaptiverl.law.loss import LOSS
from adaptiverl.law.range_test import RANGE_TEST
from adaptiverl.layout import LAWS

BY_NUMBER: dict[float, Law] = {
    LAWS["loss"]: LOSS,
    LAWS["alignment"]: ALIGNMENT,
    LAWS["range_test"]: RANGE_TEST,
    LAWS["bandit"]: BANDIT,
    LAWS["distilled"]: DISTILLED,
}


def law_of(name: str) -> Law:
    """The law that `Control.law` names."""
    return BY_NUMBER[LAWS[name]]
