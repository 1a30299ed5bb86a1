"""`Weights`: the numbers of f_φ, what the distilled law asks, and the file that ships with them."""

from __future__ import annotations

import itertools
import json
import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adaptiverl.control import Control

VERSION = 1
FORMAT = "adaptiverl f_phi"
FEATURES = (
    *("loss_direction", "plateau", "variance_ratio", "alignment", "alignment_mean"),
    *("run", "held", "since_hold"),
)
"""What f_φ is given, in order (method.md#distilled)"""
OUTPUTS = ("log_lr", "logit_momentum", "log_noise")
"""What it says: how far each knob is to move in a whole run, at this pace"""
WIDEST, DEEPEST = 32, 2
LARGEST = 1e6
"""No weight is larger, so that no sum overflows"""
SHIPPED = Path(__file__).with_name("distilled.json")


@dataclass(frozen=True, repr=False)
class Weights:
    """f_φ: layers with x/(1 + |x|) between them, the last one linear; none hidden: a linear map.

    Attributes:
        hidden: Units of each hidden layer: at most 2 of at most 32.
        numbers: Layer by layer, unit by unit: a weight for each input, then the bias.

    Raises:
        ValueError: Layers that there cannot be, too many or too few numbers, one out of range.
        TypeError: Layers that are no tuple of whole numbers.
    """

    hidden: tuple[int, ...]
    numbers: tuple[float, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.hidden, tuple) or any(type(n) is not int for n in self.hidden):
            raise TypeError(f"hidden must be a tuple of whole numbers, got {self.hidden!r}")
        if len(self.hidden) > DEEPEST or not all(1 <= n <= WIDEST for n in self.hidden):
            raise ValueError(
                f"hidden must be at most {DEEPEST} layers of 1 to {WIDEST} units, got {self.hidden}"
            )
        expected = count_of(self.hidden)
        if len(self.numbers) != expected:
            raise ValueError(
                f"numbers must be {expected} for hidden={self.hidden}, got {len(self.numbers)}"
            )
        wrong = [x for x in self.numbers if not abs(x) <= LARGEST]
        if wrong:
            raise ValueError(f"numbers must be within ±{LARGEST:g}, got {wrong[0]!r}")

    def __repr__(self) -> str:
        return f"Weights(hidden={self.hidden}, {len(self.numbers)} numbers)"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write them as JSON, with a version and a checksum."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "features": FEATURES,
            "outputs": OUTPUTS,
            "hidden": self.hidden,
            "checksum": _checksum(self.numbers),
            "numbers": self.numbers,
        }
        Path(path).write_text(json.dumps(content) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Weights:
        """Read what `save` wrote.

        Raises:
            ValueError: Something else, one of another version, or a damaged one.
            OSError: The file cannot be read.
        """
        try:
            content: Any = json.loads(Path(path).read_text(encoding="utf-8"))
            found = content["format"], content["version"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _refusal(path, f"it is no such file ({error!r})") from None
        if found != (FORMAT, VERSION):
            raise _refusal(path, f"it is {found[0]!r}, version {found[1]!r}")
        try:
            asked = tuple(content["features"]), tuple(content["outputs"])
            hidden = tuple(content["hidden"])
            numbers = tuple(float(x) for x in content["numbers"])
            checksum = content["checksum"]
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise _refusal(path, f"it is damaged ({error!r})") from None
        if asked != (FEATURES, OUTPUTS):
            raise _refusal(path, f"it is for the features {asked[0]} and the outputs {asked[1]}")
        if checksum != _checksum(numbers):
            raise _refusal(path, f"its checksum is {checksum!r}, not {_checksum(numbers)}")
        try:
            return cls(hidden, numbers)
        except (ValueError, TypeError) as error:
            raise _refusal(path, str(error)) from None


def count_of(hidden: tuple[int, ...]) -> int:
    """How many numbers there are for such layers."""
    sizes = (len(FEATURES), *hidden, len(OUTPUTS))
    return sum((before + 1) * after for before, after in itertools.pairwise(sizes))


def complete_distilled(control: Control) -> None:
    """Check a new control of law ``"distilled"``, and put its weights in the place of their file.

    Raises:
        ValueError: No horizon; a file that is none, of another version, or damaged.
        TypeError: Weights that are no path.
        OSError: The file cannot be read.
    """
    if control.horizon is None:
        raise ValueError(
            "Control.horizon must be a whole number of steps or 'auto' with law='distilled', got "
            "None: that law asks how far the run is. Use Control.distilled(horizon=10_000)"
        )
    given: Any = SHIPPED if control.weights is None else control.weights
    if isinstance(given, Weights):
        return
    if not isinstance(given, (str, os.PathLike)):
        raise TypeError(
            f"Control.weights must be a path, or None for those that ship, got {given!r} of type "
            f"{type(given).__name__}"
        )
    object.__setattr__(control, "weights", Weights.load(given))


def _checksum(numbers: tuple[float, ...]) -> int:
    finite = [x if math.isfinite(x) else 0.0 for x in numbers]
    return zlib.crc32(struct.pack(f"<{len(finite)}d", *finite))


def _refusal(path: Any, found: str) -> ValueError:
    return ValueError(
        f"{os.fspath(path)} must be weights of the distilled law, {FORMAT!r} of version {VERSION}: "
        f"{found}. Leave weights out for those that ship, or fit some with "
        "adaptiverl.hindsight.distill"
    )
