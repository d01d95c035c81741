"""The links, headings, paths, modules, configs and fields that the documents name exist. Some old words do not occur."""

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

from jaxgpt.config import default_config

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    path for pattern in ("*.md", "docs/*.md", "experiments/*.md") for path in sorted(ROOT.glob(pattern))
]
CODE = [
    path for room in ("jaxgpt", "experiments", "configs") for path in sorted(ROOT.glob(f"{room}/**/*.py"))
]
OLD_WORDS = ("mend", "mended", "whereof", "thereof")


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", path.read_text()):
        if target.startswith("http"):
            continue
        found = path.parent / target if target else path
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found.read_text()), anchor


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_name_what_there_is(path):
    text = path.read_text()
    for module in re.findall(r"python -m ((?:jaxgpt|experiments)[\w.]*\w)", text):
        assert importlib.util.find_spec(module) is not None, module
    for config in re.findall(r"(?<![\w/])configs/[\w/]+\.py", text):
        assert (ROOT / config).exists(), config
    fields = default_config()
    for name in re.findall(r"--config\.([a-z_.0-9]+)=", text):
        if name != "model.d_modle":  # the example of a mistake
            holder = fields
            for part in name.split("."):
                assert part in holder, name
                holder = holder[part]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_and_imports_name_what_there_is(path):
    text = path.read_text()
    for named in re.findall(r"(?<![\w/.])(?:jaxgpt|tests|experiments|configs|docs)/[\w/.]*\w", text):
        if path.name == "CHANGELOG.md" or named.endswith(
            (".npz", ".log")
        ):  # the changelog names old paths too
            continue
        assert (ROOT / named).exists(), named
    for module, names in re.findall(r"^from (jaxgpt[\w.]*) import ([\w, ]+)$", text, re.M):
        for name in names.split(", "):
            found = importlib.import_module(module)
            assert hasattr(found, name) or importlib.util.find_spec(f"{module}.{name}"), f"{module}.{name}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 250


def lines_of(*paths: str) -> int:
    return sum(len(p.read_text("utf-8").splitlines()) for path in paths for p in ROOT.glob(f"jaxgpt/{path}"))


def test_the_readme_is_right_about_the_size_of_the_code():
    text = " ".join((ROOT / "README.md").read_text().split())
    core = lines_of(*(f"{room}/*.py" for room in ("config", "common", "model", "data", "training")))
    heart = lines_of(
        "model/gpt.py", "model/attention.py", "model/layers.py", "training/steps.py", "training/loop.py"
    )
    for pattern, lines in (
        (r"the core: about ([\d,]+) lines", core),
        (r"steps and loop, about ([\d,]+) lines", heart),
    ):
        said = int(re.search(pattern, text)[1].replace(",", ""))
        assert abs(said - lines) <= 0.1 * lines


def test_no_old_words():
    words = re.compile(rf"\b(?:{'|'.join(OLD_WORDS)})\b", re.I)
    assert not [
        (str(path), found) for path in DOCUMENTS + CODE for found in words.findall(path.read_text("utf-8"))
    ]
