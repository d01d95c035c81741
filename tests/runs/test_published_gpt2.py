"""GPT-2 folders: import and export lose nothing, logits are those of the architecture, and bad folders get a line."""

import contextlib
import dataclasses
import io
import json
import math
import os
import shlex
import sys
import unicodedata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgpt
from jaxgpt import config, evaluate, generate, train
from jaxgpt import gpt2 as gpt2_command
from jaxgpt.common import cli
from jaxgpt.data import byte_pairs, tokenizers
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import param_shapes
from jaxgpt.runs import checkpoint
from jaxgpt.runs import published as folders
from jaxgpt.runs.families import FAMILIES
from jaxgpt.runs.state import TrainState
from jaxgpt.runs.tensor_files import FILE, INDEX, open_tensors, write_tensors
from tests.small_runs import write_text

# --- a reference of its own: folders and logits in GPT-2's layout, by NumPy alone ------------------------


def sizes(**values) -> dict:
    """A config.json's values."""
    small = {"vocab_size": 23, "n_positions": 12, "n_embd": 8, "n_layer": 2, "n_head": 2}
    return {"model_type": "gpt2"} | small | values


def random_tensors(values: dict, seed: int = 0, prefix: str = "transformer.") -> dict[str, np.ndarray]:
    """Weights of the architecture, large enough for every part to matter."""
    rng = np.random.default_rng(seed)
    V, T, D = values["vocab_size"], values["n_positions"], values["n_embd"]
    F = values.get("n_inner") or 4 * D
    shapes = {"wte.weight": (V, D), "wpe.weight": (T, D), "ln_f.weight": (D,), "ln_f.bias": (D,)}
    for i in range(values["n_layer"]):
        for name, shape in {
            "ln_1.weight": (D,), "ln_1.bias": (D,), "ln_2.weight": (D,), "ln_2.bias": (D,),
            "attn.c_attn.weight": (D, 3 * D), "attn.c_attn.bias": (3 * D,),
            "attn.c_proj.weight": (D, D), "attn.c_proj.bias": (D,),
            "mlp.c_fc.weight": (D, F), "mlp.c_fc.bias": (F,),
            "mlp.c_proj.weight": (F, D), "mlp.c_proj.bias": (D,),
        }.items():  # fmt: skip
            shapes[f"h.{i}.{name}"] = shape
    shapes = {prefix + name: shape for name, shape in shapes.items()}
    if not values.get("tie_word_embeddings", True):
        shapes["lm_head.weight"] = (V, D)
    return {name: (0.4 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}


def write_folder(folder: Path, values: dict, tensors: dict[str, np.ndarray]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    write_tensors(folder / FILE, tensors, {"format": "pt"})
    return folder


def _gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


REFERENCE_ACTIVATIONS = {
    "gelu_new": _gelu_tanh,
    "gelu": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
}


def reference_logits(values: dict, tensors: dict[str, np.ndarray], tokens_T: np.ndarray) -> np.ndarray:
    """GPT-2's forward pass in float64 from the tensors as they are stored: logits [T, V]."""
    w = {name.removeprefix("transformer."): array.astype(np.float64) for name, array in tensors.items()}
    T, D, H = len(tokens_T), values["n_embd"], values["n_head"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * w[name + ".weight"] + w[name + ".bias"]

    def linear(x, name):
        return x @ w[name + ".weight"] + w[name + ".bias"]

    x = w["wte.weight"][tokens_T] + w["wpe.weight"][:T]
    for i in range(values["n_layer"]):
        qkv = np.split(linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn"), 3, axis=-1)
        q, k, v = (part.reshape(T, H, D // H).swapaxes(0, 1) for part in qkv)  # [H, T, K]
        scores = q @ k.swapaxes(1, 2) / (math.sqrt(D // H) if values.get("scale_attn_weights", True) else 1)
        weights = np.exp(scores - scores.max(-1, keepdims=True)) * np.tri(T)
        heads = (weights / weights.sum(-1, keepdims=True)) @ v
        x = x + linear(heads.swapaxes(0, 1).reshape(T, D), f"h.{i}.attn.c_proj")
        h = REFERENCE_ACTIVATIONS[values.get("activation_function", "gelu_new")](
            linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
        )
        x = x + linear(h, f"h.{i}.mlp.c_proj")
    return norm(x, "ln_f") @ w.get("lm_head.weight", w["wte.weight"]).T


def logits_of(run, tokens_T: np.ndarray) -> np.ndarray:
    apply = jax.jit(run.model.apply)  # one program compiles in less time than its parts
    return np.asarray(apply({"params": run.params}, jnp.array(tokens_T)[None]))[0]


# --- importing ------------------------------------------------------------------------------------------

SHAPES = {
    "small": sizes(),
    "untied, odd vocabulary": sizes(vocab_size=17, n_head=1, tie_word_embeddings=False),
    "five heads, another inner width": sizes(n_embd=20, n_head=5, n_inner=33, n_layer=1, n_positions=7),
    "gelu, no scale": sizes(activation_function="gelu", scale_attn_weights=False, n_layer=3),
    "relu": sizes(activation_function="relu", n_head=4),
    "squared relu": sizes(activation_function="relu2"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_imported_logits_are_the_architectures(tmp_path, name):
    values = SHAPES[name]
    tensors = random_tensors(values)
    run = folders.load(write_folder(tmp_path / "folder", values, tensors))
    tokens_T = np.random.default_rng(1).integers(0, values["vocab_size"], values["n_positions"])
    expected = reference_logits(values, tensors, tokens_T)
    assert np.abs(logits_of(run, tokens_T) - expected).max() < 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("name", ["small", "untied, odd vocabulary", "five heads, another inner width"])
def test_export_after_import_is_the_identity(tmp_path, name, prefix):
    values = SHAPES[name]
    tensors = random_tensors(values, prefix=prefix)
    folders.import_folder(write_folder(tmp_path / "folder", values, tensors), tmp_path / "run")
    export_run(jaxgpt.load(tmp_path / "run"), tmp_path / "out")
    files = open_tensors(tmp_path / "out")
    assert len(files.names()) == len(tensors)
    for tensor_name, array in tensors.items():
        base = tensor_name.removeprefix("transformer.")
        back = files.read(base if base == "lm_head.weight" else "transformer." + base)
        assert back.tobytes() == array.tobytes() and back.shape == array.shape, tensor_name
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {name: written[name] for name in values} == values


def test_shards_buffers_and_a_tied_head_that_is_stored_make_no_difference(tmp_path):
    values = sizes()
    tensors = random_tensors(values)
    plain = folders.load(write_folder(tmp_path / "plain", values, tensors))
    more = tensors | {"lm_head.weight": tensors["transformer.wte.weight"]}
    for i in range(2):
        more[f"transformer.h.{i}.attn.bias"] = np.tri(12, dtype=np.uint8)
        more[f"transformer.h.{i}.attn.masked_bias"] = np.float32(-1e4)
    folder = tmp_path / "sharded"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    shards = {f"model-{i}.safetensors": sorted(more)[i::3] for i in range(3)}
    for shard, names in shards.items():
        write_tensors(folder / shard, {name: more[name] for name in names})
    places = {name: shard for shard, names in shards.items() for name in names}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    jax.tree.map(np.testing.assert_array_equal, plain.params, folders.load(folder).params)


def test_half_precision_is_widened_exactly(tmp_path):
    values = sizes()
    half = {name: array.astype(np.float16) for name, array in random_tensors(values).items()}
    run = folders.load(write_folder(tmp_path / "folder", values, half))
    table = np.asarray(run.params["token_embedding"]["embedding"])
    np.testing.assert_array_equal(table, half["transformer.wte.weight"].astype(np.float32))


def test_an_imported_run_generates_evaluates_and_says_where_it_comes_from(tmp_path, monkeypatch):
    values = sizes(n_positions=16)
    tensors = random_tensors(values)
    monkeypatch.chdir(tmp_path)
    write_folder(Path("folder"), values, tensors)
    out = command("gpt2 import --from_dir folder --workdir run")
    assert "2 layers, 2 heads, d_model 8" in out and "no tokenizer" in out and "init_from=run" in out
    text = command("generate --workdir run --prompt '3 1' --max_new_tokens 5 --temperature 0")
    ids = [int(i) for i in text.split()]
    assert ids[:2] == [3, 1] and len(ids) == 7
    for n in range(2, 7):
        assert ids[n] == reference_logits(values, tensors, np.array(ids[:n]))[-1].argmax()
    Path("text.txt").write_text(" ".join(map(str, ids)))
    figures = json.loads(command("evaluate --workdir run --text text.txt --json"))
    logits = reference_logits(values, tensors, np.array(ids))[:-1]
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(6), ids[1:]]
    assert abs(figures["loss"] - losses.mean()) < 1e-4
    facts = json.loads(Path("run/run.json").read_text())
    assert facts["imported"]["name"] == "folder" and len(facts["imported"]["sha256"][FILE]) == 64
    assert facts["starts"][0]["versions"]["jax"] and jaxgpt.load("run").step == 0
    assert folders.is_published("folder") and not folders.is_published("run")


# --- exporting ------------------------------------------------------------------------------------------


def export_run(run, folder) -> list[str]:
    return folders.export_run(run, folder, "gpt2")


def our_run(tokenizer=None, **fields) -> folders.Run:
    """A run of ours with random parameters, biases and scales included."""
    tokenizer = tokenizer or tokenizers.CharTokenizer("abcdefghijk")
    base = {"context_length": 12, "d_model": 16, "num_layers": 2, "num_heads": 4, "activation": "gelu_tanh"}
    cfg = config.ModelConfig(**base | {"vocab_size": tokenizer.vocab_size} | fields)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32), param_shapes(cfg)
    )
    return folders.Run(config.Config(model=cfg), GPT(cfg), params, tokenizer, 7, Path("runs/ours"))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"use_bias": False, "activation": "gelu"},
        {"num_kv_heads": 2, "tie_embeddings": False, "vocab_multiple": 8},
        {"num_kv_heads": 1, "position": "sinusoidal", "vocab_multiple": 16, "d_ff": 24},
        {"position": "none", "activation": "relu_squared", "attention_scale": 1.0},
        {
            "attention_scale": 0.5,
            "attention_window": 12,
            "activation": "relu",
        },  # 1 / sqrt(4); all of the context
    ],
)
def test_exported_logits_are_ours(tmp_path, fields):
    run = our_run(**fields)
    export_run(run, tmp_path / "out")
    files = open_tensors(tmp_path / "out")
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    tokens_T = np.random.default_rng(1).integers(0, 11, 12)
    expected = reference_logits(values, {name: files.read(name) for name in files.names()}, tokens_T)
    assert expected.shape == (12, 11)
    assert np.abs(logits_of(run, tokens_T) - expected).max() < 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"position": "rotary"}, "model.position='rotary'"),
        ({"norm": "rmsnorm"}, "model.norm='rmsnorm'"),
        ({"activation": "swiglu"}, "model.activation='swiglu'"),
        ({"qk_norm": True}, "no model.qk_norm"),
        ({"attention_scale": 0.3}, "model.attention_scale=0.3"),
        ({"attention_softcap": 5.0}, "no model.attention_softcap"),
        ({"attention_window": 4}, "model.attention_window=4"),
        ({"value_residual": True}, "no model.value_residual"),
        ({"embedding_residual": True}, "no model.embedding_residual"),
        ({"logit_softcap": 30.0}, "no model.logit_softcap"),
    ],
)
def test_each_thing_that_gpt2_lacks_is_refused(tmp_path, fields, words):
    with pytest.raises(config.UserError) as error:
        export_run(our_run(**fields), tmp_path / "out")
    assert words in str(error.value) and "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_all_obstacles_are_told_at_once():
    cfg = config.ModelConfig(
        position="rotary", norm="rmsnorm", qk_norm=True, activation="geglu", logit_softcap=9.0
    )
    assert len(FAMILIES["gpt2"].obstacles(cfg)) == 5


def test_what_is_written_otherwise_is_said(tmp_path):
    run = our_run(use_bias=False, num_kv_heads=2, position="none", vocab_multiple=4, dtype="bfloat16")
    notes = export_run(run, tmp_path / "out")
    for words in (
        "zeros",
        "2 heads of keys and values is written 2 times",
        "table of 12 rows",
        "1 rows that pad",
        "bfloat16",
    ):
        assert any(words in note for note in notes), words
    assert json.loads((tmp_path / "out" / folders.EXPORT).read_text())["notes"] == notes


# --- tokenizers -----------------------------------------------------------------------------------------

TEXT = (
    "It's the king’s 2nd word:  café, naïve\t\tÆsop\n\n1,024 x² ½ Ⅷ _under_score__ e\u0301 \u3000中文 😀\r\n"
    "\x1c\x85 <unk> a'b' 'c ’d १२३ don''t ‿ the end "
)


def tokenizer_of(kind: str) -> tokenizers.Tokenizer:
    if kind == "gpt2":
        return tokenizers.load_gpt2("")
    read = lambda: iter([TEXT * 3])  # noqa: E731
    return tokenizers.train(kind, read, {"char": None, "word": 30, "bpe": 300}[kind])


@pytest.mark.parametrize("kind", ["char", "word", "bpe", "gpt2"])
def test_an_exported_tokenizer_gives_the_same_ids_and_comes_back(tmp_path, kind):
    from tokenizers import Tokenizer

    tokenizer = tokenizer_of(kind)
    run = our_run(tokenizer, num_layers=1)
    export_run(run, tmp_path / "out")
    built = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert built.get_vocab_size() == tokenizer.vocab_size
    rng = np.random.default_rng(0)
    texts = [TEXT, *("".join(rng.permutation(list(TEXT))) for _ in range(50))]
    for text in texts:
        ids = tokenizer.encode(text).tolist()
        assert built.encode(text).ids == ids
        assert built.decode(ids, skip_special_tokens=False) == tokenizer.decode(ids)
    back = folders.load(tmp_path / "out").tokenizer
    assert tokenizers.fingerprint(back) == tokenizers.fingerprint(tokenizer)
    (tmp_path / "out" / "jaxgpt_tokenizer.json").unlink()
    if kind in ("bpe", "gpt2"):  # from the files that others write, too
        for names in (["vocab.json", "merges.txt"], []):
            back = folders.load(tmp_path / "out").tokenizer
            assert tokenizers.fingerprint(back) == tokenizers.fingerprint(tokenizer)
            for name in names:
                (tmp_path / "out" / name).unlink()


def test_a_word_tokenizer_cuts_alike_at_characters_of_every_kind():
    from jaxgpt.runs.tokenizer_files import _built

    tokenizer = tokenizers.WordTokenizer(["a"])
    built = _built(tokenizer)
    # Characters that have been there for long: Python's tables and those of tokenizers may be of different years.
    # Of the many thousand ideographs and syllables every 64th.
    category = unicodedata.ucd_3_2_0.category
    bulk = ("Lo", "Co", "Cs", "Cn")
    codes = [c for c in range(1, 0x110000) if category(chr(c)) not in bulk]
    codes += [c for c in range(0, 0x110000, 64) if category(chr(c)) in ("Lo", "Co")]
    known = [chr(c) for c in codes]
    for start in range(0, len(known), 4096):
        text = "".join(f"a{c}a{c}{c}1{c}" for c in known[start : start + 4096])
        assert built.encode(text).ids == tokenizer.encode(text).tolist(), hex(ord(known[start]))


def test_a_character_that_is_not_there_is_refused_there_too(tmp_path):
    from tokenizers import Tokenizer

    export_run(our_run(), tmp_path / "out")
    with pytest.raises(Exception, match="UNK"):
        Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json")).encode("Z")


def published(**changes) -> dict:
    """A tokenizer.json of 300 byte pairs, as the package tokenizers writes it, with changes."""
    tokenizer = tokenizer_of("bpe")
    built = byte_pairs.build(tokenizer.vocab, tokenizer.merges)
    model = changes.pop("model", {})
    document = json.loads(built.to_str()) | {
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    }
    return document | {"model": document["model"] | model} | changes


def added(*tokens: tuple[str, int]) -> list[dict]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [{"id": i, "content": token, "special": True, **flags} for token, i in tokens]


def test_folders_whose_tokenizer_is_not_gpt2s_own_give_the_same_ids_and_logits(tmp_path):
    """Padded rows, added tokens, other parts of a tokenizer.json: each as the package tokenizers, for any text."""
    from tokenizers import Tokenizer

    size = len(published()["model"]["vocab"])
    prefixed = published()["pre_tokenizer"] | {"add_prefix_space": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    cases = {  # rows, tokenizer.json, kind, end of text, words of a note
        "plain": (size, published(post_processor=byte_level), "bpe", None, ""),
        "padded": (size + 5, published(), "bpe", None, "the last 5 are padding"),
        "padded to 64": (320, published(), "bpe", None, "are padding"),
        "pad token": (size + 1, published(added_tokens=added(("[PAD]", size))), "huggingface", None, "'[PAD]'"),
        "end of text": (size + 1, published(added_tokens=added((tokenizers.END_OF_TEXT, size))), "huggingface", size, "ordinary text"),
        "both, padded": (384, published(added_tokens=added(("[PAD]", size), (tokenizers.END_OF_TEXT, size + 1))), "huggingface", size + 1, "padding"),
        "token without a row": (size, published(added_tokens=added(("[PAD]", size))), "bpe", None, "'[PAD]' are left out"),
        "space in front": (size, published(pre_tokenizer=prefixed), "huggingface", None, ""),
        "NFC": (size, published(normalizer={"type": "NFC"}), "huggingface", None, ""),
        "suffix": (size, published(model={"end_of_word_suffix": "</w>"}), "huggingface", None, ""),
        "white space": (size, published(pre_tokenizer={"type": "Whitespace"}), "huggingface", None, ""),
    }  # fmt: skip
    for name, (rows, document, kind, eos, words) in cases.items():
        values = sizes(vocab_size=rows)
        tensors = random_tensors(values)
        folder = write_folder(tmp_path / name, values, tensors)
        (folder / "tokenizer.json").write_text(json.dumps(document))
        loaded = folders._load(folder, "gpt2")
        run, notes = loaded.run, loaded.notes
        assert (run.tokenizer.kind, run.tokenizer.eos_id) == (kind, eos), name
        assert words in "; ".join(notes) and bool(words) == bool(notes), name
        built = Tokenizer.from_file(str(folder / "tokenizer.json"))
        for text in (TEXT, " the king", "e\u0301", "", "\n\n x"):
            assert run.tokenizer.encode(text).tolist() == built.encode(text).ids, name
        tokens_T = np.arange(7) * 31
        logits = np.asarray(run.model.apply({"params": run.params}, tokens_T[None]))[0]
        known = run.tokenizer.vocab_size
        expected = reference_logits(values, tensors, tokens_T)
        assert np.abs(logits[:, :known] - expected[:, :known]).max() < 2e-5 * np.abs(expected).max(), name
        assert (logits[:, known:] == -np.inf).all(), name


def test_added_tokens_next_to_the_two_files_and_names_in_a_wrapper(tmp_path):
    tokenizer = tokenizer_of("bpe")
    size = tokenizer.vocab_size
    values = sizes(vocab_size=size + 2) | {"hidden_size": 8, "num_hidden_layers": 2}
    del values["n_embd"], values["n_layer"]
    tensors = random_tensors(sizes(vocab_size=size + 2))
    wrapped = {f"_orig_mod.module.{name}": array for name, array in tensors.items()}
    folder = write_folder(tmp_path / "folder", values, wrapped)
    write_tokenizer(tokenizer.vocab, tokenizer.merges)(folder)
    (folder / "added_tokens.json").write_text(json.dumps({"[PAD]": size, tokenizers.END_OF_TEXT: size + 1}))
    run = folders.load(folder)
    assert run.tokenizer.vocab_size == size + 2 and run.tokenizer.eos_id == size + 1
    np.testing.assert_array_equal(run.tokenizer.encode(TEXT), tokenizer.encode(TEXT))
    plain = folders.load(write_folder(tmp_path / "plain", sizes(vocab_size=size + 2), tensors))
    jax.tree.map(np.testing.assert_array_equal, run.params, plain.params)


@pytest.mark.slow
def test_padding_rows_are_never_generated_and_a_padded_model_is_trained_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = sizes(vocab_size=320, n_positions=16, tie_word_embeddings=False)
    tensors = random_tensors(values)
    tensors["lm_head.weight"][303:] = 0.0
    tensors["lm_head.weight"][303:] += 100 * np.sign(
        tensors["transformer.ln_f.bias"]
    )  # they would always win
    folder = write_folder(Path("folder"), values, tensors)
    size = len(published()["model"]["vocab"])
    document = published(added_tokens=added(("[PAD]", size)), normalizer={"type": "NFC"})
    (folder / "tokenizer.json").write_text(json.dumps(document))
    out = command("gpt2 import --from_dir folder --workdir run")
    assert "note: the tokenizer has" in out and "are padding" in out
    command("generate --workdir run --prompt 'the king' --max_new_tokens 8 --seed 1")  # decodes every id
    run = jaxgpt.load("run")
    command("gpt2 export --workdir run --to_dir out")
    assert json.loads(Path("out/tokenizer.json").read_text()) == document
    Path("out/jaxgpt_tokenizer.json").unlink()
    assert folders.load("out").tokenizer.encode(TEXT).tolist() == run.tokenizer.encode(TEXT).tolist()
    Path("text.txt").write_text(TEXT * 40)
    figures = json.loads(command("evaluate --workdir run --text text.txt --json"))
    assert 0 < figures["loss"] < 20 and run.config.model.table_rows == 320
    Path("config.py").write_text(
        "from jaxgpt.config import default_config\n\n\ndef get_config():\n    return default_config()\n"
    )
    lora = " --config.model.lora_rank=2 --config.model.lora_targets=query,value"
    shape = "num_layers=2 num_heads=2 d_model=8 context_length=16 activation=gelu_tanh tie_embeddings=false"
    fields = [f"model.{field}" for field in shape.split()] + [
        "init_from=run", "data.path=text.txt", "data.tokenizer=huggingface", "data.tokenizer_path=run/tokenizer.json",
        "data.batch_size=2", "train.num_steps=2", "train.eval_every=2", "model.vocab_multiple=64",
    ]  # fmt: skip
    for new, more in (("all", ""), ("lora", lora)):
        command(
            f"train --config config.py --workdir {new}{more} "
            + " ".join(f"--config.{field}" for field in fields)
        )
        trained = jaxgpt.load(new)
        assert trained.tokenizer.vocab_size == run.tokenizer.vocab_size
        np.testing.assert_array_equal(trained.tokenizer.encode(TEXT), run.tokenizer.encode(TEXT))


def test_ids_are_their_own_text():
    tokenizer = tokenizers.IdsTokenizer(30)
    ids = tokenizer.encode("3 29\n0")
    assert ids.tolist() == [3, 29, 0] and tokenizer.decode(ids) == " 3 29 0"
    assert tokenizers.from_json(tokenizer.to_json()).vocab_size == 30
    for text, position in (("3 thirty", 2), ("30", 0), ("3 -1", 2), ("1 ²", 2)):
        with pytest.raises(config.UserError, match=f"at position {position} is not a token id"):
            tokenizer.encode(text)


# --- what goes wrong ------------------------------------------------------------------------------------

MAINS = {"gpt2": gpt2_command.main, "generate": generate.main, "evaluate": evaluate.main, "train": train.main}


def command(line: str) -> str:
    """What a command prints."""
    name, *argv = shlex.split(line)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        MAINS[name](argv)
    return printed.getvalue()


def set_config(**values):
    """The folder's config.json, changed; None takes a field away."""

    def change(folder: Path) -> None:
        changed = json.loads((folder / "config.json").read_text()) | values
        kept = {name: value for name, value in changed.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(kept))

    return change


def set_tensors(change):
    def changed(folder: Path) -> None:
        files = open_tensors(folder)
        tensors = {name: files.read(name) for name in files.names()}
        change(tensors)
        write_tensors(folder / FILE, tensors)

    return changed


def put(name: str, array: np.ndarray):
    return set_tensors(lambda tensors: tensors.update({name: array}))


def write(name: str, content: str | bytes):
    return lambda folder: (folder / name).write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )


def write_tokenizer(vocab: list[str], merges: list[str]):
    def written(folder: Path) -> None:
        (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}))
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))

    return written


def both(*changes):
    return lambda folder: [change(folder) for change in changes]


BYTES = list(byte_pairs.BYTE_ALPHABET)
BPE_JSON = {
    "model": {"type": "BPE", "vocab": {token: i for i, token in enumerate(BYTES[:23])}, "merges": []},
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
    "normalizer": None,
}

TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "!", "type_id": 0}}],
    "pair": [], "special_tokens": {"!": {"id": "!", "ids": [0], "tokens": ["!"]}},
}  # fmt: skip

BAD_FOLDERS = {
    "no config": (lambda f: (f / "config.json").unlink(), "cannot read folder/config.json"),
    "config is no JSON": (write("config.json", "{"), "is not valid JSON"),
    "config is a list": (write("config.json", "[]"), "not a JSON object"),
    "config is deep": (write("config.json", "[" * 200_000), "is not valid JSON"),
    "config is binary": (write("config.json", b"\xff\xfe"), "is not valid JSON"),
    "config is huge": (write("config.json", " " * (2 << 20)), "larger than 1 MiB"),
    "another model": (set_config(model_type="llama"), "model_type='llama': only 'gpt2'"),
    "size is text": (set_config(n_embd="8"), "n_embd='8' is not a whole number"),
    "size is true": (set_config(n_layer=True), "n_layer=True is not a whole number"),
    "size is negative": (set_config(n_positions=-1), "n_positions=-1"),
    "size is absurd": (set_config(vocab_size=10**30), "vocab_size=1000000"),
    "layers are many": (set_config(n_layer=2**31 - 1), "holds 2 layers", "n_layer=2147483647"),
    "vocabulary is large": (set_config(vocab_size=2**31 - 1), "wte.weight is [23, 8], not [2147483647, 8]"),
    "width is large": (set_config(n_embd=2**31 - 2), "is [23, 8], not [23, 2147483646]"),
    "heads": (set_config(n_head=3), "n_embd=8 is not a multiple of n_head=3"),
    "activation": (set_config(activation_function="silu"), "'silu' is not one of gelu_new"),
    "activation is a list": (set_config(activation_function=[]), "activation_function=[]"),
    "epsilon": (set_config(layer_norm_epsilon=0), "layer_norm_epsilon=0"),
    "inverse layer": (set_config(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx"),
    "cross attention": (set_config(add_cross_attention=True), "add_cross_attention=true"),
    "switch is text": (set_config(scale_attn_weights="yes"), "scale_attn_weights='yes' is not true or false"),
    "dropout": (set_config(resid_pdrop=1.5), "resid_pdrop=1.5"),
    "code of its own": (set_config(auto_map={"AutoModel": "x.py"}), "auto_map", "no such code is executed"),
    "quantized": (set_config(quantization_config={"bits": 4}), "quantization_config"),
    "two problems": (set_config(n_head=3, activation_function="silu"), "n_head=3; activation_function='silu'"),
    "no weights": (lambda f: (f / FILE).unlink(), "neither model.safetensors nor"),
    "pickled": (lambda f: (f / FILE).rename(f / "pytorch_model.bin"), "run any code", "save_pretrained"),
    "cut off": (lambda f: os.truncate(f / FILE, 5000), "cut off"),
    "missing tensor": (set_tensors(lambda t: t.pop("transformer.h.1.ln_2.bias")), "lacks 1 tensor (transformer.h.1.ln_2.bias)"),
    "extra tensor": (put("score.weight", np.ones((2, 8), np.float32)), "has 1 unexpected tensor (score.weight)"),
    "other names": (set_tensors(lambda t: [t.update({n.replace("ln_f", "norm"): t.pop(n)}) for n in list(t)]), "lacks 2", "has 2 unexpected"),
    "untied without a head": (set_config(tie_word_embeddings=False), "lacks 1 tensor (lm_head.weight)"),
    "tied with another head": (put("lm_head.weight", np.ones((23, 8), np.float32)), "tie_word_embeddings=false"),
    "shape": (put("transformer.wpe.weight", np.ones((5, 8), np.float32)), "wpe.weight is [5, 8], not [12, 8]"),
    "nan": (put("transformer.wpe.weight", np.full((12, 8), np.nan, np.float32)), "96 of the 96 numbers"),
    "whole numbers": (lambda f: write_tensors(f / FILE, {n: (a.astype(np.int32) if "wpe" in n else a) for n, a in random_tensors(sizes()).items()}), "wpe.weight has dtype I32"),
    "tokenizer too small": (write_tokenizer(BYTES, []), "the tokenizer has 256 tokens, the model 23"),
    "merges of another vocabulary": (write_tokenizer(BYTES, ["t h"]), "'t h', which is not a pair of tokens that make"),
    "vocab alone": (write("vocab.json", "{}"), "has no merges.txt"),
    "vocab with gaps": (both(write("merges.txt", ""), write("vocab.json", '{"a": 5}')), "without a gap"),
    "vocab too large": (lambda f: (f / "vocab.json").open("wb").truncate(65 << 20), "larger than 64 MiB"),
    "tokenizer lacks bytes": (write("tokenizer.json", json.dumps(BPE_JSON)), "lacks 233 of the 256 bytes", "only token ids"),
    "another tokenizer": (write("tokenizer.json", json.dumps(BPE_JSON | {"model": {"type": "Unigram", "vocab": [], "merges": []}})), "tokenizers can't read it"),
    "tokens around a text": (write("tokenizer.json", json.dumps(BPE_JSON | {"post_processor": TEMPLATE})), "post_processor TemplateProcessing puts '!' around each text"),
    "random pairs": (write("tokenizer.json", json.dumps(BPE_JSON | {"model": BPE_JSON["model"] | {"dropout": 0.1}})), "its ids are random"),
    "added_tokens.json is a list": (both(write_tokenizer(BYTES[:23], []), write("added_tokens.json", "[]")), "is not a dictionary token -> id"),
    "tokenizer of another model": (both(set_config(vocab_size=5000), put("transformer.wte.weight", np.ones((5000, 8), np.float32)), write_tokenizer(BYTES, [])), "the tokenizer has 256 tokens, the model 5,000"),
    "no n_layer": (set_config(n_layer=None), "holds 2 layers", "lacks n_layer, and n_layer=12 is the default"),
    "no n_positions": (set_config(n_positions=None), "it lacks n_positions=1024"),
    "two names": (set_config(hidden_size=9), "hidden_size=9 and n_embd=8, two names of one field"),
    "a wrapper of some names": (set_tensors(lambda t: t.update({"module.transformer.wpe.weight": t.pop("transformer.wpe.weight")})), "lacks 1 tensor (transformer.wpe.weight)", "module.transformer.wpe.weight"),
    "added tokens": (write("tokenizer.json", json.dumps(BPE_JSON | {"added_tokens": [{"content": "<pad>"}]})), "is not a tokenizer.json"),
    "tokenizer is no JSON": (write("tokenizer.json", "{"), "is not a tokenizer.json"),
    "our tokenizer is damaged": (write("jaxgpt_tokenizer.json", '{"kind": "x"}'), "not a tokenizer"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_a_bad_folder_gets_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, name):
    change, *words = BAD_FOLDERS[name]
    monkeypatch.chdir(tmp_path)
    change(write_folder(Path("folder"), sizes(), random_tensors(sizes())))
    fails("gpt2 import --from_dir folder --workdir run", monkeypatch, capsys, *words)
    assert sorted(os.listdir()) == ["folder"]


def fails(line: str, monkeypatch, capsys, *words: str) -> None:
    """Exit code 2 and one line that has the words."""
    name, *argv = shlex.split(line)
    monkeypatch.setattr(sys, "argv", [name, *argv])
    with pytest.raises(SystemExit) as exit_:
        cli.run(MAINS[name])
    said = capsys.readouterr().err
    assert exit_.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1, said
    assert all(word in said for word in words), said


def test_what_is_there_is_not_overwritten_and_flags_are_checked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_folder(Path("folder"), sizes(), random_tensors(sizes()))
    command("gpt2 import --from_dir folder --workdir run")
    before = {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    write_text(Path("text.txt"))
    Path("config.py").write_text("from jaxgpt.config import default_config as get_config")
    for line, *words in (
        (
            "gpt2 import --from_dir folder --workdir run",
            "--workdir=run already holds a run",
            "new or empty",
        ),
        ("gpt2 import --from_dir folder --workdir folder", "--workdir=folder already holds files"),
        ("gpt2 import --from_dir nope --workdir new", "no folder nope"),
        ("gpt2 import --workdir new", "one of --from_dir and --from_hub"),
        ("gpt2 export --workdir run --to_dir folder", "--to_dir=folder already holds files"),
        ("gpt2 export --workdir run --to_dir new --step 3", "no checkpoint of step 3"),
        ("gpt2 export --workdir run --to_dir text.txt/new", "text.txt"),
        ("gpt2", "import | export", "required"),
        ("evaluate --workdir run", "was imported from folder", "--text FILE"),
        ("generate --workdir run --prompt the", "'the' at position 0 is not a token id"),
        (
            "train --config config.py --config.data.path=text.txt --workdir run",
            "imported from folder",
            "init_from=run",
        ),
    ):
        fails(line, monkeypatch, capsys, *words)
    assert {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file() and p.name != ".lock"} == before
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    fails("gpt2 import --from_hub gpt2 --workdir new", monkeypatch, capsys, 'pip install "jaxgpt[hub]"')
    assert not Path("new").exists()


def test_a_run_of_ours_is_exported_and_comes_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = our_run(vocab_multiple=8, d_ff=64)
    checkpoints = checkpoint.Checkpoints("run")
    for step, loss in ((3, 1.0), (7, 2.0)):
        state = TrainState(jnp.int32(step), jax.tree.map(lambda x, step=step: step * x, run.params), None)
        checkpoints.save(state, run.config, run.tokenizer, loss)
    checkpoints.close()
    out = command("gpt2 export --workdir run --to_dir out --step best")
    assert "rows that pad the vocabulary are cut" in out and "step 3 of run written to out" in out
    assert "layers" in command("gpt2 import --from_dir out --workdir back")
    back = jaxgpt.load("back")
    assert back.tokenizer.characters == run.tokenizer.characters and back.config.data.tokenizer == "char"
    assert dataclasses.replace(back.config.model, vocab_multiple=8) == run.config.model
    table = np.asarray(run.params["token_embedding"]["embedding"])
    np.testing.assert_array_equal(back.params["token_embedding"]["embedding"], 3 * table[:11])
    export_run(back, "again")
    assert Path("again", FILE).read_bytes() == Path("out", FILE).read_bytes()


def test_attention_has_a_dropout_rate_of_its_own():
    family, given = FAMILIES["gpt2"], {"model_type": "gpt2", "resid_pdrop": 0.2}
    other, _ = family.read_config(given | {"attn_pdrop": 0.0}, "config.json")
    same, _ = family.read_config(given | {"attn_pdrop": 0.2}, "config.json")
    assert (other.dropout_rate, other.attention_dropout_rate) == (0.2, 0.0)
    assert (same.dropout_rate, same.attention_dropout_rate) == (0.2, None)
    assert family.write(other)["attn_pdrop"] == 0.0
