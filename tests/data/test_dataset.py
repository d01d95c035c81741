"""Token ids on disk are those of the text, complete or absent."""

import hashlib
import json
import os
import time
import tracemalloc
from multiprocessing.pool import ThreadPool

import numpy as np
import pytest

from jaxgpt.common.files import cache_dir
from jaxgpt.config import DataConfig, UserError
from jaxgpt.data import corpora, id_files, tokenizers
from jaxgpt.data.dataset import check_windows, prepare_dataset
from tests.errors import one_line
from tests.python_process import run_python

TEXT = "".join(f"{i} green bottles, hanging on the wall;\n\u00e9\u4e2d\U0001f600 " for i in range(300))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder that prepared data goes to, empty at the beginning of each test."""
    monkeypatch.setenv("JAXGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode())
    return path


def folders(cache):
    return sorted(path.name for path in cache.iterdir()) if cache.exists() else []


# ---- prepare


@pytest.mark.parametrize("kind, vocab_size", [("char", None), ("word", None), ("word", 50), ("bpe", 300)])
def test_ids_on_disk_are_those_of_direct_encoding(text_file, kind, vocab_size):
    dataset = prepare_dataset(DataConfig(path=str(text_file), tokenizer=kind, vocab_size=vocab_size))
    cut = int(len(TEXT) * 0.9)
    for split, text in ((dataset.train, TEXT[:cut]), (dataset.valid, TEXT[cut:])):
        np.testing.assert_array_equal(split.ids, dataset.tokenizer.encode(text))
        assert (split.num_chars, split.num_bytes) == (len(text), len(text.encode()))
        assert split.ids.dtype == np.uint16
        assert not split.ids.flags.writeable
    assert dataset.text_sha256 == hashlib.sha256(TEXT.encode()).hexdigest()
    assert dataset.fingerprint == tokenizers.fingerprint(dataset.tokenizer)
    assert dataset.corpus_name


def test_split_of_a_text_as_long_as_tiny_shakespeare(tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("ab" * (1_115_394 // 2))
    dataset = prepare_dataset(DataConfig(path=str(path)))
    assert (len(dataset.train.ids), len(dataset.valid.ids)) == (1_003_854, 111_540)


def test_only_the_character_tokenizer_sees_the_validation_text(text_file, monkeypatch):
    text_file.write_text("aaaa bbbb " * 90 + "zzzz yyyy " * 10)
    seen = {}
    real_train = tokenizers.train

    def train(kind, read, *settings):
        seen[kind] = "".join(read())
        return real_train(kind, read, *settings)

    monkeypatch.setattr(tokenizers, "train", train)
    for kind, vocab_size in (("char", None), ("word", None), ("bpe", 260)):
        prepare_dataset(DataConfig(path=str(text_file), tokenizer=kind, vocab_size=vocab_size))
    assert "z" in seen["char"]
    assert seen["word"] == seen["bpe"] == "aaaa bbbb " * 90


def test_second_prepare_trains_and_encodes_nothing(text_file, cache, monkeypatch):
    cfg = DataConfig(path=str(text_file), tokenizer="word")
    first = prepare_dataset(cfg)
    monkeypatch.setattr(tokenizers, "train", None)
    monkeypatch.setattr(tokenizers, "encode_pieces", None)
    second = prepare_dataset(cfg)
    np.testing.assert_array_equal(first.train.ids, second.train.ids)
    np.testing.assert_array_equal(first.valid.ids, second.valid.ids)
    assert (first.fingerprint, first.text_sha256) == (second.fingerprint, second.text_sha256)
    assert (first.valid.num_chars, first.valid.num_bytes) == (second.valid.num_chars, second.valid.num_bytes)
    assert len(folders(cache)) == 1


def test_each_text_tokenizer_and_split_has_a_folder_of_its_own(text_file, cache):
    path = str(text_file)
    tokenizers.save(tokenizers.train("char", lambda: iter([TEXT]), None), text_file.with_name("a.json"))
    tokenizers.save(tokenizers.train("char", lambda: iter([TEXT + "~"]), None), text_file.with_name("b.json"))
    configs = [
        DataConfig(path=path),
        DataConfig(path=path, valid_fraction=0.2),
        DataConfig(path=path, tokenizer="word"),
        DataConfig(path=path, tokenizer="word", vocab_size=20),
        DataConfig(path=path, tokenizer_path=str(text_file.with_name("a.json"))),
        DataConfig(path=path, tokenizer_path=str(text_file.with_name("b.json"))),
    ]
    for count, cfg in enumerate(configs, 1):
        prepare_dataset(cfg)
        assert len(folders(cache)) == count
    text_file.write_bytes(TEXT.replace("7", "8", 1).encode())  # the same length
    prepare_dataset(configs[0])
    assert len(folders(cache)) == len(configs) + 1


@pytest.mark.parametrize("vocab_size, dtype", [(65_536, "<u2"), (65_537, "<u4")])
def test_ids_are_as_wide_as_the_vocabulary_needs(text_file, vocab_size, dtype):
    # "\n" and printable ASCII are left out of the range, so that the tokenizer may add nothing of its own.
    characters = [chr(code) for code in range(0x20, 0x20_000) if not 0xD800 <= code < 0xE000][:vocab_size]
    text_file.write_bytes("".join(characters).encode())
    dataset = prepare_dataset(DataConfig(path=str(text_file)))
    assert dataset.tokenizer.vocab_size == vocab_size
    ids = np.concatenate([dataset.train.ids, dataset.valid.ids])
    assert ids.dtype == np.dtype(dtype)
    assert sorted(ids.tolist()) == list(range(vocab_size))


def test_loaded_tokenizer_is_used_unchanged(text_file, tmp_path):
    tokenizer = tokenizers.train("char", lambda: iter([TEXT, "~#"]), None)
    tokenizers.save(tokenizer, tmp_path / "tokenizer.json")
    dataset = prepare_dataset(
        DataConfig(path=str(text_file), tokenizer_path=str(tmp_path / "tokenizer.json"))
    )
    assert dataset.fingerprint == tokenizers.fingerprint(tokenizer)


def test_tokenizer_that_does_not_fit_the_config_is_refused(text_file, tmp_path, cache):
    saved = str(tmp_path / "tokenizer.json")
    tokenizers.save(tokenizers.train("char", lambda: iter([TEXT]), None), saved)
    for changes, expected in (
        ({"tokenizer": "word"}, "'char'"),
        ({"tokenizer": "gpt2"}, "'char'"),
        ({"vocab_size": 5}, "data.vocab_size=5"),
        ({"tokenizer_path": str(tmp_path)}, str(tmp_path)),
        ({"tokenizer_path": str(tmp_path / "absent.json")}, "absent.json"),
        ({"tokenizer_path": str(tmp_path), "tokenizer": "gpt2"}, ""),
    ):
        with pytest.raises(UserError) as error:
            prepare_dataset(DataConfig(**{"path": str(text_file), "tokenizer_path": saved, **changes}))
        assert expected in one_line(error)
    assert folders(cache) == []


def test_gpt2_has_one_vocabulary_size(text_file, monkeypatch):
    class Gpt2:
        kind, vocab_size = "gpt2", 50257

    monkeypatch.setattr(tokenizers, "load_gpt2", lambda folder: Gpt2())
    with pytest.raises(UserError, match="50257"):
        prepare_dataset(
            DataConfig(path=str(text_file), tokenizer="gpt2", tokenizer_path="folder", vocab_size=60_000)
        )


def test_character_missing_from_a_loaded_tokenizer_leaves_no_folder(text_file, tmp_path, cache):
    tokenizers.save(tokenizers.train("char", lambda: iter(["abc"]), None), tmp_path / "tokenizer.json")
    with pytest.raises(UserError):
        prepare_dataset(DataConfig(path=str(text_file), tokenizer_path=str(tmp_path / "tokenizer.json")))
    assert folders(cache) == []


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, 0.9, float("nan")])
def test_split_without_text_is_refused(text_file, fraction):
    text_file.write_text("ab")
    with pytest.raises(UserError, match=r"data\.valid_fraction") as error:
        prepare_dataset(DataConfig(path=str(text_file), valid_fraction=fraction))
    one_line(error)


def test_text_shorter_than_a_window_is_refused_with_the_numbers(text_file):
    text_file.write_text("abcdefghij" * 10)
    dataset = prepare_dataset(DataConfig(path=str(text_file), valid_fraction=0.1))
    check_windows(dataset, 89)
    with pytest.raises(UserError, match=r"90 tokens and needs 91 .*context_length=90") as error:
        check_windows(dataset, 90)
    one_line(error)
    dataset = prepare_dataset(DataConfig(path=str(text_file), valid_fraction=0.01))
    with pytest.raises(UserError, match=r"validation split .* 1 token and needs 2"):
        check_windows(dataset, 8)


# ---- the cache: complete or absent


def test_failure_while_encoding_leaves_nothing_behind(text_file, cache, monkeypatch):
    cfg = DataConfig(path=str(text_file))
    real_encode = tokenizers.encode_pieces

    def fail_on_validation_text(tokenizer, pieces, calls=[]):  # noqa: B006
        calls.append(1)
        yield from real_encode(tokenizer, pieces)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tokenizers, "encode_pieces", fail_on_validation_text)
        with pytest.raises(KeyboardInterrupt):
            prepare_dataset(cfg)
    assert folders(cache) == []
    assert len(prepare_dataset(cfg).train.ids) == int(len(TEXT) * 0.9)


def test_process_killed_while_encoding_does_no_harm(text_file, cache):
    program = (
        "import os, sys; from jaxgpt.data import tokenizers; from jaxgpt.data.dataset import prepare_dataset; from jaxgpt.config import DataConfig\n"
        "tokenizers.encode_pieces = lambda tokenizer, pieces: iter(lambda: os._exit(9), None)\n"
        "prepare_dataset(DataConfig(path=sys.argv[1]))"
    )
    assert run_python(program, str(text_file)).returncode == 9
    (left,) = folders(cache)
    assert left.startswith("tmp-")
    assert len(prepare_dataset(DataConfig(path=str(text_file))).train.ids) == int(len(TEXT) * 0.9)


def test_full_disk_names_the_folder_and_leaves_nothing_behind(tmp_path, cache):
    resource = pytest.importorskip("resource")  # a limit on the size of files simulates a full disk
    path = tmp_path / "text.txt"
    path.write_text("ab" * 500_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(UserError) as error:
            prepare_dataset(DataConfig(path=str(path)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "JAXGPT_CACHE" in one_line(error) and str(cache) in one_line(error)
    assert folders(cache) == []
    prepare_dataset(DataConfig(path=str(path)))


def test_folder_that_cannot_be_written_is_named_before_a_tokenizer_is_trained(text_file, cache, monkeypatch):
    cache.parent.mkdir()
    cache.write_text("a file where the folder should be")
    monkeypatch.setattr(tokenizers, "train", None)
    with pytest.raises(UserError, match="JAXGPT_CACHE") as error:
        prepare_dataset(DataConfig(path=str(text_file)))
    assert str(cache) in one_line(error)


def test_text_that_changes_while_it_is_read_is_refused(text_file, cache, monkeypatch):
    versions = iter([TEXT, TEXT, TEXT.replace("0", "1")])  # measured, tokenized, encoded
    corpus = corpora.Corpus("changing", lambda: iter([next(versions)]))
    monkeypatch.setattr(corpora, "open_corpus", lambda name, path: corpus)
    with pytest.raises(UserError, match="changed"):
        prepare_dataset(DataConfig())
    assert folders(cache) == []


def test_preparing_at_once_ends_well_for_all(text_file, cache, monkeypatch):
    real_replace = os.replace
    renames = []

    def replace_when_all_are_there(source, target):
        if os.path.isfile(source):
            return real_replace(source, target)
        renames.append(source)
        deadline = time.monotonic() + 5
        while len(renames) < 3 and time.monotonic() < deadline:
            time.sleep(0.001)
        return real_replace(source, target)

    monkeypatch.setattr(os, "replace", replace_when_all_are_there)
    with ThreadPool(3) as pool:
        datasets = pool.map(prepare_dataset, [DataConfig(path=str(text_file))] * 3)
    assert len(renames) == 3 and len(folders(cache)) == 1
    for found in datasets:
        np.testing.assert_array_equal(found.train.ids, datasets[0].train.ids)


def test_folders_of_killed_processes_are_removed_when_old(text_file, cache):
    long_ago = time.time() - 2 * id_files.ABANDONED_AFTER_SECONDS
    for name, file_time in (("tmp-dead", long_ago), ("tmp-alive", time.time()), ("other", long_ago)):
        (cache / name).mkdir(parents=True)
        (cache / name / "train.bin").write_bytes(b"")
        os.utime(cache / name / "train.bin", (file_time, file_time))
        os.utime(cache / name, (long_ago, long_ago))
    prepare_dataset(DataConfig(path=str(text_file)))
    assert [name for name in folders(cache) if len(name) < 64] == ["other", "tmp-alive"]


def cut_two_bytes(folder):
    path = folder / "train.bin"
    path.write_bytes(path.read_bytes()[:-2])


def grow_two_bytes(folder):
    path = folder / "valid.bin"
    path.write_bytes(path.read_bytes() + b"\0\0")


def edit_meta(**changes):
    def edit(folder):
        meta = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps({**meta, **changes}))

    return edit


@pytest.mark.parametrize(
    "damage, expected",
    [
        (cut_two_bytes, str(2 * int(len(TEXT) * 0.9))),
        (grow_two_bytes, str(2 * (len(TEXT) - int(len(TEXT) * 0.9)))),
        (lambda folder: (folder / "valid.bin").unlink(), "valid.bin"),
        (lambda folder: (folder / "meta.json").unlink(), "meta.json"),
        (lambda folder: (folder / "meta.json").write_bytes(b"\xff\x00"), ""),
        (lambda folder: (folder / "meta.json").write_text("[1, 2]"), ""),
        (lambda folder: (folder / "meta.json").write_text("{}"), "fingerprint"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), ""),
        (edit_meta(splits={"train": {"num_ids": 1}}), ""),
        (edit_meta(splits=None), ""),
        (edit_meta(fingerprint="0"), "tokenizer.json"),
    ],
)
def test_damaged_cache_is_refused_and_deleting_it_repairs_it(text_file, cache, damage, expected):
    cfg = DataConfig(path=str(text_file))
    prepare_dataset(cfg)
    (folder,) = cache.iterdir()
    damage(folder)
    with pytest.raises(UserError) as error:
        prepare_dataset(cfg)
    message = one_line(error)
    assert "delete" in message and str(folder) in message and expected in message
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    prepare_dataset(cfg)


def test_memory_does_not_grow_with_the_text(monkeypatch, cache):
    num_pieces, piece = 400, "abcdefgh" * 2_000  # 6.4 MB of text, 12.8 MB of ids
    corpus = corpora.Corpus("long", lambda: (piece for _ in range(num_pieces)))
    monkeypatch.setattr(corpora, "open_corpus", lambda name, path: corpus)
    tracemalloc.start()
    try:
        dataset = prepare_dataset(DataConfig())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(dataset.train.ids) + len(dataset.valid.ids) == num_pieces * len(piece)
    assert peak < 3_000_000


# ---- what is known of a text without reading it


def test_a_text_is_read_again_only_where_its_files_have_changed(tmp_path, monkeypatch):
    file = tmp_path / "text.txt"
    file.write_text("abc " * 50, "utf-8")
    cfg = DataConfig(path=str(file))
    first = prepare_dataset(cfg)
    with monkeypatch.context() as m:
        m.setattr(corpora, "_read_files", lambda *_: pytest.fail("the text was read"))
        assert prepare_dataset(cfg).text_sha256 == first.text_sha256
    file.write_text("abd " * 50, "utf-8")  # as long as before
    second = prepare_dataset(cfg)
    assert second.text_sha256 == hashlib.sha256(file.read_bytes()).hexdigest() != first.text_sha256
    for note in (cache_dir() / "texts").iterdir():
        note.write_text('{"sha256": 1', "utf-8")  # damaged: the text is read
    assert prepare_dataset(cfg).text_sha256 == second.text_sha256


def test_changed_bytes_of_the_cache_are_noticed(text_file, cache, monkeypatch):
    """At once, and for large files before the first save. A cache of an earlier version has no checksums and is read."""
    cfg = DataConfig(path=str(text_file))
    prepare_dataset(cfg)
    (folder,) = cache.iterdir()
    content = bytearray((folder / "valid.bin").read_bytes())
    content[10] ^= 1
    (folder / "valid.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"the checksum of valid\.bin does not match"):
        prepare_dataset(cfg)
    monkeypatch.setattr(id_files, "AT_ONCE", 10)
    found = prepare_dataset(cfg)
    with pytest.raises(UserError, match=r"the checksum of valid\.bin does not match"):
        found.check_verified()
    meta = json.loads((folder / "meta.json").read_text())
    for split in meta["splits"].values():
        del split["crc32"]
    (folder / "meta.json").write_text(json.dumps(meta))
    prepare_dataset(cfg).check_verified()
