"""The house's one rule: a room imports only from the rooms below it, and commands from rooms."""

import ast
from pathlib import Path

import jaxgpt

PACKAGE = Path(jaxgpt.__file__).parent
TESTS = Path(__file__).parent
# From the ground up. A folder of jaxgpt is a room, a file at its top is a command.
ROOMS = ("config", "common", "model", "data", "runs", "vectors", "training", "inspect", "sweeps")
# Tests of several modules of a room together.
OF_THE_ROOM = ["model/test_derivatives.py", "model/test_variants.py"]


def imported(path: Path) -> set[str]:
    """The rooms and commands that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "jaxgpt":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxgpt."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("jaxgpt.")}
    return found


def test_every_folder_is_a_room():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == set(ROOMS)


def test_a_room_imports_only_from_rooms_below_it():
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0] if path.parent != PACKAGE else None
        allowed = set(ROOMS[: ROOMS.index(room) + 1] if room else ROOMS)
        wrong += [f"{path.relative_to(PACKAGE)} imports {other}" for other in imported(path) - allowed]
    assert not wrong


def test_no_module_is_longer_than_450_lines():
    lengths = {path.name: len(path.read_text("utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {name: n for name, n in lengths.items() if n > 450} == {}


def test_tests_are_where_their_module_is():
    """tests/ROOM/test_MODULE.py tests jaxgpt/ROOM/MODULE.py, or a folder of that name; a subject may follow: test_MODULE_SUBJECT.py."""
    lost = []
    for path in TESTS.glob("*/test_*.py"):
        words = path.stem.removeprefix("test_").split("_")
        names = ["_".join(words[: n + 1]) for n in range(len(words))]
        room = PACKAGE / path.parent.name
        if not any((room / f"{name}.py").exists() or (room / name).is_dir() for name in names):
            lost.append(str(path.relative_to(TESTS)))
    assert sorted(lost) == OF_THE_ROOM
