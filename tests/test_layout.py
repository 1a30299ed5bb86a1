"""The code is the house that the design draws: what each room may import, and what stands where."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# The design's import table. A room may import the ones named here, and those only; "kernels" is
# the package of kernels, "operators" the compiled module. `control` is a record without imports,
# which the rooms hand on. Names that only a type checker reads are no imports.
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": {"adamw", "backends", "control", "lion", "sgd", "version"},
    "version": set(),
    "control": set(),
    "algorithms": {"control"},
    "laws": {"control"},
    "observations": {"operators"},
    "controller": {"control", "observations", "operators"},
    "devices": set(),
    "fingerprint": {"distributed"},
    "overlaps": set(),
    "slots": {"codecs", "distributed", "fingerprint"},
    "workspace": {"operators"},
    "tables": {"devices", "fingerprint", "kernels", "overlaps", "workspace"},
    "backends": {"algorithms", "codecs", "kernels", "operators"},
    "codecs": set(),
    "distributed": {"devices", "workspace"},
    "announcements": {"control", "controller"},
    "optimizer": {
        "algorithms",
        "announcements",
        "backends",
        "codecs",
        "control",
        "controller",
        "devices",
        "distributed",
        "fingerprint",
        "slots",
        "tables",
        "workspace",
    },
    "adamw": {"algorithms", "control", "devices", "optimizer", "slots"},
    "lion": {"algorithms", "control", "optimizer"},
    "sgd": {"algorithms", "control", "optimizer"},
    "plots": set(),
    "recording_files": set(),
    "recordings": {"recording_files"},
    "replay": {"control", "laws", "plots", "recording_files", "recordings"},
    "__main__": {"replay"},
}
# What a room may import from outside; every room may use the standard library.
OUTSIDE: dict[str, set[str]] = {
    "algorithms": set(),
    "control": set(),
    "laws": set(),
    "version": set(),
    "plots": {"matplotlib"},
    # What an event file holds, and what protobuf raises where it is damaged.
    "recording_files": {"tensorboard", "google"},
    "recordings": set(),
    "replay": set(),
    "__main__": set(),
    "kernels": {"torch", "triton"},
}
# The integrations' modules, each with what it may import from outside.
INTEGRATIONS: dict[str, set[str]] = {
    "__init__": set(),
    "steering": {"torch"},
    "huggingface": {"torch", "transformers"},
    "accelerate": {"torch", "accelerate"},
    "lightning": {"torch", "lightning", "pytorch_lightning"},
}
BANNED_EVERYWHERE = {r"triton\.autotune": "an in-place kernel cannot be tuned by running it twice"}
# Reading a device's number on the host waits for the device; these are where that is meant.
MAY_WAIT = {"announcements.py": 2, "controller.py": 1, "reference.py": 1}


def modules(package: Path) -> dict[str, ast.Module]:
    """A package's modules; a package in it that the import table has is one room."""
    found = {p.stem: ast.parse(p.read_text(), str(p)) for p in sorted(package.glob("*.py"))}
    for room in sorted(package.glob("*/__init__.py")):
        if room.parent.name in MAY_IMPORT:
            texts = [p.read_text() for p in sorted(room.parent.glob("*.py"))]
            body = [node for text in texts for node in ast.parse(text).body]
            found[room.parent.name] = ast.Module(body, type_ignores=[])
    assert found, f"no modules in {package}"
    return found


def walk_running(node: ast.AST) -> Iterator[ast.AST]:
    """Everything below a node but the bodies of `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from walk_running(child)


def imported(tree: ast.Module) -> set[str]:
    """Dotted names of everything a module imports, at any depth of its code."""
    names: set[str] = set()
    for node in walk_running(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute in this project"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith(
            "torch.ops.adaptiverl"
        ):
            names.add("operators")
    return names


def rooms(names: set[str], package: str) -> set[str]:
    """The rooms of ours among imported names."""
    found = {"operators"} if "operators" in names else set()
    for name in names:
        parts = name.split(".")
        if parts[0] == "adaptiverl" and len(parts) > 1:
            # `from adaptiverl import laws` and `from adaptiverl.laws import State`: the same room.
            found.add("operators" if parts[1] == "_C" else parts[1])
    return found - {package}


def outsiders(names: set[str]) -> set[str]:
    tops = {name.split(".")[0] for name in names} - {"adaptiverl", "operators"}
    return {top for top in tops if top not in sys.stdlib_module_names and top != "__future__"}


@pytest.mark.parametrize("room", sorted(modules(ROOT / "adaptiverl")))
def test_a_room_imports_only_what_the_design_lets_it(room: str) -> None:
    assert room in MAY_IMPORT, f"adaptiverl/{room}.py is a room that the import table does not know"
    names = imported(modules(ROOT / "adaptiverl")[room])
    assert rooms(names, room) <= MAY_IMPORT[room]
    assert outsiders(names) <= OUTSIDE.get(room, {"torch"})


@pytest.mark.parametrize("module", sorted(modules(ROOT / "adaptiverl/integrations")))
def test_integrations_import_public_names_and_their_own_framework(module: str) -> None:
    names = imported(modules(ROOT / "adaptiverl/integrations")[module])
    exports = modules(ROOT / "adaptiverl")["__init__"]
    public = {name.split(".")[-1] for name in imported(exports)}
    assert rooms(names, "integrations") <= public
    assert outsiders(names) <= INTEGRATIONS[module]


@pytest.mark.parametrize("module", sorted(modules(ROOT / "kernels")))
def test_kernels_import_torch_and_triton_only(module: str) -> None:
    names = imported(modules(ROOT / "kernels")[module])
    assert outsiders(names) <= OUTSIDE["kernels"]
    assert rooms(names, "kernels") == set()


def test_the_oracle_imports_nothing_of_ours() -> None:
    names = imported(ast.parse((ROOT / "tests/oracle.py").read_text()))
    assert outsiders(names) <= {"numpy"}
    assert rooms(names, "") == set()


def test_only_backends_ask_for_cuda() -> None:
    for path in sorted((ROOT / "adaptiverl").rglob("*.py")):
        if path.parent.name != "backends":
            assert "is_available" not in path.read_text(), path


def test_banned_tokens() -> None:
    folders = ("adaptiverl", "adaptiverl/backends", "adaptiverl/integrations", "kernels")
    for path in sorted(p for folder in folders for p in (ROOT / folder).glob("*.py")):
        text = path.read_text()
        for pattern, reason in BANNED_EVERYWHERE.items():
            assert not re.search(pattern, text), f"{path.name}: {pattern} ({reason})"
        waits = len(re.findall(r"\.item\(", text))
        assert waits <= MAY_WAIT.get(path.name, 0), (
            f"{path.name} waits for the device {waits} times"
        )


def test_the_check_sees_a_forbidden_import() -> None:
    names = imported(ast.parse("from adaptiverl.optimizer import AdaptiveOptimizer\nimport numpy"))
    assert not rooms(names, "laws") <= MAY_IMPORT["laws"]
    assert outsiders(names) == {"numpy"}


def test_the_table_names_only_rooms_that_exist() -> None:
    assert set(MAY_IMPORT) == set(modules(ROOT / "adaptiverl"))
    assert set(INTEGRATIONS) == set(modules(ROOT / "adaptiverl/integrations"))
