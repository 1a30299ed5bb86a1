"""Every law by its number (`layout.LAWS`), a line each. The twin of csrc/law/registry.h."""

from __future__ import annotations

from adaptiverl.law.alignment import ALIGNMENT
from adaptiverl.law.base import Law
from adaptiverl.law.loss import LOSS
from adaptiverl.layout import LAWS

BY_NUMBER: dict[float, Law] = {
    LAWS["loss"]: LOSS,
    LAWS["alignment"]: ALIGNMENT,
}


def law_of(name: str) -> Law:
    """The law that `Control.law` names."""
    return BY_NUMBER[LAWS[name]]
