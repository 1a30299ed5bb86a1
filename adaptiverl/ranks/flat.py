"""FSDP1's flat shards, which a step cannot put together: it says so before anything moves."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from torch import Tensor

WHOLE_SIZE = "_unpadded_unsharded_size"
"""Of a flat parameter. With `use_orig_params` an optimizer has the model's own parameters instead:
each is one-dimensional while it is cut, and has its shape, ``NO_SHARD``'s case, while it is not"""


def refuse_flat_shards(params: Iterable[Tensor], optimizer: str) -> None:
    """Neither clipping nor noise is what it should be on this rank's piece of a flat parameter.

    Both want sums over whole tensors, or over all of them; FSDP2's shards say where they lie in
    theirs, FSDP1's do not. Whether a shard is one is the same on all ranks.

    Args:
        params: All of an optimizer that clips, or may draw noise.
        optimizer: Its name, for people.

    Raises:
        ValueError: One is FSDP1's, and not whole.
    """
    flat = [param for param in params if getattr(param, "_fsdp_flattened", False)]
    cut = [x for x in flat if x.numel() < prod(getattr(x, WHOLE_SIZE, ()))]
    own = [x for x in flat if not hasattr(x, WHOLE_SIZE)]
    if cut or (own and all(x.dim() == 1 for x in own)):
        raise ValueError(
            f"{optimizer} cannot clip FSDP1's flat shards, nor draw noise for them: it sees this "
            "rank's piece of each only. Clip by FSDP1's own model.clip_grad_norm_(max_norm) and "
            "leave max_grad_norm out, switch the noise off by Control(noise_bounds=(0, 0)), or "
            "shard with FSDP2, torch.distributed.fsdp.fully_shard, where both work"
        )
