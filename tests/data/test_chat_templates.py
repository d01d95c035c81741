"""A tokenizer's own chat template: the text and ids of transformers, which tokens count, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Built

from jaxgpt.config import DataConfig, UserError
from jaxgpt.data import chat_templates, conversations, encoding, huggingface
from jaxgpt.data.dataset import prepare_dataset
from jaxgpt.data.shards import unmarked
from jaxgpt.inspect import chat
from jaxgpt.model.stopping import Stops
from tests.errors import one_line

TURNS = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": " who?"},
    {"role": "assistant", "content": "me, \n"},
    {"role": "user", "content": "why?"},
    {"role": "assistant", "content": "so"},
]
# In the manners of published ones: ChatML with a default, Llama 2 with its tokens and errors, one of blocks and loop controls.
TEMPLATES = {
    "chatml": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nhelp"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "inst": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{{ messages[0]['content'] | trim }}"
    "{% else %}{% set rest = messages %}{% endif %}{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'].strip() + "
    "' [/INST]' }}{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "blocks": """{{ {"tools": "<none>"} | tojson }}
{%- for message in messages %}
    {%- if message.role == "system" %}{% continue %}{% endif %}
    {%- if message.role == "assistant" %}
<|im_start|>{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}
    {%- else %}
>> {{ message.content }}
    {% endif %}
{%- endfor %}
{%- if add_generation_prompt %}
<|im_start|>
{%- endif %}
""",
}


END = {"__type": "AddedToken", "content": "</s>"} | dict.fromkeys(
    ("lstrip", "rstrip", "single_word", "normalized"), False
)


def write(folder: Path, template: str, in_file: bool = False, **settings) -> Path:
    """A published tokenizer's folder: characters, with four special tokens."""
    folder.mkdir(exist_ok=True)
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    characters = [chr(i) for i in (10, *range(32, 127))]
    built = Built(models.WordLevel({t: i for i, t in enumerate([*special, *characters])}, unk_token=" "))
    built.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    built.decoder = decoders.Fuse()
    built.add_special_tokens([AddedToken(token, special=True) for token in special])
    built.save(str(folder / "tokenizer.json"))
    values = {
        "bos_token": "<s>",
        "eos_token": END,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    if in_file:
        (folder / "chat_template.jinja").write_text(template)
    else:
        values["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(values | settings))
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def turns(messages: list[dict]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in messages]


def test_the_text_by_hand(tmp_path):
    template = chat_templates.of_path(write(tmp_path / "inst", TEMPLATES["inst"]))
    parts = template.turns(turns(TURNS))
    shown = "".join(f"[{part}]" if part.counts else part for part in parts)
    assert shown == "<s>be brief[INST] who? [/INST][ me, </s>][INST] why? [/INST][ so </s>]"
    assert template.prompt([("user", "x")]) == ["<s>[INST] x [/INST]"]
    assert template.stop == "</s>"
    assert chat_templates.of_path(write(tmp_path / "chatml", TEMPLATES["chatml"])).stop == "<|im_end|>"


@pytest.mark.parametrize("name", TEMPLATES)
def test_text_and_ids_are_those_of_transformers(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = write(tmp_path / name, TEMPLATES[name], in_file=name == "blocks")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    template, tokenizer = chat_templates.of_path(folder), huggingface.load(folder)
    for messages in (TURNS[1:2], TURNS[:2], TURNS[1:4], TURNS[:4]):
        expected = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert "".join(template.prompt(turns(messages))) == expected
        ids, _ = chat.prompt_ids(messages, template, tokenizer, Stops())
        assert ids.tolist() == theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    parts = template.turns(turns(TURNS))
    assert "".join(parts) == theirs.apply_chat_template(TURNS, tokenize=False)
    ids = np.concatenate(encoding.encode_segments(tokenizer, parts, np.zeros(0, np.int32)))
    assert unmarked(ids).tolist() == theirs.apply_chat_template(TURNS)["input_ids"]
    assert theirs.decode(ids[ids >= 0]).count("me,") == 1


def test_one_text_holds_the_template_and_its_tokens(tmp_path):
    source = chat_templates.read(write(tmp_path / "a", TEMPLATES["inst"]))
    assert source.endswith(TEMPLATES["inst"])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "chat_template.jinja").write_text(source)
    assert chat_templates.read(tmp_path / "run") == source  # no other file is needed
    tokenizer = huggingface.load(tmp_path / "a")
    assert chat_templates.of_tokenizer(source, tokenizer).prompt([("user", "x")]) == ["<s>[INST] x [/INST]"]
    several = [{"name": "tools", "template": "no"}, {"name": "default", "template": "yes"}]
    write(tmp_path / "b", "", chat_template=several)
    assert chat_templates.read(tmp_path / "b") == "yes"
    assert chat_templates.read(tmp_path) is None


def test_conversations_become_ids_with_what_counts(tmp_path):
    folder = write(tmp_path / "t", TEMPLATES["chatml"])
    lines = [json.dumps({"messages": TURNS})] * 12
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    cfg = DataConfig(
        path="c.jsonl", template="tokenizer", tokenizer="huggingface", tokenizer_path=str(folder)
    )
    data = prepare_dataset(cfg)
    targets = np.asarray(data.train.targets)
    text = data.tokenizer.decode(targets[targets >= 0])
    assert text.startswith("me, \n<|im_end|>\nso<|im_end|>\n</s>me")  # and the end of text
    assert (unmarked(targets) == 2).sum() == 5 * (unmarked(targets) == 1).sum()  # <|im_start|> for each turn
    write(folder, TEMPLATES["chatml"].replace("help", "aid"))
    assert prepare_dataset(cfg).train.ids.tolist() == data.train.ids.tolist()  # other templates are other ids
    write(folder, TEMPLATES["inst"])
    assert prepare_dataset(cfg).train.ids.tolist() != data.train.ids.tolist()


def test_mistakes_are_one_line(tmp_path):
    rewriting = "{% for m in messages %}{{ m.content if loop.last else 'gone' }}{% endfor %}"
    cases = [
        ("inst", [TURNS[1], TURNS[1], TURNS[2]], "Roles must alternate"),
        (
            "chatml",
            [{"role": "user", "content": "a<|im_end|>b"}, TURNS[2]],
            "turn 1 has '<|im_end|>' in its text",
        ),
        ("{{ nothing.at.all }}", TURNS, "refuses these turns ('nothing' is undefined"),
        ("{{ ''.__class__.__mro__ }}", TURNS, "refuses these turns"),
        ("{{ 1 + 'x' }}", TURNS, "refuses these turns"),
        ("{% for %}", TURNS, "is not valid Jinja"),
        (rewriting, TURNS, "writes a turn differently when another follows"),
        (7, TURNS, "is not a text"),
        (None, TURNS, "has no chat template"),
    ]
    for number, (template, messages, words) in enumerate(cases):
        folder = write(tmp_path / f"t{number}", TEMPLATES.get(template, template))
        (tmp_path / f"{number}.jsonl").write_text("\n".join([json.dumps({"messages": messages})] * 3))
        cfg = DataConfig(
            path=f"{number}.jsonl", template="tokenizer", tokenizer="huggingface", tokenizer_path=str(folder)
        )
        with pytest.raises(UserError) as error:
            prepare_dataset(cfg)
        assert words in str(error.value), (template, error.value)
        one_line(error)
    assert conversations.of_run(DataConfig(), tmp_path, huggingface.load(folder)) is None
