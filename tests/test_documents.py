"""What the documents name is there: links, headings, modules, configs, fields."""

import importlib.util
import re
from pathlib import Path

import pytest

from jaxgpt.config import default_config

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(ROOT.glob("experiments/*.md")),
]


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
