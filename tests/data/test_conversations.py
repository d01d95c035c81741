"""Conversations: their text, which of its tokens count, and what is refused."""

import gzip
import itertools
import json
import pickle

import numpy as np
import pytest

from jaxgpt.config import DataConfig, UserError
from jaxgpt.data import conversations, encoding, tokenizers
from jaxgpt.data.conversations import TEMPLATES
from jaxgpt.data.dataset import prepare_dataset, text_hash
from jaxgpt.data.packing import Packing
from jaxgpt.data.shards import unmarked
from jaxgpt.data.text_pieces import Segment
from tests.errors import one_line

TURNS = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "who?"},
    {"role": "assistant", "content": "me"},
    {"role": "user", "content": "why?"},
    {"role": "assistant", "content": "so"},
]
CHARS = tokenizers.CharTokenizer("".join(sorted(set(map(chr, range(32, 127))) | {"\n"})), end_of_text=True)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def shown(parts) -> str:
    return "".join(f"[{part}]" if part.counts else part for part in parts)


def test_the_templates_by_hand():
    record = {"messages": TURNS[1:3]}
    assert (
        shown(conversations.segments(record, TEMPLATES["play"], "x"))
        == "User:\nwho?\n\nAssistant:\n[me][\n\n]"
    )
    assert shown(conversations.segments(record, TEMPLATES["line"], "x")) == "User: who?\nAssistant: [me][\n]"
    assert shown(conversations.segments(record, TEMPLATES["chatml"], "x")) == (
        "<|im_start|>user\nwho?<|im_end|>\n<|im_start|>assistant\n[me][<|im_end|>][\n]"
    )
    assert (
        shown(conversations.segments({"prompt": "1+1=", "completion": "2"}, TEMPLATES["line"], "x"))
        == "1+1=[2]"
    )
    assert shown(TEMPLATES["line"].prompt([("user", "who?")])) == "User: who?\nAssistant: "


def test_what_counts_of_a_worked_example():
    """By hand: the second answer's characters, the newline that ends it and the end of text; all else is only read."""
    parts = conversations.segments({"messages": TURNS}, TEMPLATES["line"], "x")
    ids = np.concatenate(encoding.encode_segments(CHARS, parts, np.array([CHARS.eos_id], np.int32)))
    text = "System: be brief\nUser: who?\nAssistant: me\nUser: why?\nAssistant: so\n"
    assert unmarked(ids).tolist() == [*CHARS.encode(text).tolist(), CHARS.eos_id]
    counts = "".join("1" if i >= 0 else "." for i in ids)
    assert counts == "." * 39 + "111" + "." * 22 + "1111"
    assert text[39:42] == "me\n" and text[64:] == "so\n"


def test_a_mark_is_the_special_token_where_there_is_one_and_never_in_a_turn():
    class Special(tokenizers.CharTokenizer):
        def special_id(self, name):
            return {"<|im_start|>": 7, "<|im_end|>": 8}.get(name)

    tokenizer = Special("".join(map(chr, [10, *range(32, 127)])))
    parts = TEMPLATES["chatml"].turns([("user", "<|im_start|>")])
    ids = unmarked(np.concatenate(encoding.encode_segments(tokenizer, parts, np.zeros(0, np.int32))))
    assert ids.tolist().count(8) == 1 and ids.tolist()[0] == 7
    assert len(ids) == 1 + len("user\n") + len("<|im_start|>") + 1 + 1


def records(n: int) -> list[dict]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"is it {i}?"},
                {"role": "assistant", "content": f"it is {i}"},
            ]
        }
        for i in range(n)
    ]


def test_the_same_conversations_in_every_format(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    content = "".join(json.dumps(one) + "\n" for one in records(40))
    (tmp_path / "a.jsonl").write_text(content)
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write(content)
    parquet.write_table(pyarrow.Table.from_pylist(records(40)), tmp_path / "c.parquet", row_group_size=7)
    found = []
    for name in ("a.jsonl", "b.jsonl.gz", "c.parquet"):
        cfg = DataConfig(path=str(tmp_path / name), template="line")
        for workers in (0, 2) if name == "a.jsonl" else (0,):
            data = prepare_dataset(cfg, workers)
            found.append(
                (
                    np.asarray(data.train.targets).tolist(),
                    np.asarray(data.valid.targets).tolist(),
                    text_hash(cfg),
                )
            )
    assert all(one == found[0] for one in found)
    train = np.array(found[0][0])
    assert (train >= 0).sum() == sum(
        len(f"it is {i}\n") + 1 for i in range((train == data.tokenizer.eos_id).sum())
    )
    assert data.facts()["train_targets"] == (train >= 0).sum()
    other = prepare_dataset(DataConfig(path=str(tmp_path / "a.jsonl"), template="play"))
    assert other.text_sha256 != data.text_sha256


def test_where_the_parts_meet_belongs_to_the_text(tmp_path):
    for name, prompt, completion in (("a", "12", "3"), ("b", "1", "23")):
        lines = [json.dumps({"prompt": prompt, "completion": completion})] * 20
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    one, two = (text_hash(DataConfig(path=f"{name}.jsonl", template="line")) for name in "ab")
    assert one != two


def test_packed_windows_keep_the_marks(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records(40)))
    data = prepare_dataset(DataConfig(path="a.jsonl", template="line"))
    targets = data.train.targets
    packing = Packing.of(targets, data.tokenizer.eos_id, 65)
    windows = packing.at(targets, np.arange(len(packing)))
    assert (windows >= 0).sum() == (np.asarray(targets) >= 0).sum()


def test_mistakes_are_one_line(tmp_path):
    numbers = itertools.count()

    def jsonl(*objects) -> dict:
        path = tmp_path / f"{next(numbers)}.jsonl"
        path.write_text("".join(json.dumps(one) + "\n" for one in objects))
        return {"path": path.name, "template": "line"}

    turn = {"role": "assistant", "content": "ok"}
    (tmp_path / "x.txt").write_text("plain text")
    cases = [
        (jsonl({"text": "x"}), "is no conversation .it has text.: give 'messages', or 'prompt'"),
        (jsonl("x"), "line 1 is no conversation .it has str"),
        (jsonl({"messages": "x"}), "'messages' is of type str"),
        (jsonl({"messages": [{"role": "judge", "content": "x"}]}), "turn 1 has the role 'judge'"),
        (jsonl({"messages": [{"content": "x"}]}), "turn 1 has the role 'None'"),
        (jsonl({"messages": [turn, {"role": "user"}]}), "turn 2: 'content' is of type NoneType"),
        (jsonl({"messages": [{"role": "user", "content": "x"}]}), "has no turn of the assistant"),
        (
            jsonl({"messages": [{"role": "assistant", "content": "a\nb"}]}),
            "which ends a turn of data.template='line': change it, or choose another data.template: play, chatml",
        ),
        (jsonl({"prompt": 1, "completion": "x"}), "'prompt' is of type int"),
        (jsonl({"messages": [turn]}), "is a single document"),
        (
            {"path": "x.txt", "template": "line"},
            "has plain text, but data.template='line' is for conversations",
        ),
        ({"corpus": "python_docs", "template": "line"}, "has no conversations"),
        (jsonl({"messages": [turn]}) | {"template": ""}, "set data.template for conversations"),
    ]
    for kwargs, words in cases:
        with pytest.raises(UserError, match=words) as error:
            prepare_dataset(DataConfig(**kwargs))
        one_line(error)
    assert not list((tmp_path / "cache").rglob("*.bin"))


def test_a_segment_is_a_text_that_travels():
    part = pickle.loads(pickle.dumps(Segment("x", counts=False, mark=True)))
    assert part == "x" and not part.counts and part.mark
