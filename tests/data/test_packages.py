"""Packages are found without importing them; a missing one says what to install."""

import sys
from pathlib import Path

import pytest

from jaxgpt.config import UserError
from jaxgpt.data.packages import find_package
from tests.errors import one_line


def test_a_package_is_found_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "kept_texts"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_package("kept_texts", "the text", "kept-texts") == Path(package)
    assert "kept_texts" not in sys.modules


@pytest.mark.parametrize("instead", ["", "give a file"])
def test_a_missing_package_names_what_to_install(instead):
    with pytest.raises(UserError) as error:
        find_package("no_such_package", "the text", "no-such-package", instead)
    message = one_line(error)
    assert message.startswith("the text is read from the package no_such_package, which is not installed: ")
    assert message.endswith("pip install no-such-package" + (f", or {instead}" if instead else ""))
