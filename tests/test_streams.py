"""Text files name their encoding, and only commands print: a room says what it has to say with `common.say`."""

import ast
from pathlib import Path

import pytest

import jaxgpt

PACKAGE = Path(jaxgpt.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def calls(path: Path) -> list[tuple[int, str, ast.Call]]:
    """The calls in a file: line, the name that is called, the call."""
    found = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
    return [(node.lineno, getattr(node.func, "attr", getattr(node.func, "id", "")), node) for node in found]


def lacks_encoding(name: str, call: ast.Call) -> bool:
    """Whether a call opens a text without naming its encoding."""
    texts = [one.value for one in call.args if isinstance(one, ast.Constant)]
    if any(keyword.arg in ("encoding", None) for keyword in call.keywords) or "utf-8" in texts:
        return False
    if name in ("read_text", "write_text"):
        return True
    modes = {text for text in texts if isinstance(text, str) and text.strip("rwaxbt+") == ""}
    modes |= {k.value.value for k in call.keywords if k.arg == "mode" and isinstance(k.value, ast.Constant)}
    if name == "open":
        opens_a_file = isinstance(call.func, ast.Name) or bool(modes)
        return opens_a_file and not any("b" in mode for mode in modes)
    return name in ("run", "Popen", "check_output") and any(
        k.arg in ("text", "encoding") for k in call.keywords
    )


@pytest.mark.parametrize(
    ("code", "lacks"),
    [
        ("open(p)", True), ("open(p, 'w')", True), ("p.open('a')", True), ("p.read_text()", True),
        ("p.write_text(t)", True), ("open(p, 'rb')", False), ("p.open('wb')", False), ("sweep.open()", False),
        ("p.read_text('utf-8')", False), ("open(p, encoding='utf-8')", False), ("subprocess.run(c, text=True)", True),
    ],
)  # fmt: skip
def test_what_lacks_an_encoding(code, lacks):
    call = ast.parse(code, mode="eval").body
    assert lacks_encoding(getattr(call.func, "attr", getattr(call.func, "id", "")), call) == lacks


def test_every_text_file_names_its_encoding():
    """The default is the system's: ASCII under LC_ALL=C, and another on Windows."""
    found = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in FILES
        for line, name, call in calls(path)
        if lacks_encoding(name, call)
    ]
    assert found == []


def test_only_commands_print():
    """A room may run inside of a training loop, which a closed pipe must not stop."""
    allowed = {Path("common/say.py"), Path("common/cli.py")}  # --help_config prints and exits
    found = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in FILES
        for line, name, _ in calls(path)
        if name == "print" and path.parent != PACKAGE and path.relative_to(PACKAGE) not in allowed
    ]
    assert found == []
