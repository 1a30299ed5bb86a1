"""What the contenders are called, and which of them meet; it imports nothing of the package."""

FUSED, FOREACH = "torch AdamW, fused", "torch AdamW, foreach"
SINGLE = "torch AdamW, single-tensor"
CLIPPED = "torch AdamW, fused, with clipping"
PLAIN_NOISE = "torch AdamW, fused, with noise"
TUNED_NOISE = "torch AdamW, fused, with noise, tuned"
STOCK = "torch AdamW, fused, with noise, tuned, and clipping"
OURS, ALIGNMENT = "AdaptiveAdamW", "AdaptiveAdamW, alignment law"
UNTOLD, FROZEN = "AdaptiveAdamW, not told a loss", "AdaptiveAdamW, frozen"
FROZEN_UNTOLD = "AdaptiveAdamW, frozen, not told a loss"
PLAIN, CLIP = "AdaptiveAdamW, σ off", "AdaptiveAdamW with clipping"
NOISE, ALL = "AdaptiveAdamW with noise", "AdaptiveAdamW with noise and clipping"
IDLE = "the controller alone"
SHORT, CODED = "AdaptiveAdamW, bfloat16 state", "AdaptiveAdamW, int8 state"

CLIMBING, CLIMBED = "climb, while it searches", "climb, once it holds"
RAMPING, RAMPED = "find_lr, on its ramp", "find_lr, once it holds"
COOLING = "find_lr, in the cooldown"

SEARCHES = (FUSED, PLAIN, CLIMBING, CLIMBED, RAMPING, RAMPED, COOLING)  # for --searches
IN_A_STEP = (
    FUSED,
    FOREACH,
    SINGLE,
    OURS,
    CODED,
    ALIGNMENT,
    PLAIN_NOISE,
    TUNED_NOISE,
    NOISE,
    STOCK,
    ALL,
    IDLE,
)  # on a large model
ON_SMALL_NETS = (FUSED, OURS, UNTOLD, FROZEN, FROZEN_UNTOLD)
ON_A_CARD = (FUSED, FOREACH, CLIPPED, STOCK, PLAIN, SHORT, NOISE, CLIP, ALL, ALIGNMENT)


def is_ours(name: str) -> bool:
    return not name.startswith("torch")
