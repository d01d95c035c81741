"""Models that were trained with a token before each text: it comes in and goes out, and stands before all that they read."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Built

import jaxgpt
from jaxgpt.config import Config, UserError
from jaxgpt.data import conversations, encoding, tokenizers
from jaxgpt.data.conversations import TEMPLATES
from jaxgpt.data.text_pieces import Segment
from jaxgpt.inspect.subject import Subject, probe_of
from jaxgpt.model import generation
from jaxgpt.model.generation import Sampler
from jaxgpt.model.gpt import GPT
from jaxgpt.runs import published, tokenizer_files
from jaxgpt.runs.gguf import models
from jaxgpt.runs.load import Run
from tests.models import random_params
from tests.runs.test_gguf import LLAMA, SIZE, TOKENIZER, rewrite

START, END = "<s>", "</s>"
TEXT = "the king of the seas"


def document(**changes) -> dict:
    """A tokenizer.json of a Llama: byte pairs, and <s> before each text."""
    found = tokenizer_files.bpe_document(TOKENIZER.vocab, TOKENIZER.merges, {START: SIZE, END: SIZE + 1})
    return found | {"post_processor": tokenizer_files.start_template(START, SIZE)} | changes


def folder_of(path: Path, fields: dict) -> Path:
    """A published folder of a model with this tokenizer."""
    cfg = dataclasses.replace(LLAMA, vocab_size=SIZE + 2)
    tokenizer = tokenizers.from_json(
        {"kind": "huggingface", "tokenizer": document(post_processor=None), "end_of_text": END}
    )
    published.export_run(
        Run(Config(model=cfg), GPT(cfg), random_params(cfg), tokenizer, 7, Path("ours")), path
    )
    (path / tokenizer_files.OURS).unlink()
    (path / tokenizer_files.THEIRS).write_text(json.dumps(fields))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    made = tmp_path_factory.mktemp("start")
    published.import_folder(folder_of(made / "theirs", document()), made / "run")
    return jaxgpt.load(made / "run")


def test_the_token_stands_before_what_the_model_reads_and_not_within(run):
    ids = Built.from_str(json.dumps(document())).encode(TEXT).ids
    tokenizer = run.tokenizer
    assert (tokenizer.bos_id, tokenizer.eos_id) == (SIZE, SIZE + 1)
    assert tokenizer.encode(TEXT).tolist() == ids[1:]
    assert tokenizer.with_start(tokenizer.encode(TEXT)).tolist() == ids
    assert jaxgpt.capture(run, TEXT).tokens_T.tolist() == ids
    subject = Subject(run=run, facts={}, metrics=[], dataset=None, missing=())
    assert probe_of(subject, TEXT).ids_T.tolist() == ids

    greedy = Sampler(temperature=0)
    known = np.concatenate(list(generation.generate_ids(run.model, run.params, [ids], 4, sampler=greedy)), 1)[
        0
    ]
    found = generation.generate(
        run.model, run.params, tokenizer, [TEXT], 4, sampler=greedy, stops=generation.Stops(None)
    )
    streamed = generation.stream(
        run.model, run.params, tokenizer, TEXT, 4, sampler=greedy, stops=generation.Stops(None)
    )
    assert found[0][0] == "".join(streamed) == tokenizer.decode(known)


def test_folders_and_gguf_files_keep_it(run, tmp_path):
    ids = Built.from_str(json.dumps(document())).encode(TEXT).ids
    published.export_run(run, tmp_path / "out")
    assert Built.from_file(str(tmp_path / "out/tokenizer.json")).encode(TEXT).ids == ids
    values = json.loads((tmp_path / "out/config.json").read_text())
    assert (values["bos_token_id"], values["eos_token_id"]) == (SIZE, SIZE + 1)
    assert json.loads((tmp_path / "out/tokenizer_config.json").read_text())["bos_token"] == START

    models.export_file(run, tmp_path / "out.gguf")
    for number, changed in enumerate(
        ({}, {"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": None})
    ):
        file = rewrite(tmp_path / "out.gguf", tmp_path / f"{number}.gguf", changed)
        again = models.import_file(file, tmp_path / f"run_{number}").tokenizer
        assert (again.bos_id, again.eos_id) == (SIZE, SIZE + 1), changed
        assert again.with_start(again.encode(TEXT)).tolist() == ids
    silent = rewrite(tmp_path / "out.gguf", tmp_path / "silent.gguf", {"tokenizer.ggml.add_bos_token": False})
    assert models.import_file(silent, tmp_path / "silent").tokenizer.bos_id is None


@pytest.mark.parametrize("num_workers", [0, 1])
def test_each_document_begins_with_it(run, num_workers):
    tokenizer = run.tokenizer
    end = encoding.separator_ids(tokenizer, "auto")
    pieces = ["the king", None, "seas", None]
    found = np.concatenate(list(encoding.encode_documents(tokenizer, pieces, end, num_workers)))
    a, b = (tokenizer.encode(text).tolist() for text in ("the king", "seas"))
    assert found.tolist() == [SIZE, *a, SIZE + 1, SIZE, *b, SIZE + 1]


def test_a_conversation_begins_with_it_once_and_it_never_counts(run):
    tokenizer = run.tokenizer
    none = np.zeros(0, np.int32)
    turns = conversations.checked([{"role": "user", "content": "king"}], TEMPLATES["chatml"], "turns")
    fields = tokenizer.to_json()
    del fields["begin_of_text"]
    without = tokenizers.from_json(fields)
    parts = TEMPLATES["chatml"].prompt(turns)
    plain = np.concatenate(encoding.encode_segments(without, parts, none)).tolist()
    assert np.concatenate(encoding.encode_segments(tokenizer, parts, none)).tolist() == [~SIZE, *plain]
    own = [Segment(START, counts=False, mark=True), *parts]  # a template that writes it
    assert np.concatenate(encoding.encode_segments(tokenizer, own, none)).tolist() == [~SIZE, *plain]


def test_what_else_stands_around_a_text_is_refused_in_one_line(tmp_path):
    token = {"SpecialToken": {"id": END, "type_id": 0}}
    start = tokenizer_files.start_template(START, SIZE)
    after = start | {"single": [*start["single"], token]}
    after["special_tokens"] = start["special_tokens"] | {END: {"id": END, "ids": [SIZE + 1], "tokens": [END]}}
    cases = {
        "after": (after, "puts '<s>', '</s>' around each text"),
        "two": ({"type": "Sequence", "processors": [start, start]}, "puts '<s>' and '<s>' before each text"),
        "bert": ({"type": "BertProcessing", "sep": [END, SIZE + 1], "cls": [START, SIZE]}, "puts tokens around each text"),
    }  # fmt: skip
    for name, (part, words) in cases.items():
        folder = folder_of(tmp_path / name, document(post_processor=part))
        with pytest.raises(UserError) as error:
            published.import_folder(folder, tmp_path / "run")
        assert words in str(error.value) and "\n" not in str(error.value), name
        assert str(error.value).startswith(str(folder)), name
        assert not (tmp_path / "run").exists()
