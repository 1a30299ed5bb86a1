"""`number_parameters`: a parameter's place in the whole model, where an optimizer has a part of it.

How many ranks decide together, and where their shards lie, is in `adaptiverl.ranks`.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

NOISE_PLACE = "_adaptiverl_place"
"""Attribute of a parameter that `number_parameters` has been over"""


def number_parameters(params: Iterable[Tensor]) -> list[Tensor]:
    """Tell every parameter its place in the whole model: the noise's key.

    An optimizer numbers its own parameters (method.md#random-numbers), and that is enough wherever
    every rank's optimizer has them all. `ZeroRedundancyOptimizer` gives each rank's optimizer a
    part, which that optimizer cannot tell from a whole; numbered before, they draw what one rank
    would draw. Without, replicas stay equal, but parameters of different ranks share their noise:

        >>> own = partial(AdaptiveAdamW, control=Control(), seed=1)
        >>> ZeroRedundancyOptimizer(number_parameters(model.parameters()), own, lr=3e-4)

    The partial keeps what is no group's entry out of ZeRO's groups, and so out of checkpoints,
    which load with ``weights_only=True`` then. `max_grad_norm` would clip by the norm of this
    rank's part: use torch.nn.utils.clip_grad_norm_ there, all gradients being on every rank.

    Args:
        params: All of the model's parameters, in the order in which one optimizer would get them.

    Returns:
        The same parameters; each keeps its number as long as it lives, a copy of it does not.
    """
    numbered = list(params)
    for place, param in enumerate(numbered):
        setattr(param, NOISE_PLACE, place)
    return numbered
