"""The command that writes token shards: a plain reader gives the ids back, and so does this package."""

import numpy as np
import pytest

from jaxgpt import tokenize
from jaxgpt.config import DataConfig, UserError
from jaxgpt.data import dataset

CONFIG = "from jaxgpt.config import default_config\n\ndef get_config():\n    return default_config()\n"


def test_shards_of_a_text(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAXGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "play.txt").write_text("To be, or not to be: that is the question.\n" * 50)
    (tmp_path / "config.py").write_text(CONFIG)
    flags = ["--config", "config.py", "--config.data.path=play.txt", "--out", "ids", "--shard_tokens", "800"]
    tokenize.main(flags)
    names = [f"play_train_{i:06}.bin" for i in (1, 2, 3)]
    assert sorted(p.name for p in (tmp_path / "ids").iterdir()) == [
        *names,
        "play_val_000000.bin",
        "tokenizer.json",
    ]
    assert "1,935 tokens to train on, 215 to validate" in capsys.readouterr().out
    written = dataset.prepare_dataset(DataConfig(path="play.txt"))
    read = [np.fromfile(tmp_path / "ids" / name, "<u2", offset=1024) for name in names]
    assert [len(ids) for ids in read] == [800, 800, 335]
    assert np.array_equal(np.concatenate(read), written.train.ids)
    again = dataset.prepare_dataset(DataConfig(path="ids", tokenizer_path="ids/tokenizer.json"))
    assert np.array_equal(np.asarray(again.train.ids), written.train.ids)
    assert np.array_equal(again.valid.ids, written.valid.ids) and again.fingerprint == written.fingerprint
    with pytest.raises(UserError, match="--out=ids is not an empty folder"):
        tokenize.main(flags)
