"""Trackers get every step once, whatever happens to the run or to them, and the run does not notice them."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from jaxgpt import config
from jaxgpt.config import UserError
from jaxgpt.runs import metrics_log
from jaxgpt.runs.trackers import feed, tracker
from jaxgpt.runs.trackers.tracker import NOTHING, TrackedRun
from jaxgpt.sweeps import groups
from jaxgpt.training import loop
from tests.config.samples import message
from tests.small_runs import assert_same_run, metrics, small_config, write_text

NAMES = ("tensorboard", "wandb", "trackio", "mlflow")


class Store:
    """A tracker in memory, for all runs of a test; what it does wrong is set from outside."""

    def __init__(self):
        self.rows: dict[str, list] = {}  # by the id of a run
        self.runs: list[TrackedRun] = []
        self.reports: list[Path | None] = []
        self.fault = lambda method: None

    def open(self):
        store = self

        class Opened:
            def start(self, run):
                store.fault("start")
                store.runs.append(run)
                self.rows = store.rows.setdefault(run.id, [])
                return self.rows[-1].step if self.rows else NOTHING

            def log(self, rows):
                for row in rows:
                    store.fault("log")
                    self.rows.append(row)

            def finish(self, report):
                store.fault("finish")
                store.reports.append(report)

        return Opened()

    @property
    def only(self) -> list:
        (rows,) = self.rows.values()
        return rows


@pytest.fixture
def store(monkeypatch):
    """Takes the place of Weights & Biases."""
    store = Store()
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
    monkeypatch.setattr(tracker, "make", lambda name: store.open())
    return store


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(feed, "PAUSE", 0.005)
    monkeypatch.setattr(feed, "RETRY", 0.02)
    monkeypatch.setattr(feed, "_warned", set())
    for name in ("WANDB_MODE", "WANDB_PROJECT", "TRACKIO_PROJECT", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def text(plain_run):
    return plain_run / "text.txt"


def tracked(text: Path, **overrides):
    return small_config(text, train__trackers="wandb", **overrides)


def as_rows(workdir: Path) -> dict[int, dict[str, float]]:
    """What a tracker has to get of a run: its numbers by step."""
    found: dict[int, dict[str, float]] = {}
    for line in metrics(workdir):
        numbers = {f"{line['split']}/{k}": v for k, v in line.items() if k not in ("step", "split")}
        found.setdefault(line["step"], {}).update(numbers)
    return found


def without_times(row) -> dict[str, float]:
    return {k: v for k, v in row.numbers.items() if k.split("/")[-1] not in ("seconds", "tokens_per_second")}


def assert_complete(rows, workdir: Path) -> None:
    """Every step of the log once, in order, with its numbers and its sample."""
    assert [(row.step, without_times(row)) for row in rows] == list(as_rows(workdir).items())
    samples = {int(p.stem): p.read_text() for p in (workdir / "samples").iterdir()}
    assert {row.step: row.texts["sample"] for row in rows if row.texts} == samples


# --- what a tracker gets --------------------------------------------------------------------------------


def test_a_tracker_gets_the_config_every_line_the_samples_and_the_report(text, tmp_path, store):
    cfg = tracked(text, train__report=True)
    loop.train(cfg, tmp_path / "run", report=lambda folder: (folder / "report.html").write_text("x"))
    assert_complete(store.only, tmp_path / "run")
    (run,) = store.runs
    stored = json.loads((tmp_path / "run/config.json").read_text())
    assert run.config["model.d_ff"] == stored["model"]["d_ff"] == 64
    assert run.config.keys() == config.FIELDS.keys() and json.loads(json.dumps(run.config)) == run.config
    assert (run.name, run.group, run.step) == ("run", "", 0)
    assert store.reports == [tmp_path / "run/report.html"]


def test_a_run_without_trackers_starts_no_thread(text, tmp_path):
    loop.train(small_config(text), tmp_path / "run")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tracker")]
    assert not (tmp_path / "run" / tracker.ID_FILE).exists()


def test_members_of_a_sweep_are_grouped(text, tmp_path, store):
    overrides = [{"train.seed": 0}, {"train.seed": 1}]
    groups.run(tracked(text, train__num_steps=6, train__eval_every=6), overrides, tmp_path / "seeds")
    assert sorted((run.group, run.name) for run in store.runs) == [
        ("seeds", "seeds-000"),
        ("seeds", "seeds-001"),
    ]
    for run in store.runs:
        assert_complete(store.rows[run.id], run.workdir)


def test_only_the_first_of_several_processes_tracks(text, tmp_path, store, monkeypatch):
    monkeypatch.setattr("jaxgpt.common.processes.is_first", lambda: False)
    trainer = loop.Trainer([(tracked(text), tmp_path / "run")])
    trainer.runs[0].open_log(0)
    assert trainer.runs[0].feeds == [] and store.runs == []
    trainer.runs[0].close()


# --- resumed --------------------------------------------------------------------------------------------


def test_a_resumed_run_continues_under_its_id_without_doubles(text, tmp_path, store):
    run, copy = tmp_path / "run", tmp_path / "copy"
    loop.train(tracked(text), run, stop_at=12)
    shutil.copytree(run, copy)
    loop.train(tracked(text), run, stop_at=20)  # lost: as if it had been killed before it saved
    shutil.rmtree(run)
    copy.rename(run)
    assert [row.step for row in store.only] == list(range(21))
    loop.train(tracked(text), run)
    assert_complete(store.only, run)
    assert [(x.step, x.id) for x in store.runs] == [(k, store.runs[0].id) for k in (0, 12, 12)]


def test_a_tracker_that_comes_later_gets_what_was_before(text, tmp_path, store):
    loop.train(small_config(text), tmp_path / "run", stop_at=10)
    loop.train(tracked(text), tmp_path / "run")
    assert_complete(store.only, tmp_path / "run")


def test_a_change_of_num_steps_is_sent_though_the_store_has_its_step(text, tmp_path, store):
    loop.train(tracked(text, train__num_steps=12), tmp_path / "run")
    loop.train(tracked(text, train__num_steps=16), tmp_path / "run")
    (changed,) = [row for row in store.only if "change/num_steps" in row.numbers]
    assert changed.step == 12 and changed.numbers["change/num_steps"] == 16
    rows = [row for row in store.only if row is not changed]
    assert [row.step for row in rows] == list(range(17))


# --- trackers that are slow, raise or hang --------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(text, tmp_path_factory):
    """The run with a tracker that works."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
        patch.setattr(tracker, "make", lambda name: Store().open())
        loop.train(tracked(text), folder)
    return folder


def test_a_tracker_changes_no_bit_of_a_run(plain_run, undisturbed):
    assert metrics(undisturbed) == metrics(plain_run / "run")


@pytest.mark.parametrize(
    "method, error",
    [("start", SystemExit(3)), ("log", OSError("no route to host")), ("finish", ValueError("odd"))],
)
def test_a_tracker_that_raises_changes_no_bit_and_warns_once(
    text, tmp_path, store, undisturbed, method, error, capsys
):
    def fault(called):
        if called == method:
            raise error

    store.fault = fault
    loop.train(tracked(text), tmp_path / "run")
    assert_same_run(undisturbed, tmp_path / "run")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: tracker wandb: {type(error).__name__}: ")


def test_a_tracker_that_works_again_has_every_step_once(text, tmp_path, store):
    calls = 0

    def fault(method):
        nonlocal calls
        calls += method == "log"
        if method == "log" and calls % 5 == 0:
            raise ConnectionError("reset")

    store.fault = fault
    workdir = write_log(tmp_path, 23)
    fed = feed.Feed("wandb", run_in(workdir))
    fed.written = 23
    wait_until(lambda: store.rows and [row.step for row in store.only] == list(range(24)))
    feed.finish([fed])
    assert [row.step for row in store.only] == list(range(24))


def test_a_tracker_that_hangs_stops_nothing(text, tmp_path, store, undisturbed, monkeypatch, capsys):
    monkeypatch.setattr(feed, "LONGEST_WAIT", 0.3)
    release = threading.Event()
    store.fault = lambda method: release.wait() and None
    loop.train(tracked(text), tmp_path / "run")
    (line,) = capsys.readouterr().err.splitlines()
    assert "tracker wandb: it is not ready 0.3 s after the end" in line
    release.set()
    assert_same_run(undisturbed, tmp_path / "run")


def test_the_wait_is_one_for_all_runs_of_a_process(tmp_path, store, monkeypatch):
    monkeypatch.setattr(feed, "LONGEST_WAIT", 0.3)
    release = threading.Event()
    store.fault = lambda method: release.wait() and None
    feeds = [feed.Feed("wandb", run_in(write_log(tmp_path / str(n), 1))) for n in range(10)]
    start = time.monotonic()
    feed.finish(feeds)
    assert time.monotonic() - start < 2
    release.set()


def test_a_tracker_that_is_behind_catches_up(tmp_path, store):
    """The queue is the log: nothing waits in memory, and nothing is dropped."""
    release = threading.Event()
    store.fault = lambda method: release.wait() and None if method == "log" else None
    workdir = write_log(tmp_path, 0)
    fed = feed.Feed("wandb", run_in(workdir))
    fed.written = 0
    wait_until(lambda: store.runs)
    write_log(tmp_path, 1000, first=1)
    fed.written = 900
    release.set()
    wait_until(lambda: len(store.only) == 901)
    feed.finish([fed])
    assert [row.step for row in store.only] == list(range(1001))


def test_a_step_is_sent_only_when_all_its_lines_are_written(tmp_path, store):
    log = metrics_log.MetricsLog(tmp_path, 0)
    fed = feed.Feed("wandb", run_in(tmp_path))
    for step in range(30):
        log.write(step, "train", loss=1.0)
        time.sleep(0.01)  # several looks at the log
        log.write(step, "valid", loss=2.0)
        fed.written = step
    feed.finish([fed])
    expected = {"train/loss": 1.0, "valid/loss": 2.0}
    assert [(row.step, row.numbers) for row in store.only] == [(step, expected) for step in range(30)]


def run_in(workdir: Path) -> TrackedRun:
    return TrackedRun("0" * 16, workdir.name, "", workdir, 0, {})


def write_log(workdir: Path, last: int, first: int = 0) -> Path:
    workdir.mkdir(exist_ok=True)
    with (workdir / metrics_log.NAME).open("a") as file:
        file.writelines(
            json.dumps({"step": step, "split": "train", "loss": 1.0}) + "\n"
            for step in range(first, last + 1)
        )
    return workdir


def wait_until(condition, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


# --- bad input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_package_is_named_before_anything_is_trained(text, tmp_path, name, monkeypatch):
    package, _ = tracker.TRACKERS[name]
    monkeypatch.setitem(sys.modules, package, None)
    said = message(loop.train, small_config(text, train__trackers=name), tmp_path / "run")
    assert said == f'the tracker {name} needs {package}: pip install "jaxgpt[{name}]"'
    assert not (tmp_path / "run").exists()


def test_every_tracker_is_an_extra_and_a_choice_of_the_field():
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert config.FIELDS["train.trackers"].choices == tuple(tracker.TRACKERS) == NAMES
    for name, (package, _) in tracker.TRACKERS.items():
        assert f'\n{name} = ["{package}>=' in project


def test_an_unknown_tracker_is_one_line(text):
    said = message(small_config, text, train__trackers="wandb,nope")
    assert said == f"train.trackers: 'nope' is not possible: choose among {', '.join(NAMES)}"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"id": 3}', '{"id": "../../x"}'])
def test_a_damaged_id_is_one_line(text, tmp_path, store, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / tracker.ID_FILE).write_text(content)
    with pytest.raises(UserError, match=r"trackers\.json can't be read .*: remove it") as error:
        loop.train(tracked(text), tmp_path / "run")
    assert "\n" not in str(error.value) and store.runs == []


# --- each tracker ---------------------------------------------------------------------------------------


def events(folder: Path) -> list:
    """The events of TensorBoard in a folder: each with its length and two checksums."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in sorted(folder.glob("events.*")):
        content, at = file.read_bytes(), 0
        while at < len(content):
            length = int.from_bytes(content[at : at + 8], "little")
            found.append(Event.FromString(content[at + 12 : at + 12 + length]))
            at += 16 + length
    return found


def scalars(folder: Path) -> list[tuple[int, str, float]]:
    return [
        (event.step, value.tag, value.simple_value)
        for event in events(folder)
        for value in event.summary.value
        if value.HasField("simple_value")
    ]


def test_tensorboard_has_the_same_events_by_either_field(text, tmp_path):
    pytest.importorskip("tensorboardX")
    loop.train(small_config(text, train__tensorboard=True), tmp_path / "a", stop_at=10)
    loop.train(small_config(text, train__tensorboard=True), tmp_path / "a")
    loop.train(small_config(text, train__trackers="tensorboard"), tmp_path / "b")
    expected = [(s, tag, v) for s, row in as_rows(tmp_path / "a").items() for tag, v in row.items()]
    for run in ("a", "b"):
        found = [
            x
            for x in scalars(tmp_path / run / "tensorboard")
            if x[1].split("/")[1] not in ("seconds", "tokens_per_second")
        ]
        assert [x[:2] for x in found] == [x[:2] for x in expected]
        assert [x[2] for x in found] == pytest.approx([x[2] for x in expected], rel=1e-6)
    texts = {v.tag for e in events(tmp_path / "a/tensorboard") for v in e.summary.value} - {
        x[1] for x in scalars(tmp_path / "a/tensorboard")
    }
    assert texts == set()
    starts = [e.step for e in events(tmp_path / "a/tensorboard") if e.HasField("session_log")]
    assert starts == [1, 11]
    texts = {
        v.tag for e in events(tmp_path / "b/tensorboard") for v in e.summary.value if v.HasField("tensor")
    }
    assert texts == {"config/text_summary", "sample/text_summary"}


class FakeRun(types.SimpleNamespace):
    def __init__(self, offline=False, **given):
        super().__init__(
            given=given, logged=[], saved=[], finished=0, offline=offline, starting_step=7, _next_step=7
        )

    def log(self, values, step=None, commit=None):
        self.logged.append((step, values))

    def save(self, path, **_):
        self.saved.append(path)

    def finish(self):
        self.finished += 1


def send(name: str, tmp_path: Path) -> int:
    """Use a tracker as a feed does. Returns the position that it says."""
    (tmp_path / "report.html").write_text("x")
    used = tracker.make(name)
    run = TrackedRun(
        "0123456789abcdef", "sweep-001", "sweep", tmp_path, 7, {"train.seed": 1, "train.trackers": [name]}
    )
    position = used.start(run)
    used.log(
        [
            tracker.Row(7, 1.5, {"train/loss": 2.0}, {"sample": "a < b"}),
            tracker.Row(8, 2.5, {"train/loss": 1.0}, {}),
        ]
    )
    used.finish(tmp_path / "report.html")
    return position


@pytest.mark.parametrize("mode", [None, "offline", "online"])
def test_wandb_is_offline_unless_the_user_says_otherwise(tmp_path, monkeypatch, mode):
    made = []

    def init(**given):
        made.append(
            FakeRun(
                offline=(given["mode"] or mode) == "offline",
                dir=tmp_path / "wandb/offline-run/files",
                **given,
            )
        )
        made[0].dir = str(tmp_path / "wandb/offline-run/files")
        return made[0]

    fake = types.ModuleType("wandb")
    fake.init, fake.Settings, fake.Html = init, dict, lambda text, inject: ("html", text)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    assert send("wandb", tmp_path) == (6 if mode == "online" else NOTHING)
    (run,) = made
    assert run.given["mode"] == (None if mode else "offline")
    assert (run.given["id"], run.given["group"], run.given["project"]) == (
        "0123456789abcdef",
        "sweep",
        "jaxgpt",
    )
    assert run.logged == [
        (7, {"train/loss": 2.0, "sample": ("html", "<pre>a &lt; b</pre>")}),
        (8, {"train/loss": 1.0}),
    ]
    assert run.saved == [str(tmp_path / "report.html")] and run.finished == 1


def test_trackio_continues_a_run_by_its_name(tmp_path, monkeypatch):
    made = []
    fake = types.ModuleType("trackio")
    fake.run = types.SimpleNamespace()
    fake.init = lambda **given: made.append(FakeRun(**given)) or made[0]
    fake.Markdown = lambda text: ("markdown", text)
    monkeypatch.setitem(sys.modules, "trackio", fake)
    assert send("trackio", tmp_path) == 6
    (run,) = made
    assert (run.given["name"], run.given["group"], run.given["resume"]) == (
        "sweep-001-012345",
        "sweep",
        "allow",
    )
    assert [step for step, _ in run.logged] == [7, 8, 8] and "report" in run.logged[-1][1]
    assert run.finished == 1


def test_mlflow_keeps_its_last_step_as_a_metric(tmp_path, monkeypatch):
    calls, runs = [], []

    class Client:
        def get_experiment_by_name(self, name):
            return None if not runs else types.SimpleNamespace(experiment_id="1")

        def create_experiment(self, name):
            return "1"

        def search_runs(self, experiments, filter_string, max_results):
            return list(runs)

        def create_run(self, experiment, tags, run_name):
            info, data = types.SimpleNamespace(run_id="r"), types.SimpleNamespace(params={}, metrics={})
            runs.append(types.SimpleNamespace(info=info, data=data, tags=tags))
            return runs[0]

        def log_batch(self, run_id, metrics=(), params=(), tags=()):
            calls.append((metrics, params, tags))
            runs[0].data.params |= dict(params)
            runs[0].data.metrics |= {name: value for name, value, *_ in metrics}

        def __getattr__(self, name):
            return lambda *args, **kwargs: calls.append((name, args[1:]))

    mlflow, entities = types.ModuleType("mlflow"), types.ModuleType("mlflow.entities")
    mlflow.MlflowClient = Client
    entities.Metric = entities.Param = entities.RunTag = lambda *values: values
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    assert send("mlflow", tmp_path) == NOTHING
    assert runs[0].tags["sweep"] == "sweep" and runs[0].data.params["train.seed"] == "1"
    assert runs[0].data.metrics == {"train/loss": 1.0, "step": 8}
    assert ("log_text", ("a < b", "sample/00000007.txt")) in calls
    runs[0].data.params["train.seed"] = "0"  # parameters can't change
    calls.clear()
    assert send("mlflow", tmp_path) == 8 and len(runs) == 1
    assert ((), (), [("train.seed", "1")]) in calls


# --- the real packages ----------------------------------------------------------------------------------

VICTIM = """
import os, signal, sys, time
from pathlib import Path
from jaxgpt.common.cli import set_up_process
from jaxgpt.training import loop, programs
from tests.small_runs import small_config
name, folder, kill, seconds = sys.argv[1:]
set_up_process()
feed, calls = programs.SingleRun.feed, 0

def deadly(*args, **kwargs):
    global calls
    calls += 1
    if calls == int(kill):
        time.sleep(float(seconds))
        os.kill(os.getpid(), signal.SIGKILL)
    return feed(*args, **kwargs)

programs.SingleRun.feed = deadly
loop.train(small_config(Path("text.txt"), train__trackers=name, train__report=True), folder,
    report=lambda folder: (folder / "report.html").write_text("x"))
"""


def wandb_steps(folder: Path) -> list[int]:
    from jaxgpt.runs.trackers.wandb import stored_steps

    return [
        step for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")) for step in stored_steps(file)
    ]


def trackio_steps(folder: Path) -> list[int]:
    with sqlite3.connect(folder / "trackio/jaxgpt.db") as db:
        rows = db.execute("select step, metrics from metrics order by id").fetchall()
    return [step for step, values in rows if b"report" not in bytes(values)]


def mlflow_steps(folder: Path) -> list[int]:
    with sqlite3.connect(folder / "mlflow.db") as db:
        assert db.execute("select count(*) from runs").fetchall() == [(1,)]
        (doubles,) = db.execute(
            "select count(*) - count(distinct key || ' ' || step) from metrics"
        ).fetchone()
        assert doubles == 0
        return [step for (step,) in db.execute("select step from metrics where key = 'step' order by step")]


@pytest.mark.parametrize(
    "name, steps", [("wandb", wandb_steps), ("trackio", trackio_steps), ("mlflow", mlflow_steps)]
)
def test_a_killed_and_resumed_run_has_every_step_once(tmp_path, name, steps):
    pytest.importorskip(name)
    write_text(tmp_path / "text.txt")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "TRACKIO", "MLFLOW"))}
    environment |= {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    for kill, seconds in ((10, 0), (9, 15), (0, 0)):
        command = [sys.executable, "-c", VICTIM, name, "run", str(kill), str(seconds)]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == (-signal.SIGKILL if kill else 0), done.stderr
        assert "warning: tracker" not in done.stderr
    assert steps(tmp_path) == list(range(25))
