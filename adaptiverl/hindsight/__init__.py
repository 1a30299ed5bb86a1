"""The schedule that would have been best, worked out offline (method.md#hindsight).

Nothing here runs while you train: a small model is trained again and again, and its whole schedule
of α, μ and σ moves until the loss at the end falls no more. What is left between that and a law
that sees the past alone is the head room that the law has.
"""

from adaptiverl.hindsight.cosines import best_cosine
from adaptiverl.hindsight.distillation import Examples, distill, examples
from adaptiverl.hindsight.hypergradients import descend, hypergradient
from adaptiverl.hindsight.schedule import Found, Schedule
from adaptiverl.hindsight.smoothing import smooth
from adaptiverl.hindsight.training import Run, Training, training_of
from adaptiverl.hindsight.unrolled import final_losses

__all__ = [
    "Examples",
    "Found",
    "Run",
    "Schedule",
    "Training",
    "best_cosine",
    "descend",
    "distill",
    "examples",
    "final_losses",
    "hypergradient",
    "smooth",
    "training_of",
]
