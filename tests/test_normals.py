"""The noise: Philox's words bit for bit, the normals made of them, and that they are normal."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
import torch
from numpy.typing import NDArray
from pass_cases import BLOCK, PATHS, SEED, STEP
from tolerances import assert_close
from torch import Tensor

from adaptiverl.kernels import normals

# Random123's known answers: counter, key, output.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def compiled_words(seed: int, index: int, step: int, quad: int, quads: int) -> NDArray[np.uint32]:
    out = torch.zeros(quads, 4, dtype=torch.int32)
    signed = quad - 2**64 if quad >= 2**63 else quad
    torch.ops.adaptiverl.philox_words_(seed & 0xFFFFFFFF, seed >> 32, index, step, signed, out)
    return out.numpy().view(np.uint32)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter: Any, key: Any, words: Any) -> None:
    assert tuple(int(w) for w in oracle.philox4x32(*counter, *key)) == words
    tensors = [torch.tensor(x) for x in counter], [torch.tensor(x) for x in key]
    assert tuple(int(w) for w in normals.philox4x32(*tensors)) == words
    quad, seed = counter[0] + (counter[1] << 32), key[0] + (key[1] << 32)
    compiled = compiled_words(seed, counter[2], counter[3], quad, 1)
    assert tuple(int(w) for w in compiled[0]) == words


@pytest.mark.parametrize("seed", [0, 5, SEED, 2**64 - 1])
@pytest.mark.parametrize(("index", "step"), [(0, 1), (77, 123456), (2**32 - 1, 2**32 + 9)])
@pytest.mark.parametrize("quad", [0, 3, 2**32 - 40, 2**40 + 5])
def test_words_are_the_oracles(seed: int, index: int, step: int, quad: int) -> None:
    """Bit for bit, over the carry into the counter's second word and at any length."""
    for quads in (1, 15, 100, 700):
        elements = 4 * (quad + np.arange(quads, dtype=np.int64))
        expected = np.stack(oracle.noise_words(seed, index, step, elements), axis=1)
        compiled = compiled_words(seed, index, step, quad, quads)
        np.testing.assert_array_equal(compiled, expected)


def compiled_normals(seed: int, index: int, step: int, offset: int, n: int) -> Tensor:
    out = torch.full((n,), torch.nan)
    torch.ops.adaptiverl.normals_(seed & 0xFFFFFFFF, seed >> 32, index, step, offset, out)
    return out


def reference_normals(seed: int, index: int, step: int, offset: int, n: int) -> Tensor:
    key = (torch.tensor(seed & 0xFFFFFFFF), torch.tensor(seed >> 32))
    return normals.normals(key, index, torch.tensor(step), offset, n, torch.float32)


NORMALS = {"compiled": compiled_normals, "reference": reference_normals}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4, 1021, 2**34 - 7])
def test_normals_are_the_oracles(path: str, offset: int) -> None:
    for n in (0, 1, 2, 3, 4, 5, 6, 7, BLOCK - 1, BLOCK, BLOCK + 1, 50_000):
        actual = NORMALS[path](SEED, 9, STEP, offset, n)
        expected = oracle.noise(SEED, 9, STEP, offset + np.arange(n, dtype=np.int64))
        assert_close(actual, expected, "normals", scale=1.0)


def test_extreme_words() -> None:
    """The largest u is 1 (radius 0), the smallest 2^-24 (radius 5.77): both finite."""
    top, zero = torch.tensor(2**32 - 1), torch.tensor(0)
    for angle in (zero, top, torch.tensor(2**31)):
        even, odd = normals.box_muller(top, angle, torch.float32)
        assert (even.abs().item(), odd.abs().item()) == (0.0, 0.0)
    even, odd = normals.box_muller(zero, zero, torch.float32)
    assert_close(even, np.sqrt(48 * np.log(2)), "normals")
    assert odd.item() == 0.0
    # Half a turn, and the least that the angle's sign can be.
    assert normals.box_muller(zero, torch.tensor(2**31), torch.float32)[0] < -5.7
    assert normals.box_muller(zero, top, torch.float32)[1] < 0


@pytest.mark.parametrize("path", PATHS)
def test_normals_are_normal_and_independent(path: str) -> None:
    n = 400_000
    sigma = n**-0.5
    first = NORMALS[path](1, 0, 1, 0, n).double().numpy()
    assert abs(first.mean()) < 5 * sigma
    assert abs((first**2).mean() - 1) < 5 * sigma * 2**0.5
    assert abs((first**3).mean()) < 5 * sigma * 15**0.5
    assert abs((first**4).mean() - 3) < 5 * sigma * 96**0.5
    assert 4.0 < np.abs(first).max() < 5.78
    # Lanes of a block, neighbours, and the same place under another key have nothing in common.
    for lag in (1, 2, 3, 4, 1024):
        assert abs((first[:-lag] * first[lag:]).mean()) < 5 * sigma
    for other in ((2, 0, 1, 0), (1 + 2**32, 0, 1, 0), (1, 1, 1, 0), (1, 0, 2, 0)):
        second = NORMALS[path](*other, n).double().numpy()
        assert not (first == second).all()
        assert abs((first * second).mean()) < 5 * sigma
        assert abs((first**2 * second**2).mean() - 1) < 5 * sigma * 8**0.5
