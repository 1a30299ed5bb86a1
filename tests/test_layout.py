"""The code is the house that the design draws: what each room may import, and what stands where."""

from __future__ import annotations

import ast
import keyword
import re
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# The design's floors, the lowest first: a room imports from lower floors, and from its own in no
# circle. A room is a module of the package or a sub-package; "kernels" is the package of kernels,
# "operators" the compiled module. Names that only a type checker reads are no imports.
FLOORS: tuple[set[str], ...] = (
    {"version", "kernels", "operators", "arguments", "commands"},
    {"arms", "control", "fields", "kinds", "layout", "limits", "terms", "devices", "weights"},
    {"law"},
    {"observations", "decision", "trace", "migrations", "controller"},
    {
        *("algorithms", "announcements", "backends", "codecs", "decay", "distributed", "log"),
        *("ranks", "step"),
    },
    {
        "soundness",
        "checkpoint",
        "controlled",
        "footprint",
        "hooks",
        "horizon",
        "pulse",
        "readings",
        "release",
        "optimizer",
    },
    {"adamw", "sgd", "lion", "steering"},
    {"__init__"},
    {"integrations"},
)
# The tools beside the house, and what they may use of it.
TOOLS: dict[str, set[str]] = {
    "plots": set(),
    "replay": {"commands", "control", "law", "layout", "limits", "plots", "version"},
    "probing": {"commands", "control", "plots", "steering"},
    "hindsight": {"arguments", "commands", "control", "kernels", "law", "layout", "weights"},
    "__main__": {"hindsight", "probing", "replay"},
}
# What a room may import from outside, where that is not torch; the standard library may all use.
OUTSIDE: dict[str, set[str]] = {
    "algorithms": set(),
    "arms": set(),
    "commands": set(),
    "control": set(),
    "decay": set(),
    "fields": set(),
    "kinds": set(),
    "layout": set(),
    "law": set(),
    "limits": set(),
    "terms": set(),
    "version": set(),
    "weights": set(),
    "plots": {"matplotlib"},
    "replay": set(),
    # What an event file holds, and what protobuf raises where it is damaged.
    "replay.event_files": {"tensorboard", "google"},
    "__main__": set(),
    "kernels": {"torch", "triton"},
    "integrations.__init__": set(),
    "integrations.huggingface": {"torch", "transformers"},
    "integrations.accelerate": {"torch", "accelerate"},
    "integrations.stable_baselines3": {"stable_baselines3"},
    "integrations.timm": {"timm"},
    "integrations.torchtitan": {"torch", "torchtitan"},
    "integrations.axolotl": {"axolotl"},
    "integrations.axolotl_args": {"pydantic"},
    "integrations.lightning": {"torch", "lightning", "pytorch_lightning"},
}
BANNED_EVERYWHERE = {r"triton\.autotune": "an in-place kernel cannot be tuned by running it twice"}
# Reading a device's number on the host waits for the device; these are where that is meant.
MAY_WAIT = {"log": 1, "migrations": 1, "backends": 1}
LONGEST_FILE, LONGEST_MEDIAN = 400, 150


def files() -> dict[str, Path]:
    """Every module of the package by its dotted name in it, the kernels apart."""
    package = ROOT / "adaptiverl"
    found = sorted(package.rglob("*.py"))
    return {".".join(p.relative_to(package).with_suffix("").parts): p for p in found}


FILES = files()
TREES = {name: ast.parse(path.read_text(), str(path)) for name, path in FILES.items()}
KERNELS = {
    p.stem: ast.parse(p.read_text(), str(p)) for p in sorted((ROOT / "kernels").glob("*.py"))
}


def room_of(module: str) -> str:
    return module.split(".")[0]


ROOMS = {*map(room_of, FILES), "kernels", "operators"}


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


def ours(names: set[str]) -> set[str]:
    """Imported names of ours, dotted and without the package's."""
    found = {"operators"} if "operators" in names else set()
    for name in names:
        top, _, rest = name.partition(".")
        if top == "adaptiverl" and rest:
            found.add("operators" if rest.startswith("_C") else rest)
    return found


def rooms(names: set[str]) -> set[str]:
    """Rooms of ours among imported names; what is no room is a name that `__init__` exports."""
    found = {room_of(name) for name in ours(names)}
    return {room if room in ROOMS else "__init__" for room in found}


def modules_in(names: set[str]) -> set[str]:
    """The modules of the package among imported names: `a.b.c` is of module `a.b` or `a.b.c`."""
    found = set()
    for name in ours(names):
        parts = name.split(".")
        known = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
        found |= {next((k for k in known if k in FILES), f"{known[-1]}.__init__")}
    return found & set(FILES)


def outsiders(names: set[str]) -> set[str]:
    tops = {name.split(".")[0] for name in names} - {"adaptiverl", "operators"}
    return {top for top in tops if top not in sys.stdlib_module_names and top != "__future__"}


def floor_of(room: str) -> int:
    return next(n for n, floor in enumerate(FLOORS) if room in floor)


def may_import(room: str) -> set[str]:
    if room in TOOLS:
        return TOOLS[room] | {room}
    return set().union(*FLOORS[: floor_of(room) + 1])


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Ways round a graph that end where they began, one for each that is found first."""
    found, done = [], set()

    def walk(node: str, way: list[str]) -> None:
        if node in way:
            found.append([*way[way.index(node) :], node])
        elif node not in done:
            for following in sorted(edges.get(node, set())):
                walk(following, [*way, node])
            done.add(node)

    for node in sorted(edges):
        walk(node, [])
    return found


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_go_down(module: str) -> None:
    names, room = imported(TREES[module]), room_of(module)
    assert room in TOOLS or any(room in floor for floor in FLOORS), f"no floor has {module}"
    assert rooms(names) <= may_import(room)
    assert outsiders(names) <= OUTSIDE.get(module, OUTSIDE.get(room, {"torch"}))


@pytest.mark.parametrize("module", sorted(m for m in FILES if m.startswith("law.")))
def test_the_law_reads_control_numbers_and_no_control(module: str) -> None:
    reads_control = {
        "law.numbers": {"arms", "control", "limits", "terms", "weights"},
        "law.replay": {"control"},
    }.get(module, set())
    assert rooms(imported(TREES[module])) <= {"law", "layout"} | reads_control


def test_no_imports_go_in_a_circle() -> None:
    edges = {name: modules_in(imported(tree)) - {name} for name, tree in TREES.items()}
    assert circles(edges) == []
    between: dict[str, set[str]] = {}
    for name, others in edges.items():
        between.setdefault(room_of(name), set()).update(map(room_of, others - {name}))
    assert circles({room: others - {room} for room, others in between.items()}) == []


@pytest.mark.parametrize("module", sorted(m for m in FILES if m.startswith("integrations.")))
def test_integrations_import_public_names(module: str) -> None:
    public = rooms(imported(TREES["__init__"]))
    assert rooms(imported(TREES[module])) <= public | {"__init__", "integrations"}


@pytest.mark.parametrize("module", sorted(FILES))
def test_what_is_private_stays_in_its_module(module: str) -> None:
    names = {name for name in imported(TREES[module]) if name.startswith("adaptiverl.")}
    private = {name for name in names if re.search(r"\._[a-z]", name)}
    assert private <= {"adaptiverl._C"}


def test_files_are_short() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in FILES.items()}
    assert {name: n for name, n in lengths.items() if n > LONGEST_FILE} == {}
    assert statistics.median(lengths.values()) <= LONGEST_MEDIAN


ALIKE_BUT_FOR_DATA = {
    "the algorithms' operators": ["csrc/adamw.cpp", "csrc/sgd.cpp", "csrc/lion.cpp"],
    "the algorithms' kernels": ["kernels/adamw.py", "kernels/sgd.py", "kernels/lion.py"],
    "bench": ["bench/**/*.py"],
}
RUN = 6


def shape_of(source: str) -> list[str]:
    """Its lines that do something, with one name for all, one number and one text."""
    texts = r'"""[\s\S]*?"""|"[^"\n]*"|//[^\n]*|(?m:(#(?!define)|from|import|using)\b.*$)'
    lines = re.sub(texts, "", source).splitlines()
    doing = [line for line in lines if re.search(r"[(\[+*/<>!?.-]", line.replace("->", ""))]
    named = [re.sub(r"\b[A-Za-z_]\w*|\b\d[\w.]*", _name, line) for line in doing]
    # What a command line takes is data, as are fields and decorators.
    return [line.replace(" ", "") for line in named if not re.match(r" *(@|parser.add_arg)", line)]


def _name(found: re.Match[str]) -> str:
    kept = {*keyword.kwlist, "parser", "add_argument", "const", "void", "template", "switch"}
    return found[0] if found[0] in kept else "n"


@pytest.mark.parametrize("family", ALIKE_BUT_FOR_DATA)
def test_what_is_done_alike_is_written_once(family: str) -> None:
    """No six lines stand twice in two files, to the letter or in shape."""
    paths = [path for pattern in ALIKE_BUT_FOR_DATA[family] for path in ROOT.glob(pattern)]
    assert len(paths) >= 3
    seen: dict[tuple[str, ...], Path] = {}
    for path in sorted(paths):
        lines = shape_of(path.read_text())
        for i in range(len(lines) - RUN + 1):
            where = seen.setdefault(tuple(lines[i : i + RUN]), path)
            assert where == path, f"{lines[i : i + RUN]} stands in {where} and in {path}"


@pytest.mark.parametrize("module", sorted(KERNELS))
def test_kernels_import_torch_and_triton_only(module: str) -> None:
    names = imported(KERNELS[module])
    assert outsiders(names) <= OUTSIDE["kernels"]
    assert rooms(names) <= {"kernels"}


def test_the_oracle_imports_nothing_of_ours() -> None:
    names = imported(ast.parse((ROOT / "tests/oracle.py").read_text()))
    assert outsiders(names) <= {"numpy"}
    assert rooms(names) == set()


def test_only_backends_ask_for_cuda() -> None:
    for name, path in FILES.items():
        if room_of(name) != "backends":
            assert "cuda.is_available" not in path.read_text(), name


def test_banned_tokens_and_waits() -> None:
    texts = {name: path.read_text() for name, path in FILES.items()}
    texts |= {f"kernels.{p.stem}": p.read_text() for p in (ROOT / "kernels").glob("*.py")}
    waits: Counter[str] = Counter()
    for name, text in texts.items():
        for pattern, reason in BANNED_EVERYWHERE.items():
            assert not re.search(pattern, text), f"{name}: {pattern} ({reason})"
        waits[room_of(name)] += len(re.findall(r"\.item\(", text))
    assert +waits == MAY_WAIT


def test_the_checks_see_what_is_forbidden() -> None:
    names = imported(ast.parse("from adaptiverl.optimizer import AdaptiveOptimizer\nimport numpy"))
    assert not rooms(names) <= may_import("step")
    assert not rooms(names) <= may_import("control")
    assert outsiders(names) == {"numpy"}
    body = "    a = f(1)\n    g(a.b)\n" * 3
    assert shape_of(body) == shape_of(body.replace("a", "other").replace("1", "0.5"))
    assert shape_of(body) != shape_of(body.replace("g(", "h * g("))
    assert len(shape_of(body)) == RUN
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c", "b"]]
