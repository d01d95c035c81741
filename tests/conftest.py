"""Settings for every test: a cache of its own, small shapes, no word from the user's environment."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    """Neither read nor write the user's cache; commands started by tests inherit it."""
    os.environ["JAXGPT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
