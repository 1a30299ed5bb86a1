"""What the study runs: protocol.md as records, which a test holds to that page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bench.methods import ABLATIONS, METHODS, Method
from bench.requests import runnable
from bench.run.cells import Cell
from bench.run.grid import Engine, plan
from bench.tasks import STUDY_TASKS, TASKS, Task

THOUSAND = 1000
FIRST_A, FIRST_B = 3 * THOUSAND, 4 * THOUSAND
QUICK_A, QUICK_B = 1 * THOUSAND, 2 * THOUSAND
LOOKS = 20
SEVEN = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
FOUR, THREE = (1e-4, 1e-3, 1e-2, 1e-1), (3e-4, 3e-3, 3e-2)
REFERENCE = "cosine"

FEW = ("constant", "cosine", "prodigy", "loss-cosine", "alignment", "range-test")
MAIN = (*FEW, "default", "linear", "cooldown", "greedy", "schedule-free", "loss", "bandit")
ALL = (
    *MAIN,
    *("plateau", "prodigy-constant", "alignment-open", "alignment-cosine", "range-test-open"),
)
LISTS = {"few": FEW, "main": MAIN, "all": ALL}

TOGETHER = ("digits-mlp", "digits-cnn", "autoencoder", "diabetes")
"""Tasks so small that cells train side by side."""
ABLATED = ("digits-mlp", "autoencoder", "diabetes")
ABLATED_FROM = (1e-4, 1e-3, 1e-2)
NEW = ("diabetes", "lora", "chars-0.8m", "chars-0.8m-4x", "chars-0.2m-4x")
"""Tasks that nothing was chosen on."""


@dataclass(frozen=True)
class Part:
    """A task of the study: who learns it, from which rates, with how many seeds."""

    task: str
    methods: str  # a name of `LISTS`
    rates: tuple[float, ...]
    choose: int  # seeds A
    compare: int  # seeds B
    first: tuple[int, int] = (FIRST_A, FIRST_B)  # seed of each

    @property
    def reference_rates(self) -> tuple[float, ...]:
        """Those that the reference is chosen from: half decades, whatever the others start from."""
        return tuple(rate for rate in SEVEN if min(self.rates) <= rate <= max(self.rates))

    def seeds(self) -> tuple[int, ...]:
        (a, b), choose, compare = self.first, self.choose, self.compare
        return (*range(a, a + choose), *range(b, b + compare))


def is_a(seed: int) -> bool:
    """Seeds A are in the odd thousands, seeds B in the even ones."""
    return seed // THOUSAND % 2 == 1


FULL = (
    Part("digits-mlp", "all", SEVEN, 3, 5),
    Part("digits-cnn", "main", FOUR, 2, 4),
    Part("autoencoder", "all", SEVEN, 3, 5),
    Part("diabetes", "all", SEVEN, 3, 5),
    Part("fashion-500", "few", FOUR, 1, 3),
    Part("chars-0.2m", "main", FOUR, 1, 2),
    Part("chars-0.2m-4x", "few", THREE, 1, 2),
    Part("chars-0.8m", "few", THREE, 1, 2),
    Part("chars-0.8m-4x", "few", THREE, 1, 2),
    Part("lora", "main", FOUR, 1, 2),
)
_QUICK = (
    *(Part(task, "all", FOUR, 2, 3) for task in ABLATED),
    Part("chars-0.2m", "few", THREE, 1, 2),
    Part("lora", "few", THREE, 1, 2),
)
QUICK = tuple(replace(part, first=(QUICK_A, QUICK_B)) for part in _QUICK)
"""Seeds of their own: looking at them spoils nothing."""
LARGE = tuple(Part(task, "few", THREE, 1, 2) for task in ("gpt-10m", "gpt-124m"))
"""On a CUDA device, by name only."""


def engine_of(cell: Cell) -> Engine:
    return "vmap" if cell.task.name in TOGETHER else "processes"


def cells_of(parts: Sequence[Part], methods: Sequence[str] | None = None) -> list[Cell]:
    """The runs of these parts, the ablations after the rest; of these methods, if some are named.

    What cannot run here is named on standard error and left out.
    """
    tasks: list[Task] = runnable("task", [_task(part.task) for part in parts])
    kept = [part for part in parts if any(task.name == part.task for task in tasks)]
    wanted = [name for name in ALL if not methods or name in methods]
    able = {method.name: method for method in runnable("method", [METHODS[n] for n in wanted])}
    found = [cell for part in kept for cell in _cells(part, _named(able, LISTS[part.methods]))]
    if not methods:
        ablated = list(ABLATIONS.values())
        found += [
            cell
            for part in kept
            if part.task in ABLATED
            for cell in _cells(replace(part, rates=ABLATED_FROM), ablated)
        ]
    # Seed by seed, as in `bench.run.grid.plan`, so that an interrupted run has whole tables.
    order = {seed: at for at, seed in enumerate(dict.fromkeys(c.seed for c in found))}
    return sorted(found, key=lambda cell: (order[cell.seed], -cell.task.seconds))


def _task(name: str) -> Task:
    return STUDY_TASKS[name] if name in STUDY_TASKS else TASKS[name]


def _named(able: Mapping[str, Method], names: Sequence[str]) -> list[Method]:
    return [method for name, method in able.items() if name in names]


def _cells(part: Part, methods: Sequence[Method]) -> list[Cell]:
    task = [_task(part.task)]
    cells = plan(task, methods, part.rates, part.seeds(), looks=LOOKS)
    more = [rate for rate in part.reference_rates if rate not in part.rates]
    only = [method for method in methods if method.name == REFERENCE]
    return cells + plan(task, only, more, part.seeds(), looks=LOOKS)
