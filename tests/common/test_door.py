"""A stranger's run folder: nothing outside of it is opened, emptied, moved or written, and nothing waits for ever."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

import jaxgpt
from jaxgpt.common import door
from jaxgpt.runs import orbax_paths
from tests.commands import EVALUATE, GENERATE, RUN, execute

PLACES = (
    ".lock", "config.json", "run.json", "metrics.jsonl", "metrics.removed.jsonl", "tokenizer.json", "samples", "embeddings",
    "checkpoints", "checkpoints/20", "damaged", "before", "embeddings/00000000.npz", "samples/00000010.txt", "report.html",
    "report.json", "tensorboard", "profile", "trackers.json",
)  # fmt: skip
COMMANDS = (
    RUN, f"{RUN} --restart", EVALUATE, f"{GENERATE} --prompt the", "report --workdir run", "explain --workdir run",
)  # fmt: skip
opened: list[str] | None = None  # paths that Python opens, moves or deletes, while it is a list


def _audit(event: str, args: tuple) -> None:
    if opened is not None and event in (
        "open",
        "os.rename",
        "os.remove",
        "os.rmdir",
        "os.mkdir",
        "os.truncate",
        "os.listdir",
        "os.scandir",
    ):
        opened.extend(
            os.path.realpath(os.fsdecode(a)) for a in args[:2] if isinstance(a, str | bytes | os.PathLike)
        )


sys.addaudithook(_audit)


def put(place: Path, what: str, target: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    elif place.exists():
        place.unlink()
    place.parent.mkdir(exist_ok=True)
    if what == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to(target)


@pytest.mark.parametrize("what", ["link", "pipe"])
def test_links_and_pipes_at_every_place_are_refused(what, here, tmp_path_factory, monkeypatch, capfd):
    global opened
    outside = tmp_path_factory.mktemp("outside")
    (outside / "20").mkdir()
    (outside / "secret").write_text("secret")
    before = sorted(outside.rglob("*"))
    shutil.copytree(here / "run", here / "good")
    for place in PLACES:
        for target in (outside / "secret", outside) if what == "link" else (outside,):
            put(here / "run" / place, what, target)
            for command in COMMANDS:
                opened = []
                code = execute(monkeypatch, command)
                seen, opened = opened, None
                lines = capfd.readouterr().err.splitlines()
                assert (code, len(lines)) == (2, 1), (place, command, lines)
                assert (
                    f"run/{place} is a " in lines[0] and "a run folder has only files and folders" in lines[0]
                )
                assert not [path for path in seen if path.startswith(str(outside))], (place, command)
            shutil.rmtree(here / "run")
            shutil.copytree(here / "good", here / "run")
    assert sorted(outside.rglob("*")) == before and (outside / "secret").read_text() == "secret"


def test_a_folder_that_you_name_may_be_a_link(here):
    (here / "name").symlink_to(here / "run")
    assert jaxgpt.load(here / "name").step == 20


def test_the_lock_is_opened_as_it_is(here, monkeypatch):
    (here / "run/.lock").write_text("kept")
    assert execute(monkeypatch, RUN) == 0
    assert (here / "run/.lock").read_text() == "kept"


def test_a_file_of_yours_is_not_shown_for_a_strangers_config(here, tmp_path, monkeypatch, capfd):
    """A path of the folder's own config is opened for its hash alone, and only where run.json has one."""
    mine = tmp_path / "mine.txt"
    mine.write_text("my secret is the password\n" * 300)
    for name in (
        "config.json",
        *sorted(str(p.relative_to(here / "run")) for p in (here / "run/checkpoints").glob("*/meta/metadata")),
    ):
        path = here / "run" / name
        path.write_text(path.read_text().replace("text.txt", str(mine)))
    facts = json.loads((here / "run/run.json").read_text())
    for changed in (facts, {**facts, "starts": []}, {k: v for k, v in facts.items() if k != "text_sha256"}):
        (here / "run/run.json").write_text(json.dumps(changed))
        assert execute(monkeypatch, EVALUATE) == 2
        error = capfd.readouterr().err
        assert "--text FILE" in error and "password" not in error
        assert execute(monkeypatch, "report --workdir run --text the") == 0
        assert "password" not in (here / "run/report.html").read_text()
        capfd.readouterr()


def test_a_tokenizer_of_yours_is_not_opened_for_a_strangers_config(here, tmp_path, monkeypatch):
    """The folder has its own tokenizer."""
    global opened
    mine = tmp_path / "mine.json"
    mine.write_text("secret")
    for path in (here / "run/checkpoints").glob("*/meta/metadata"):
        meta = json.loads(path.read_text())
        meta["config"]["data"]["tokenizer_path"] = str(mine)
        path.write_text(json.dumps(meta))
    opened = []
    code = execute(monkeypatch, EVALUATE)
    seen, opened = opened, None
    assert code == 0 and seen and str(mine) not in seen


def test_parts_of_a_checkpoint_that_are_links_are_not_merged(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/manifest.ocdbt").write_text("x")
    params = tmp_path / "20/params"
    params.mkdir(parents=True)
    (params / "ocdbt.process_0").symlink_to(tmp_path / "outside")
    assert orbax_paths.unmerged(tmp_path / "20") == []
    (params / "ocdbt.process_0").unlink()
    (tmp_path / "outside").rename(params / "ocdbt.process_0")
    assert orbax_paths.unmerged(tmp_path / "20") == [params]


def test_only_regular_files_are_opened(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    with door.open_regular(tmp_path / "file") as file:
        assert file.read() == b"x"
    with door.open_regular(tmp_path / "link", follow=True) as file:
        assert file.read() == b"x"
    for name in ("link", "pipe"):
        with pytest.raises(ValueError, match="not a regular file"):
            door.open_regular(tmp_path / name)
    with pytest.raises(ValueError, match="not a regular file"):
        door.open_regular(tmp_path / "pipe", follow=True)


@pytest.mark.parametrize("what", ["link", "pipe", "large"])
def test_what_orbax_reads_when_it_opens_a_folder(what, here, tmp_path, monkeypatch, capfd):
    """Its file in each step: a pipe would be read for ever."""
    place = here / "run/checkpoints/20/_CHECKPOINT_METADATA"
    if what == "large":
        os.truncate(place, 1 << 40)
    else:
        (tmp_path / "secret").write_text("{}")
        put(place, what, tmp_path / "secret")
    for command in COMMANDS:
        if "--restart" not in command:
            assert execute(monkeypatch, command) == 2
            (line,) = capfd.readouterr().err.splitlines()
            assert "20/_CHECKPOINT_METADATA is not a file of at most" in line
