"""The shapes of GPT-2's parameters, from its configuration's four numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class GPT2:
    """A GPT-2 configuration (Radford et al., 2019); the output layer shares the token embedding."""

    vocabulary: int
    context: int
    width: int
    layers: int

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Every parameter's shape, in the order in which the model uses them."""
        width = self.width
        norm = [(width,), (width,)]
        attention = [(width, 3 * width), (3 * width,), (width, width), (width,)]
        mlp = [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
        layer = [*norm, *attention, *norm, *mlp]
        embeddings = [(self.vocabulary, width), (self.context, width)]
        return [*embeddings, *layer * self.layers, *norm]

    @property
    def elements(self) -> int:
        """How many numbers the model has."""
        return sum(math.prod(shape) for shape in self.shapes)


MODELS = {
    "gpt2-small": GPT2(vocabulary=50257, context=1024, width=768, layers=12),
    "small": GPT2(vocabulary=257, context=32, width=48, layers=2),
}
"""What ``--parameters`` offers; ``small`` only shows that everything runs."""
