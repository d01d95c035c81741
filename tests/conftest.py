"""Settings for every test: a cache of its own, small shapes, no word from the user's environment."""

import collections
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxgpt.common import jax_settings

# Before JAX is imported: neither read nor write the user's cache. One folder is shared by the tests, the workers of
# pytest-xdist, which inherit this environment, and the commands that tests start.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _FOLDER = tempfile.TemporaryDirectory(prefix="jaxgpt-tests-")  # removed when this process ends
    os.environ["JAXGPT_CACHE"] = _FOLDER.name
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(_FOLDER.name, "xla")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    # Tests compile much and compute little: half of LLVM's work is not worth its time here.
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
    # Where only the compiler of a GPU is installed, JAX would try to start it as a device, and print a traceback.
    if jax_settings.compilers_alone():
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
jax_settings.skip_compilers()
SHARED = Path(os.environ["JAXGPT_CACHE"]) / "shared"


def pytest_addoption(parser):
    parser.addoption(
        "--browser",
        choices=("auto", "required"),
        default="auto",
        help="tests in a real browser: skipped where there is none (auto), or an error there (required)",
    )


# Most of the time is theirs: many compilations, and processes of their own.
LONGEST = {
    f"test_{name}.py" for name in ("loop_resume", "sweep", "processes", "sharding", "launchers", "errors")
}


def pytest_collection_modifyitems(items):
    """The longest files first, so that the workers end at about the same time."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.hookimpl(trylast=True)  # below the durations
def pytest_terminal_summary(terminalreporter):
    """One line for each reason why tests were skipped."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = collections.Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    for reason, count in reasons.items():
        terminalreporter.write_line(f"{count} skipped: {reason}")


@pytest.fixture(scope="session")
def chromium(request):
    """One browser for all tests of a worker."""
    from tests import browser

    driver = browser.start(required=request.config.getoption("browser") == "required")
    yield browser.Browser(driver)
    driver.quit()


def shared_folder(name: str, fill: Callable[[Path], None]) -> Path:
    """A folder for all workers, filled once by the first that asks for it. Not to be changed."""
    from jaxgpt.common import files

    folder, filled = SHARED / name, SHARED / f"{name}.filled"
    SHARED.mkdir(exist_ok=True)
    with (SHARED / f"{name}.lock").open("w") as file:
        while True:
            try:
                files.lock(file)
                break
            except BlockingIOError:  # another worker fills it
                time.sleep(0.1)
        if not filled.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            fill(folder)
            filled.touch()
    return folder


@pytest.fixture(scope="session")
def trained():
    """A folder with text.txt, config.py and run/: 20 steps, saved at 10 and 20. Not to be changed."""
    from tests import commands, small_runs  # they import JAX

    def fill(folder: Path) -> None:
        small_runs.write_text(folder / "text.txt")
        (folder / "config.py").write_text(commands.CONFIG)
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.chdir(folder)
            assert commands.execute(monkeypatch, commands.RUN) == 0

    return shared_folder("trained", fill)


@pytest.fixture(scope="session")
def plain_run():
    """A folder with text.txt and run/: `small_config` from its first step to its last. Not to be changed."""
    from jaxgpt.training import loop
    from tests import small_runs

    def fill(folder: Path) -> None:
        loop.train(small_runs.small_config(small_runs.write_text(folder / "text.txt")), folder / "run")

    return shared_folder("plain", fill)


@pytest.fixture(scope="session")
def word_run(tmp_path_factory):
    """The folder of a run with words as tokens and its embedding tables at several steps. Not to be changed."""
    from jaxgpt.training import loop
    from tests.small_runs import small_config, write_text

    folder = tmp_path_factory.mktemp("words")
    text = write_text(folder / "text.txt")
    cfg = small_config(text, data__tokenizer="word", train__embedding_snapshots=3, model__num_layers=1)
    loop.Trainer([(cfg, folder / "run")]).run()
    return folder / "run"


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


@pytest.fixture
def sweep_folder(tmp_path, monkeypatch):
    """The working directory of a test, with text.txt and sweep.py: four members of 20 steps."""
    from tests import small_runs, small_sweeps

    small_runs.write_text(tmp_path / "text.txt")
    (tmp_path / "sweep.py").write_text(small_sweeps.SWEEP)
    monkeypatch.chdir(tmp_path)
    return tmp_path
