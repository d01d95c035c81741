"""Settings for every test: a cache of its own, small shapes, no word from the user's environment."""

import os
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
