"""An ordinary run on the CPU keeps its bits: parameters, states and knobs after 200 steps.

A change that means to leave results alone is held to these. One that means to change them says so
in CHANGELOG.md and takes the new digests from this test's message.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import rank_jobs_digests
import torch
from ranks import Crew
from torch import Tensor, nn
from training import saved_states

from adaptiverl import AdaptiveAdamW, AdaptiveSGD, Control

STEPS, STEPS_ON_RANKS = 200, 50
SHAPES = ((), (5,), (37, 11), (1030,), (3, 2, 7))
NOISY = Control(
    every=2, noise_bounds=(0.0, 0.1), plateau_trend=(10.0, 1.0), plateau_variance=(10.0, 1.0)
)
"""Every knob moves early, and σ leaves its floor at once."""
CONTROLS = {
    "loss law": Control(every=2, noise_bounds=(0.0, 0.0)),
    "loss law, noise": NOISY,
    "alignment law": Control.climb(horizon=STEPS),
    "alignment law, noise": Control(
        law="alignment", horizon=STEPS, every=2, noise_bounds=(0.02, 0.02)
    ),
}


def adamw(params: list[nn.Parameter], control: Control) -> AdaptiveAdamW:
    return AdaptiveAdamW(params, 3e-3, amsgrad=True, control=control, max_grad_norm=1.5, seed=11)


def sgd(params: list[nn.Parameter], control: Control) -> AdaptiveSGD:
    return AdaptiveSGD(
        params, 3e-3, 0.9, weight_decay=0.01, nesterov=True, control=control, seed=11
    )


MAKERS: dict[str, Callable[[list[nn.Parameter], Control], Any]] = {"AdamW": adamw, "SGD": sgd}


def made(maker: str, control: str, params: list[nn.Parameter]) -> Any:
    return MAKERS[maker](params, CONTROLS[control])


LIBM = "fcc86d606b51b6e6"
"""Of exp and log as the digests below were taken with: `libm`"""
DIGESTS = {
    ("AdamW", "loss law"): "2d974f18ee48343a",
    ("AdamW", "loss law, noise"): "3e1d2bb73ed593be",
    ("AdamW", "alignment law"): "67feeb951e448eab",
    ("AdamW", "alignment law, noise"): "7db6e9c6d23623f5",
    ("SGD", "loss law"): "86cb0d19e042aef1",
    ("SGD", "loss law, noise"): "10791a57b7778205",
    ("SGD", "alignment law"): "60ab0df456907bab",
    ("SGD", "alignment law, noise"): "d7eb4e82fe7670c6",
}
ON_RANKS: dict[tuple[str, str, str], set[str]] = {
    ("DDP", "AdamW", "loss law"): {"2dddb0ce1ed0c381"},
    ("DDP", "AdamW", "loss law, noise"): {"c4babf6abfc291a1"},
    ("DDP", "AdamW", "alignment law"): {"6e9a13f2995f1bc9", "84e2fd79414f18f7"},
    ("DDP", "AdamW", "alignment law, noise"): {"8a19b333665265f1"},
    ("DDP", "SGD", "loss law"): {"e46c7492595df1e2"},
    ("DDP", "SGD", "loss law, noise"): {"bae767f3775034bc"},
    ("DDP", "SGD", "alignment law"): {"1c59cdb5c05424ed", "2428ae83db88d88e"},
    ("DDP", "SGD", "alignment law, noise"): {"9452ded8255f815e"},
    ("FSDP2", "AdamW", "loss law"): {"2dddb0ce1ed0c381"},
    ("FSDP2", "AdamW", "loss law, noise"): {"c4babf6abfc291a1"},
    ("FSDP2", "AdamW", "alignment law"): {"01f26df98c08c24b", "99e1925d662f564d"},
    ("FSDP2", "AdamW", "alignment law, noise"): {"728e2d5b7c78ddb4"},
    ("FSDP2", "SGD", "loss law"): {"e46c7492595df1e2"},
    ("FSDP2", "SGD", "loss law, noise"): {"bae767f3775034bc"},
    ("FSDP2", "SGD", "alignment law"): {"7678317e780642c6", "80314959ec4bcb2e"},
    ("FSDP2", "SGD", "alignment law, noise"): {"a09fc70ba1ddbc22"},
}
"""Two where each rank knows its own loss alone: no gain is above 0, and none is shared"""


def fractions(shape: tuple[int, ...], salt: int) -> Tensor:
    """float32 numbers from -0.5 to 0.5 from whole-number arithmetic alone: the same everywhere."""
    count = math.prod(shape)
    mixed = (torch.arange(count) * 2654435761 + salt * 40503 + 12345) % 2**32
    mixed = (mixed * 48271 + salt) % (2**31 - 1)
    return (mixed % 2**24).to(torch.float32).div(2**24).sub(0.5).reshape(shape)


def loss_of(step: int) -> float:
    """Falls, with a ripple, a spike, and one loss that is not a number."""
    if step == 120:
        return math.nan
    return 3.0 / (1 + step / 50) + (step * 7919 % 101) / 505 + (4.0 if step == 70 else 0.0)


def digest_of(items: Iterable[Tensor | float]) -> str:
    """sha256 of numbers' bits, in order."""
    seen = hashlib.sha256()
    for item in items:
        if isinstance(item, Tensor):
            seen.update(item.detach().contiguous().numpy().tobytes())
        else:
            seen.update(struct.pack("<d", item))
    return seen.hexdigest()[:16]


def libm() -> str:
    """What this machine's exp and log make of a few thousand numbers; their last bits differ."""
    grid = [(i + 0.5) / 97 for i in range(4096)]
    return digest_of(f(x) for x in grid for f in (math.log, lambda x: math.exp(21 - x)))


def trained(maker: str, control: str) -> str:
    params = [nn.Parameter(fractions(shape, i)) for i, shape in enumerate(SHAPES)]
    optimizer = MAKERS[maker](params, CONTROLS[control])
    for step in range(STEPS):
        for i, param in enumerate(params):
            pull = param.detach() - fractions(param.shape, 100 + i)
            # The second tensor has no gradient now and then.
            skipped = i == 1 and step % 5 == 3
            param.grad = None if skipped else pull + fractions(param.shape, 1000 + 10 * step + i)
        optimizer.observe(loss_of(step))
        optimizer.step()
    states = [x for state in saved_states(optimizer).values() for _, x in sorted(state.items())]
    memory = rank_jobs_digests.in_layout_3(optimizer._controller.memory)
    known = rank_jobs_digests.known_of(optimizer)
    return digest_of([*params, *states, memory, *known])


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("maker", MAKERS)
def test_a_run_keeps_its_bits(maker: str, control: str) -> None:
    if libm() != LIBM:
        pytest.skip("this machine's libm rounds exp or log otherwise than the digests' did")
    got = trained(maker, control)
    assert got == DIGESTS[maker, control], f"the digest is now {got!r}"


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("wrapper", ["DDP", "FSDP2"])
def test_a_run_on_two_ranks_keeps_its_bits(
    wrapper: str, maker: str, control: str, crew: Crew
) -> None:
    if libm() != LIBM:
        pytest.skip("this machine's libm rounds exp or log otherwise than the digests' did")
    values = [fractions(shape, i) for i, shape in enumerate(SHAPES[1:])]
    make = partial(made, maker, control)
    arguments = (wrapper, make, values, fractions, loss_of, STEPS_ON_RANKS)
    ranks = crew.run(2, rank_jobs_digests.train, *arguments)
    found = {digest_of(items) for items in ranks}
    assert found == ON_RANKS[wrapper, maker, control], f"the digests are now {sorted(found)}"


def test_no_two_runs_are_alike() -> None:
    assert len(set(DIGESTS.values())) == len(DIGESTS)
    assert set(DIGESTS) == {(maker, control) for maker in MAKERS for control in CONTROLS}
