"""Paths that a user gives, folders that are written at once, and where files that can be made again are kept."""

import errno
import os
from pathlib import Path

import pytest

from jaxgpt.common import cli
from jaxgpt.common.files import cache_dir, expand, new_folder
from jaxgpt.config import UserError
from tests.config.samples import message


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXGPT_CACHE", str(tmp_path / "cache"))
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("JAXGPT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "jaxgpt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "jaxgpt"


def test_paths_of_a_user_have_their_home_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand("~/runs/a") == tmp_path / "runs/a"
    assert expand("a/~b") == Path("a/~b")
    for bad in ("~no-such-user-1/x", "a\0b"):
        assert "\n" not in message(expand, bad)
    with pytest.raises(UserError, match="argument --workdir: ~no-such-user-1/x: the home folder of ~no-such"):
        parser = cli.Parser()
        cli.add_run_flags(parser)
        parser.parse_args(["--workdir", "~no-such-user-1/x"])


def test_a_user_without_a_home_is_one_line(monkeypatch):
    """As in a container with a user id that has no name."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("JAXGPT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def unknown(_path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", unknown)
    assert "set HOME" in message(cache_dir)


def test_a_new_folder_may_be_the_current_one(monkeypatch, tmp_path):
    """`.` can't be renamed; a folder with files is refused, and they stay."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with new_folder(Path(".")) as temporary:
        (temporary / "a").write_bytes(b"1")
        (temporary / "b").mkdir()
    assert sorted(os.listdir(tmp_path / "here")) == ["a", "b"] == sorted(os.listdir("."))
    with pytest.raises(OSError), new_folder(Path(".")) as temporary:
        (temporary / "a").write_bytes(b"2")
    assert Path("a").read_bytes() == b"1" and os.listdir(tmp_path) == ["here"]


def test_a_new_folder_may_be_a_mount_point(monkeypatch, tmp_path):
    """A mount point is busy: it is filled, not replaced."""

    def busy(*_):
        raise OSError(errno.EBUSY, "Device or resource busy")

    (tmp_path / "mounted").mkdir()
    monkeypatch.setattr(os, "replace", busy)
    with new_folder(tmp_path / "mounted") as temporary:
        (temporary / "a").write_bytes(b"1")
    assert (tmp_path / "mounted/a").read_bytes() == b"1" and os.listdir(tmp_path) == ["mounted"]
