"""Settings for every test: a cache of its own, small shapes, no word from the user's environment."""

import os
import shutil
import tempfile

import pytest

# Before JAX is imported: neither read nor write the user's cache, and let tests, and the commands that they
# start, share what they compile.
_CACHE = tempfile.TemporaryDirectory(prefix="jaxgpt-tests-")
os.environ["JAXGPT_CACHE"] = _CACHE.name
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(_CACHE.name, "xla")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Tests compile much and compute little: half of LLVM's work is not worth its time here.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"


@pytest.fixture(scope="session", autouse=True)
def _remove_cache():
    yield
    _CACHE.cleanup()


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with text.txt, config.py and run/: 20 steps, saved at 10 and 20."""
    from tests import commands, small_runs  # they import JAX

    here = tmp_path_factory.mktemp("trained")
    small_runs.write_text(here / "text.txt")
    (here / "config.py").write_text(commands.CONFIG)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(here)
        assert commands.execute(monkeypatch, commands.RUN) == 0
    return here


@pytest.fixture(scope="session")
def report_payload(trained):
    """The numbers of that run's report, which its page is made of. Not to be changed."""
    from tests import report_pages

    return report_pages.small_payload(trained)


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """A copy of that folder, which is the working directory."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path
