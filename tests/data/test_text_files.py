"""A folder of texts: every file of it is read or named, and a file that is not UTF-8 text is recognised."""

import os
import shlex
import socket
import subprocess

import pytest

from jaxgpt.config import DataConfig, UserError
from jaxgpt.data import corpora, documents
from tests.errors import one_line


def text_of(path, **fields):
    pieces = documents.open_documents(str(path), DataConfig(path=str(path), **fields), "data.path").read()
    return "".join(piece for piece in pieces if piece is not None)


def refused(path) -> str:
    """The error of a path, the same for data.path and for --text."""
    with pytest.raises(UserError) as error:
        text_of(path)
    with pytest.raises(UserError) as of_text:
        "".join(corpora.open_files(str(path)).read())
    assert str(error.value) == str(of_text.value)
    return one_line(error)


def test_linked_files_and_folders_are_read(tmp_path):
    outside = tmp_path / "outside" / "inner"
    outside.mkdir(parents=True)
    (outside / "b.txt").write_text("b")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    (folder / "linked").symlink_to(tmp_path / "outside")
    (folder / "again").symlink_to(outside)  # twice is what the user asked for
    (folder / "z.txt").symlink_to(outside / "b.txt")
    assert text_of(folder) == "abbb"


def test_what_is_no_file_is_named(tmp_path, monkeypatch):
    def case(name):
        folder = tmp_path / name
        (folder / "sub").mkdir(parents=True)
        (folder / "a.txt").write_text("a")
        return folder

    cycle = case("cycle")
    (cycle / "sub" / "up").symlink_to(cycle)
    assert "sub/up is a link to a folder that it is in" in refused(cycle)
    broken = case("broken")
    (broken / "sub" / "b.txt").symlink_to("gone.txt")
    assert "sub/b.txt is a link to 'gone.txt', which can't be opened" in refused(broken)
    assert "gone.txt" in refused(broken / "sub" / "b.txt")
    itself = case("itself")
    (itself / "b.txt").symlink_to("b.txt")
    assert "b.txt is a link to 'b.txt'" in refused(itself)
    pipe = case("pipe")
    os.mkfifo(pipe / "sub" / "p.txt")
    assert "sub/p.txt is a pipe, not a file" in refused(pipe)
    assert "but a pipe" in refused(pipe / "sub" / "p.txt")
    with pytest.raises(UserError, match=r"p\.txt is a pipe"):
        documents.find(str(pipe / "sub" / "*.txt"), "data.path")
    monkeypatch.chdir(case("socket"))
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("s")
        assert "s is a socket" in refused(tmp_path / "socket")
    assert "but a device" in refused("/dev/null")
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / ".a.txt").write_text("a")
    assert "without files (but 1 hidden ones, such as .a.txt)" in refused(hidden)


def test_empty_and_blank_texts_and_files_that_go(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    assert "has no text" in refused(tmp_path / "empty.txt")
    (tmp_path / "blank.txt").write_text(" \n\t" * 10)
    assert "has only white space (30 characters)" in refused(tmp_path / "blank.txt")
    corpus = corpora.open_files(str(tmp_path / "blank.txt"))
    (tmp_path / "blank.txt").unlink()
    for use in (corpus.state, lambda: list(corpus.read())):
        with pytest.raises(UserError, match=r"cannot read .*blank\.txt \(No such file"):
            use()


PROSE = "Dès Noël, où un zéphyr haï me vêt “de glaçons” — würmiens.\n" * 40
RUSSIAN = "Съешь же ещё этих мягких французских булок, да выпей чаю.\n" * 40
JAPANESE = "いろはにほへと ちりぬるを わかよたれそ つねならむ うゐのおくやま けふこえて\n" * 40
CHINESE = "我的书是你的一本不在了的书，他是不是在看一本新的书了\n" * 40


@pytest.mark.parametrize(
    ("text", "codec", "found"),
    [
        (PROSE, "cp1252", "WINDOWS-1252"),
        ("plain words only, and one caf\xe9\n" * 9, "latin-1", "WINDOWS-1252"),
        (PROSE, "utf-16", "UTF-16"),
        (PROSE, "utf-16-le", "UTF-16LE"),
        (PROSE, "utf-16-be", "UTF-16BE"),
        (RUSSIAN, "utf-16-le", "UTF-16LE"),
        ("plain words\n" * 9, "utf-16-be", "UTF-16BE"),
        (PROSE, "utf-32", "UTF-32"),
        (RUSSIAN, "utf-32-le", "UTF-32LE"),
        (PROSE, "utf-32-be", "UTF-32BE"),
        (JAPANESE, "shift_jis", "SHIFT_JIS"),
        (JAPANESE.replace("ゐ", "い"), "euc_jp", "EUC-JP"),
        (CHINESE, "gb18030", "GB18030"),
    ],
)
def test_the_command_in_the_error_converts_the_file(tmp_path, text, codec, found):
    file = tmp_path / "it's odd.txt"
    file.write_bytes(text.encode(codec))
    message = refused(file)
    assert f"it looks like {found}: " in message
    command = message.split("`")[1]
    assert shlex.split(command)[-1] == str(tmp_path / "it's odd.utf8.txt")
    subprocess.run(command, shell=True, check=True)
    assert text_of(tmp_path / "it's odd.utf8.txt") == text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x1f\x8b\x08\0" + bytes(20), "compressed with gzip"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "a PNG image"),
        (b"PK\x03\x04" + b"plain " * 99, "a zip archive"),
        (b"PAR1\x15\x04" + bytes(range(256)), "a Parquet file"),
        (b"\x28\xb5\x2f\xfd\x04", "compressed with zstd"),
        (b"\xfd7zXZ\0\0", "compressed with xz"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF document"),
        (bytes(range(256)) * 9, "a binary file"),
        (b"\x00\x01\x02\x03" * 99, "a binary file"),
        (bytes(99) + "é".encode()[:1], "a binary file"),  # cut inside a character
        (b"words " * 99 + "é".encode()[:1], "it is not complete"),
        ("Größe über Maß ".encode() * 9 + b"\xe9 ", "most of it is UTF-8"),
    ],
)
def test_no_conversion_is_advised_for_what_is_no_text(tmp_path, content, words):
    (tmp_path / "a.txt").write_bytes(content)
    message = refused(tmp_path / "a.txt")
    assert words in message
    assert "iconv" not in message


def test_an_encoding_that_the_bytes_do_not_tell_is_not_guessed(tmp_path):
    for codec in ("koi8-r", "cp1251", "euc_kr"):
        text = (
            RUSSIAN
            if codec != "euc_kr"
            else "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다\n" * 40
        )
        (tmp_path / "a.txt").write_bytes(text.encode(codec, "replace"))
        assert "its encoding is not known: convert it with `iconv -f ENCODING " in refused(tmp_path / "a.txt")


def test_control_characters_are_accepted_where_the_user_says_so(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a\0b\0")
    assert "data.control_characters=true" in refused(tmp_path / "a.txt")
    assert text_of(tmp_path / "a.txt", control_characters=True) == "a\0b\0"
    (tmp_path / "rare.txt").write_text("some words of a document\0" * 2 + "words " * 20)
    text_of(tmp_path / "rare.txt")
