"""``python -m bench.memory``: bytes of an element, ours and others', and times of a step.

Everything is counted from the tensors that are there after one step: weights, gradients, and what
the optimizer keeps, each piece of memory once; but for our trace, 1 MB whatever the model. Under
gradient release the gradients are those that were there at once at most. requirements-peers.txt has
the others; who is not installed, or does not step on this machine, is left out with the reason.
"""

import argparse
import importlib
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adaptiverl import AdaptiveAdamW, AdaptiveLion, AdaptiveSGD, Control
from adaptiverl.codecs import STATE_DTYPES
from bench import machine
from bench.speed.shapes import SHAPES
from bench.tables import markdown

SINGLE, HALF = torch.float32, torch.bfloat16
OURS: dict[str, Callable[..., Any]] = {
    "AdaptiveAdamW": lambda params, **kw: AdaptiveAdamW(params, 1e-4, **kw),
    "AdaptiveLion": lambda params, **kw: AdaptiveLion(params, 1e-4, **kw),
    "AdaptiveSGD": lambda params, **kw: AdaptiveSGD(params, 1e-4, 0.9, **kw),
}


class Contender(NamedTuple):
    """An optimizer, what it is called, and what weights and gradients it is given."""

    name: str
    dtype: torch.dtype
    build: Callable[[list[nn.Parameter]], Any]
    releases: bool = False


def package(path: str, **options: Any) -> Callable[[list[nn.Parameter]], Any]:
    """Builds an optimizer of another package, by its dotted name; ImportError where it is not."""
    module, _, name = path.rpartition(".")
    return lambda params: getattr(importlib.import_module(module), name)(params, 1e-4, **options)


def made(name: str, **options: Any) -> Callable[[list[nn.Parameter]], Any]:
    """Builds one of ours."""
    return lambda params: OURS[name](params, **options)


def ours() -> Iterator[Contender]:
    """Every algorithm with every way to store weights and state; and AdamW without gradients."""
    for name in OURS:
        for dtype in (SINGLE, HALF):
            for state_dtype in STATE_DTYPES:
                build = made(name, state_dtype=state_dtype, control=Control.frozen())
                title = f"{name}, state in {_short(state_dtype)}"
                yield Contender(title, dtype, build)
                if dtype == HALF:
                    kept = made(
                        name, state_dtype=state_dtype, master_bits=8, control=Control.frozen()
                    )
                    yield Contender(f"{title}, error terms", dtype, kept)
                if name == "AdaptiveAdamW" and dtype == HALF:
                    yield Contender(f"{title}, gradients released", dtype, build, releases=True)


def others() -> Iterator[Contender]:
    """torch's own, and packages that keep less."""
    fused = package("torch.optim.AdamW", fused=True)
    by_chance = package("torchao.optim.AdamW8bit", bf16_stochastic_round=True)
    for dtype in (SINGLE, HALF):
        yield Contender("torch.optim.AdamW, fused", dtype, fused)
        yield Contender("bitsandbytes AdamW8bit", dtype, package("bitsandbytes.optim.AdamW8bit"))
        yield Contender("flashoptim FlashAdamW", dtype, package("flashoptim.FlashAdamW"))
    yield Contender("torchao AdamW8bit", SINGLE, package("torchao.optim.AdamW8bit"))
    yield Contender("torchao AdamW8bit, bf16_stochastic_round", HALF, by_chance)
    plain = package("torchao.optim._AdamW", bf16_stochastic_round=True)
    yield Contender("torchao _AdamW, bf16_stochastic_round", HALF, plain)


class Model(nn.Module):
    """Weights of these shapes, each with a gradient of its own."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        drawn = [0.02 * torch.randn(shape, dtype=dtype) for shape in shapes]
        self.weights = nn.ParameterList(map(nn.Parameter, drawn))

    def forward(self) -> Tensor:
        loss = torch.zeros(())
        for weight in self.weights:
            loss = loss + (0.01 * weight * weight).sum().float()
        return loss


def memory_in(value: Any) -> Iterator[tuple[int, int]]:
    """Where the memory of everything in a state lies, and its bytes; a tensor may hold others."""
    if isinstance(value, Tensor):
        if hasattr(value, "__tensor_flatten__"):
            inner, _ = value.__tensor_flatten__()
            for name in inner:
                yield from memory_in(getattr(value, name))
        else:
            yield value.data_ptr(), value.nbytes
    elif isinstance(value, dict):
        for part in value.values():
            yield from memory_in(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from memory_in(part)


def bytes_of(value: Any) -> int:
    """Bytes of all tensors in it, memory that is shared once."""
    return sum(dict(memory_in(value)).values())


class Counted(NamedTuple):
    """Bytes of everything that one training holds."""

    weights: int
    gradients: int
    state: int


def count(contender: Contender, shapes: Sequence[tuple[int, ...]]) -> Counted:
    """After one step of a contender."""
    model = Model(shapes, contender.dtype)
    params = list(model.parameters())
    optimizer = contender.build(params)
    most = 0

    def look(_: Tensor) -> None:
        nonlocal most
        most = max(most, bytes_of([p.grad for p in params if p.grad is not None]))

    for param in params:
        param.register_post_accumulate_grad_hook(look)
    if contender.releases:
        optimizer.release_gradients(model)
    model().backward()
    optimizer.step()
    state = list(optimizer.state.values())
    held = bytes_of(state)
    if hasattr(optimizer, "memory"):  # ours says what it has beside the state
        parts = optimizer.memory()
        held = sum(parts.values()) - sum(parts[k] for k in ("parameters", "gradients", "trace"))
    return Counted(bytes_of(params), most, held)


def count_all(
    contenders: Sequence[Contender], shapes: Sequence[tuple[int, ...]]
) -> tuple[list[tuple[Contender, Counted]], list[str]]:
    """What could be counted, and who could not, with the reason."""
    counted, left_out = [], []
    for contender in contenders:
        try:
            counted.append((contender, count(contender, shapes)))
        except (ImportError, NotImplementedError) as error:
            left_out.append(f"{contender.name}, {_short(contender.dtype)}: {error}")
    return counted, left_out


def times(
    contenders: Sequence[Contender], shapes: Sequence[tuple[int, ...]], rounds: int
) -> list[float]:
    """Median seconds of a step with gradients that are there, all contenders once in each round."""
    steps = []
    for contender in contenders:
        model = Model(shapes, contender.dtype)
        model().backward()
        optimizer = contender.build(list(model.parameters()))
        optimizer.step()
        steps.append(optimizer.step)
    taken: list[list[float]] = [[] for _ in steps]
    for _ in range(rounds):
        for step, mine in zip(steps, taken, strict=True):
            start = time.perf_counter()
            step()
            mine.append(time.perf_counter() - start)
    return [statistics.median(mine) for mine in taken]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def report(
    counted: Sequence[tuple[Contender, Counted]], elements: int, seconds: dict[int, float]
) -> str:
    """A line of the table for each."""
    titles = ["optimizer", "weights, gradients", "weights", "gradients", "state", "all"]
    if seconds:
        titles.append("step, ns per element")
    lines = []
    for i, (contender, found) in enumerate(counted):
        each = [f"{part / elements:.2f}" for part in (*found, sum(found))]
        line = [contender.name, _short(contender.dtype), *each]
        if seconds:
            line.append(f"{1e9 * seconds[i] / elements:.2f}" if i in seconds else "")
        lines.append(line)
    return markdown(titles, lines)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    parser.add_argument("--parameters", choices=SHAPES, default="gpt-10M")
    parser.add_argument("--rounds", type=int, default=0, help="steps to time of each (none)")
    add = parser.add_argument
    add("--only", nargs="+", default=[""], help="contenders with one of these in their names")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    given = parser.parse_args(arguments)
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    shapes = SHAPES[given.parameters]
    wanted = [c for c in (*ours(), *others()) if any(part in c.name for part in given.only)]
    if not given.rounds and any("torchao" in contender.name for contender in wanted):
        torch.compiler.set_stance("force_eager")  # torchao compiles its step; no byte depends on it
    counted, left_out = count_all(wanted, shapes)
    seconds: dict[int, float] = {}
    if given.rounds:
        chosen = [i for i, (contender, _) in enumerate(counted) if not contender.releases]
        found = times([counted[i][0] for i in chosen], shapes, given.rounds)
        seconds = dict(zip(chosen, found, strict=True))
    elements = sum(p.numel() for p in Model(shapes, HALF).parameters())
    about = machine.provenance(torch.device("cpu"))
    print(report(counted, elements, seconds))
    print("\n".join(f"Not counted: {reason}" for reason in left_out))
    print(
        f"\n{elements:,} elements in {len(shapes)} tensors; {about['device']}, threads: "
        f"{about['threads']}, load average {machine.load():.1f}; torch {about['torch']}, ours "
        f"at {about['commit']}, {about['date']}. "
        f"`{shlex.join(['python', '-m', 'bench.memory', *arguments])}`"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
