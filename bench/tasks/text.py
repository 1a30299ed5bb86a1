"""Text to learn from: Python's own sources, or a file of the user's, as a tensor of characters."""

import codecs
import hashlib
import platform
import sysconfig
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.requests import RequestError

# 4 MB is more than any run of the demo reads, and encodes in a fraction of a second.
MAX_BYTES = 4_000_000
# Rarer characters share one symbol, so that a book in any script fits a small output layer.
MAX_VOCABULARY = 256
REPLACEMENT = "\ufffd"
HELD_OUT_FRACTION = 0.1
# The held-out tail then spans at least four contexts, and the training part thirty-six.
MIN_CONTEXTS = 40


@dataclass(frozen=True)
class Text:
    source: str  # where it came from, for the report
    train: Tensor  # int64 (n,), the first nine tenths
    held_out: Tensor  # int64 (m,), the rest; never trained on
    vocabulary: str  # the characters, in order of their index
    replaced: int  # how many characters were too rare for the vocabulary
    sha256: str  # of the text in UTF-8

    def described(self) -> dict[str, str | int]:
        sizes = {"train_characters": len(self.train), "held_out_characters": len(self.held_out)}
        names = ("source", "sha256", "vocabulary", "replaced")
        return {name: getattr(self, name) for name in names} | sizes


def load_text(path: str | None, context: int) -> Text:
    source, content = _standard_library() if path is None else (path, _read(path))
    least = MIN_CONTEXTS * context
    if not content.strip():
        raise _bad(source, f"is empty; give a text of {least:,} characters or more")
    if len(content) < least:
        raise _bad(
            source,
            f"is too short: {len(content):,} characters, and a context of {context} needs at "
            f"least {least:,}",
        )
    return encode(source, content)


def _bad(source: str, problem: str) -> RequestError:
    return RequestError(f"TEXT={source} {problem}")


def encode(source: str, content: str) -> Text:
    """Number the characters, the rarest beyond the vocabulary as one, and split off the tail."""
    counts = Counter(content)
    if len(counts) < 2:
        raise _bad(source, "repeats one character; there is nothing to learn in it")
    common = sorted(counts, key=lambda c: (-counts[c], c))
    if len(common) > MAX_VOCABULARY:
        common = [c for c in common if c != REPLACEMENT][: MAX_VOCABULARY - 1]
        common.append(REPLACEMENT)
    vocabulary = sorted(common)
    codes = np.frombuffer(content.encode("utf-32-le"), dtype=np.uint32)
    table = np.full(int(codes.max()) + 1, -1, dtype=np.int64)
    for index, character in enumerate(vocabulary):
        if ord(character) < len(table):
            table[ord(character)] = index
    indices = table[codes]
    rare = indices < 0
    if rare.any():
        indices[rare] = vocabulary.index(REPLACEMENT)
    split = len(indices) - max(1, int(len(indices) * HELD_OUT_FRACTION))
    characters = torch.from_numpy(indices)
    return Text(
        source=source,
        train=characters[:split],
        held_out=characters[split:],
        vocabulary="".join(vocabulary),
        replaced=int(rare.sum()),
        sha256=hashlib.sha256(content.encode()).hexdigest(),
    )


def _standard_library() -> tuple[str, str]:
    folder = Path(sysconfig.get_path("stdlib"))
    parts: list[str] = []
    for module in sorted(folder.glob("*.py")):
        if sum(map(len, parts)) >= MAX_BYTES:
            break
        parts.append(module.read_text(encoding="utf-8", errors="replace"))
    if not parts:
        raise RequestError(
            f"this Python keeps no sources in {folder}; give a text of your own: TEXT=path"
        )
    name = f"Python {platform.python_version()}'s standard library, {len(parts)} modules"
    return name, "".join(parts)[:MAX_BYTES]


def _read(path: str) -> str:
    file = Path(path).expanduser()
    if not file.exists():
        raise _bad(path, "does not exist; give the path of a text file")
    if not file.is_file():
        raise _bad(path, "is not a file; give the path of a text file")
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
        # Not final where the cap cut the file: the cut may fall inside a character.
        decoder = codecs.getincrementaldecoder("utf-8")()
        content = decoder.decode(raw[:MAX_BYTES], final=len(raw) <= MAX_BYTES)
    except OSError as error:
        raise _bad(path, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        where = f"byte 0x{raw[error.start]:02x} at offset {error.start}"
        raise _bad(path, f"is not text: {where} is not UTF-8; convert it to UTF-8 first") from None
    if "\0" in content:
        where = f"it holds a zero byte at offset {raw.index(0)}"
        raise _bad(path, f"is not text: {where}; give a UTF-8 text file")
    return content.removeprefix("\ufeff").replace("\r\n", "\n")
