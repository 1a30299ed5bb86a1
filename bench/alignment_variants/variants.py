"""Every schedule and law that is compared, by name, with what it does and why it was tried."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from adaptiverl.law.alignment import REACH
from adaptiverl.law.numbers import UNANNEALED_SHARE
from bench.alignment_variants.laws import base
from bench.alignment_variants.laws.base import Law, Schedule
from bench.alignment_variants.laws.prototype import Prototype, PrototypeAgain, Tracking
from bench.alignment_variants.laws.search import (
    ChangePoint,
    Cusum,
    EarlyTest,
    Final,
    FinalUnmarked,
    MeasuredNoise,
    NoDescent,
    Once,
    RawCusum,
    RmsGrowth,
    SlowGate,
    Unshrunk,
)


@dataclass(frozen=True)
class Variant:
    """A law as it is compared.

    Attributes:
        name: On the command line and in the tables.
        law: Makes a fresh one.
        what: What it does, by the law before it or by the final one.
        why: The question that it was to answer.
        is_main: Is run on the long tasks as well.
        is_open: Has no horizon and nobody to anneal it.
    """

    name: str
    law: Callable[[], Law]
    what: str
    why: str
    is_main: bool = False
    is_open: bool = False


SCHEDULES: dict[str, Callable[[], Law]] = {
    "constant": lambda: Schedule("constant"),
    "cosine": lambda: Schedule("cosine"),
    "cooldown": lambda: Schedule("cooldown"),
}
"""The baselines: plain AdamW with a warm-up of 5 % and then this."""

FINAL = "final"
_OPEN: dict[str, Any] = {"anneal": base.unannealed, "latest": math.inf}

_VARIANTS: tuple[Variant, ...] = (
    Variant(
        "prototype",
        Prototype,
        "log α += (1 − μ)(x + 0.1); held at the first e ≤ −0.1; cooldown 0.4 (decisions.md 23)",
        "where the work began",
        is_main=True,
    ),
    Variant(
        "prototype-again",
        PrototypeAgain,
        "the prototype; a held rate is let go where e > 0.3, until the cooldown",
        "a law that held by chance on a plateau should look again",
        is_main=True,
    ),
    Variant(
        "tracking",
        partial(Tracking, anneal=base.unannealed),
        "log α += 0.05·x in every step, never held",
        "does h's zero, followed, anneal by itself?",
        is_main=True,
        is_open=True,
    ),
    Variant(
        "tracking-cosine",
        partial(Tracking, anneal=base.under_cosine),
        "tracking under a cosine scheduler",
        "does tracking work where somebody else anneals?",
    ),
    Variant(
        "cusum",
        Cusum,
        "log α += (1 − μ)(e less its noise + 0.2); held where it stands when Page's test is sure",
        "a test that knows its own noise, and growth where h says nothing",
        is_main=True,
    ),
    Variant(
        "cusum-first",
        partial(Cusum, growth=0.1, size=0.4, enough=4.6),
        "cusum with growth 0.1, δ = 0.4, threshold 4.6",
        "the numbers it was first tried with",
    ),
    Variant(
        "cusum-raw",
        RawCusum,
        "cusum that moves with x instead of e",
        "can the average be done without?",
    ),
    Variant(
        "change-point",
        partial(ChangePoint, reach=math.inf, fade=0.0),
        "cusum that goes back to the rate at which S was last 0",
        "while the test makes up its mind the rate goes on growing",
    ),
    Variant(
        "change-point-reach",
        ChangePoint,
        "change-point; growth times 1 − S/5; at most 0.3 above the last rate with S = 0",
        "growing on against the evidence does damage before the hold",
    ),
    Variant(
        "patient",
        partial(ChangePoint, fade=4.0),
        "change-point-reach with growth times (1 − S/5)⁴",
        "grow only while nothing at all speaks against the rate",
    ),
    Variant(
        "rms-growth",
        RmsGrowth,
        "change-point-reach; growth is half the RMS of h, at most 0.4",
        "h is large where its direction means something: grow less where it is noise",
    ),
    Variant(
        "unshrunk",
        Unshrunk,
        "change-point-reach that moves with the whole e",
        "is taking the noise out of e worth a line?",
    ),
    Variant(
        "no-descent",
        NoDescent,
        "unshrunk; a negative e does not lower a rate once one is marked",
        "only the test should speak against a rate",
    ),
    Variant(
        "once",
        Once,
        "marks the rate while e > 0.2; Page's test (δ = 0.3, 5) from the first mark on; growth "
        "0.2·(1 − S/5); at most 0.3 above the mark; held at the first alarm; cooldown 0.4",
        "S = 0 is often chance; e > θ says that updates do point downhill",
        is_main=True,
    ),
    Variant("mark-0.1", partial(Once, clearly=0.1), "once, θ = 0.1", "how clear is clear?"),
    Variant("mark-0.3", partial(Once, clearly=0.3), "once, θ = 0.3", "how clear is clear?"),
    Variant(
        "early-test",
        EarlyTest,
        "once that tests before the first mark as well",
        "must the test wait for a rate that is known to be good?",
    ),
    Variant(
        "measured-noise",
        MeasuredNoise,
        "once; the mean square of x is measured (β = 0.05) instead of taken for 1",
        "x² is at most 1: is e's noise overrated?",
    ),
    Variant(
        "slow-gate",
        SlowGate,
        "once; marks only where an average of x over 20 steps is above 0 too",
        "e looks back five steps, so one lucky batch can mark a rate that is too high",
    ),
    Variant("reach-0.5", partial(Once, reach=0.5), "once, reach 0.5", "how far above the mark?"),
    Variant(
        "reach-none",
        partial(Once, reach=math.inf),
        "once, no limit above the mark",
        "is the limit needed at all?",
    ),
    Variant("size-0.2", partial(Once, size=0.2), "once, δ = 0.2", "a smaller overshoot"),
    Variant("size-0.4", partial(Once, size=0.4), "once, δ = 0.4", "a larger overshoot"),
    Variant("enough-4", partial(Once, enough=4.0), "once, threshold 4", "decide sooner"),
    Variant("enough-6", partial(Once, enough=6.0), "once, threshold 6", "decide later"),
    Variant(
        "enough-8",
        partial(Once, enough=8.0),
        "once, threshold 8",
        "a plateau's noise must not pass for an overshoot, however long it lasts",
    ),
    Variant(
        "enough-8-faster",
        partial(Once, enough=8.0, growth=0.3),
        "once, threshold 8, growth 0.3",
        "does climbing faster make up for deciding later?",
    ),
    Variant("growth-0.1", partial(Once, growth=0.1), "once, growth 0.1", "climb slower"),
    Variant("growth-0.15", partial(Once, growth=0.15), "once, growth 0.15", "climb slower"),
    Variant("growth-0.3", partial(Once, growth=0.3), "once, growth 0.3", "climb faster"),
    Variant(
        "enough-8-fastest",
        partial(Once, enough=8.0, growth=0.5),
        "once, threshold 8, growth 0.5",
        "does a plateau that is left sooner need no second look?",
    ),
    Variant(
        "twice",
        partial(Final, none=math.inf, same=REACH, holds_lower=False),
        "once; at an alarm it goes back to the mark and starts the test afresh, and holds at one "
        "whose mark is at most 0.3 above the last one's",
        "a law that held by chance on a plateau should look again; α climbs on there, so that "
        "chance hardly ever speaks twice at the same rate",
    ),
    Variant(
        "twice-clear",
        partial(FinalUnmarked, none=math.ulp(0.0), same=REACH, holds_lower=False),
        "twice; marks only where S = 0",
        "each look is another chance for a mark that is too high: keep luck out?",
    ),
    Variant(
        "twice-quiet",
        partial(FinalUnmarked, same=REACH, holds_lower=False),
        "twice; marks only where S < 1",
        "is S = 0 too strict?",
    ),
    Variant(
        "twice-wide",
        partial(FinalUnmarked, same=1.0, holds_lower=False),
        "twice-quiet; the second mark may lie 1.0 above the first",
        "marks climb from look to look: fewer looks?",
    ),
    Variant(
        "twice-lower",
        partial(FinalUnmarked, same=1.0),
        "twice-wide; the lower of the two marks is held",
        "where an overshoot was found below, is luck all that was found above?",
    ),
    Variant(
        FINAL,
        Final,
        "twice; a mark may not fall while S ≥ 1; the second may lie 1.5 above the first; the "
        "lower of the two is held: adaptiverl/law/alignment.py",
        "the lower mark keeps luck out, so that rising marks need not wait for S, which is slow "
        "on a plateau",
        is_main=True,
    ),
    Variant("final-same-1", partial(Final, same=1.0), "final, 1.0 above", "how far apart?"),
    Variant(
        "final-any-mark",
        partial(Final, same=1.0, none=math.inf),
        "final, 1.0 above; a mark may always fall",
        "is S needed for the mark at all?",
    ),
    Variant("final-growth-0.3", partial(Final, growth=0.3), "final, growth 0.3", "climb faster"),
    Variant(
        "final-share-0.7",
        partial(Final, share=0.7),
        "final; 0.7 of the rate found is held",
        "is the rate found a little high?",
    ),
    Variant(
        "cooldown-0.7",
        partial(Once, anneal=base.cooldown(0.7), latest=1 - 0.7),
        "once, cooldown 0.7, at whose beginning the search ends",
        "a longer anneal",
    ),
    Variant(
        "cooldown-1.0",
        partial(Once, anneal=base.cooldown(1.0)),
        "once, α times (T − t)/T from the first step on; the search ends at 0.6·T as before",
        "the longest anneal",
    ),
    Variant(
        "linear-from-hold",
        partial(Once, anneal=base.linear_from_hold),
        "once; linear to 0 from the step at which the rate is held",
        "why wait for the last 40 %?",
    ),
    Variant(
        "cosine-from-hold",
        partial(Once, anneal=base.cosine_from_hold),
        "once; half a cosine to 0 from the step at which the rate is held",
        "why wait for the last 40 %?",
    ),
    Variant(
        "once-cosine",
        partial(Once, anneal=base.under_cosine),
        "once under a cosine scheduler",
        "who has a scheduler keeps it",
    ),
    Variant(
        "final-cosine",
        partial(Final, anneal=base.under_cosine),
        "final under a cosine scheduler, as mode='modulate' has it",
        "who has a scheduler keeps it",
        is_main=True,
    ),
    Variant(
        "once-open-1",
        partial(Once, share=1.0, **_OPEN),
        "once without a horizon; the rate found is held",
        "nobody can say when the run ends",
        is_open=True,
    ),
    Variant(
        "once-open-1/2",
        partial(Once, share=UNANNEALED_SHARE, **_OPEN),
        "once without a horizon; half of it is held",
        "the rate found is one for a cooldown; unannealed, the noise of the batches stays",
        is_open=True,
    ),
    Variant(
        "once-open-1/3",
        partial(Once, share=1 / 3, **_OPEN),
        "once without a horizon; a third of it is held",
        "how much less?",
        is_open=True,
    ),
    Variant(
        "twice-open-1/2",
        partial(FinalUnmarked, same=REACH, holds_lower=False, share=UNANNEALED_SHARE, **_OPEN),
        "twice-quiet without a horizon; half of it is held",
        "where no clock ends the search, marks that climb from look to look do most harm",
        is_open=True,
    ),
    Variant(
        "final-open-1/2",
        partial(Final, share=UNANNEALED_SHARE, **_OPEN),
        "final without a horizon; half of it is held: adaptiverl/law/alignment.py",
        "the lower mark ends the climb",
        is_main=True,
        is_open=True,
    ),
)

VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _VARIANTS}
