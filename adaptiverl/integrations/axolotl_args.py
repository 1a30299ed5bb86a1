"""The keys of axolotl's YAML that `AdaptivePlugin` reads, for axolotl's own validation."""

from __future__ import annotations

from pydantic import BaseModel


class AdaptiveArgs(BaseModel):
    """As `AdaptivePlugin` says."""

    adaptive_optimizer: str | None = None
    adaptive_control: str | None = None
