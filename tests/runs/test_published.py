"""Folders of published models: every family comes in and goes out without loss, and what it can't express is refused."""

import contextlib
import dataclasses
import io
import json
import math
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgpt
from jaxgpt import convert
from jaxgpt.common.cli import read_config
from jaxgpt.config import Config, ModelConfig, UserError
from jaxgpt.data.tokenizers import CharTokenizer, IdsTokenizer
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import count_params, param_shapes
from jaxgpt.runs import published
from jaxgpt.runs.families import FAMILIES, for_export
from jaxgpt.runs.load import Run
from jaxgpt.runs.tensor_files import FILE, INDEX, open_tensors, write_tensors
from jaxgpt.training import transfer
from tests.models import TINY, random_params

TOKENS = np.array([3, 1, 4, 1, 5, 9, 2])
LLAMA_SIZES = {
    "vocab_size": 11, "max_position_embeddings": 8, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
    "num_attention_heads": 2,
}  # fmt: skip
# Models in a family's own terms: import gives the config that was exported.
MODERN = dataclasses.replace(
    TINY, position="rotary", norm="rmsnorm", activation="swiglu", num_kv_heads=1, norm_epsilon=1e-6, use_bias=False,
)  # fmt: skip
NEOX = dataclasses.replace(TINY, position="rotary", rotary_fraction=0.5, parallel_residual=True)
QWEN = dataclasses.replace(MODERN, qk_norm=True, qk_norm_scale=True)
OWN = {
    "llama": [
        MODERN,
        dataclasses.replace(MODERN, use_bias=True, tie_embeddings=False, head_dim=6, rotary_base=500.0, activation="geglu"),
        dataclasses.replace(MODERN, attention_bias=True, num_kv_heads=2),
        dataclasses.replace(MODERN, use_bias=True, attention_bias=False, num_kv_heads=2),
    ],
    "qwen3": [QWEN, dataclasses.replace(QWEN, attention_bias=True, attention_window=3, head_dim=6, tie_embeddings=False)],
    "arcee": [
        dataclasses.replace(MODERN, activation="relu_squared"),
        dataclasses.replace(MODERN, activation="gelu", use_bias=True, tie_embeddings=False),
    ],
    "gpt_neox": [NEOX, dataclasses.replace(NEOX, parallel_residual=False, attention_bias=False, tie_embeddings=False)],
}  # fmt: skip


def run_of(cfg: ModelConfig, tokenizer=None) -> Run:
    tokenizer = tokenizer or IdsTokenizer(cfg.num_tokens)
    return Run(Config(model=cfg), GPT(cfg), random_params(cfg), tokenizer, 7, Path("runs/ours"))


def logits_of(run: Run) -> np.ndarray:
    return np.asarray(jax.jit(run.model.apply)({"params": run.params}, jnp.asarray(TOKENS)[None]))[0]


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def write_folder(folder: Path, cfg: ModelConfig, name: str, **values) -> Path:
    """The folder of a model with random weights; values of config.json are changed, None takes one away."""
    published.export_run(run_of(cfg), folder, name)
    changed = config_of(folder) | values
    (folder / "config.json").write_text(json.dumps({k: v for k, v in changed.items() if v is not None}))
    (folder / "jaxgpt_tokenizer.json").unlink()
    return folder


# --- in and out -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "i"), [(name, i) for name, cfgs in OWN.items() for i in range(len(cfgs))])
def test_import_after_export_and_export_after_import_are_the_identity(tmp_path, name, i):
    run = run_of(OWN[name][i], CharTokenizer("abcdefghijk"))
    assert published.export_run(run, tmp_path / "out", name) == []
    back = published.load(tmp_path / "out")
    assert back.config.model == run.config.model
    assert back.tokenizer.characters == "abcdefghijk"
    jax.tree.map(np.testing.assert_array_equal, back.params, run.params)
    published.export_run(back, tmp_path / "again", name)
    assert (tmp_path / "again" / FILE).read_bytes() == (tmp_path / "out" / FILE).read_bytes()
    assert config_of(tmp_path / "again") == config_of(tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("llama", {"norm": "rmsnorm_plain", "attention_scale": 0.2}, "written as ones; model.attention_scale=0.2 is written"),
        ("llama", {"vocab_multiple": 8, "use_bias": True, "attention_scale": 0.5}, "5 rows that pad"),
        ("qwen3", {"qk_norm": True, "attention_scale": 0.2, "norm": "rmsnorm_plain"}, "ones"),
        ("arcee", {"activation": "relu", "attention_window": 8}, "no tokenizer"),
        ("gpt_neox", {"norm": "layernorm", "activation": "gelu"}, "heads of keys and values is written 2 times"),
    ],
)  # fmt: skip
def test_what_is_written_otherwise_has_the_same_logits_and_is_said(tmp_path, name, fields, words):
    run = run_of(dataclasses.replace(MODERN, **fields))
    notes = published.export_run(run, tmp_path / "out")
    assert config_of(tmp_path / "out")["model_type"] == name  # by auto
    assert words in "; ".join(notes)
    np.testing.assert_allclose(
        logits_of(published.load(tmp_path / "out")), logits_of(run), rtol=1e-4, atol=1e-4
    )


def test_neox_keeps_the_queries_keys_and_values_of_a_head_next_to_each_other(tmp_path):
    run = run_of(NEOX)
    published.export_run(run, tmp_path / "out", "gpt_neox")
    fused = open_tensors(tmp_path / "out").read("gpt_neox.layers.1.attention.query_key_value.weight")
    own = run.params["block_1"]["attention"]
    np.testing.assert_array_equal(fused[12 + 4 : 12 + 8], np.asarray(own["key"]["kernel"])[:, 1].T)
    np.testing.assert_array_equal(fused[8:12], np.asarray(own["value"]["kernel"])[:, 0].T)


# --- a reference of its own -----------------------------------------------------------------------------


def reference_logits(values: dict, w: dict[str, np.ndarray]) -> np.ndarray:
    """Llama's and Qwen3's forward pass in float64 from the tensors as they are stored: logits [T, V]."""
    w = {name.removeprefix("model."): array.astype(np.float64) for name, array in w.items()}
    H, G = values["num_attention_heads"], values["num_key_value_heads"]
    K, T, eps = values["head_dim"], len(TOKENS), values["rms_norm_eps"]
    angles = np.arange(T)[:, None] * values["rope_theta"] ** (-np.arange(0, K, 2) / K)

    def norm(x, name):
        return w[f"{name}.weight"] * x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)

    def heads(x, name, count, scale=None):
        x = (
            (x @ w[f"{name}_proj.weight"].T + w.get(f"{name}_proj.bias", 0))
            .reshape(T, count, K)
            .swapaxes(0, 1)
        )
        if f"{scale}.weight" in w:
            x = norm(x, scale)
        return x

    def turned(x):
        a, b = x[..., : K // 2], x[..., K // 2 :]
        return np.concatenate(
            [a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], axis=-1
        )

    x = w["embed_tokens.weight"][TOKENS]
    for i in range(values["num_hidden_layers"]):
        at = f"layers.{i}."
        n = norm(x, at + "input_layernorm")
        q = turned(heads(n, at + "self_attn.q", H, at + "self_attn.q_norm"))
        k = turned(heads(n, at + "self_attn.k", G, at + "self_attn.k_norm")).repeat(H // G, axis=0)
        v = heads(n, at + "self_attn.v", G).repeat(H // G, axis=0)
        weights = np.exp(q @ k.swapaxes(1, 2) / math.sqrt(K)) * np.tri(T)
        mixed = ((weights / weights.sum(-1, keepdims=True)) @ v).swapaxes(0, 1).reshape(T, H * K)
        x = x + mixed @ w[at + "self_attn.o_proj.weight"].T + w.get(at + "self_attn.o_proj.bias", 0)
        n = norm(x, at + "post_attention_layernorm")
        gate, up = (
            n @ w[f"{at}mlp.{part}_proj.weight"].T + w.get(f"{at}mlp.{part}_proj.bias", 0)
            for part in ("gate", "up")
        )
        down = gate / (1 + np.exp(-gate)) * up @ w[at + "mlp.down_proj.weight"].T
        x = x + down + w.get(at + "mlp.down_proj.bias", 0)
    return norm(x, "norm") @ w.get("lm_head.weight", w["embed_tokens.weight"]).T


@pytest.mark.parametrize(
    ("name", "cfg"),
    [
        ("llama", dataclasses.replace(OWN["llama"][1], activation="swiglu")),
        ("qwen3", dataclasses.replace(QWEN, num_heads=4, num_kv_heads=2, head_dim=6)),
    ],
)
def test_imported_logits_are_those_of_a_numpy_forward_pass(tmp_path, name, cfg):
    folder = write_folder(tmp_path / "folder", cfg, name)
    files = open_tensors(folder)
    expected = reference_logits(config_of(folder), {n: files.read(n) for n in files.names()})
    np.testing.assert_allclose(
        logits_of(published.load(folder)), expected, rtol=2e-5, atol=2e-5 * np.abs(expected).max()
    )


def test_shards_half_precision_and_buffers(tmp_path):
    plain = published.load(write_folder(tmp_path / "plain", MODERN, "llama"))
    folder = write_folder(tmp_path / "sharded", MODERN, "llama")
    files = open_tensors(folder)
    tensors = {n: files.read(n).astype(np.float16) for n in files.names()}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    (folder / FILE).unlink()
    places = {n: f"model-{i % 3}.safetensors" for i, n in enumerate(tensors)}
    for shard in set(places.values()):
        write_tensors(folder / shard, {n: array for n, array in tensors.items() if places[n] == shard})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    half = jax.tree.map(lambda x: np.asarray(x).astype(np.float16).astype(np.float32), plain.params)
    jax.tree.map(np.testing.assert_array_equal, published.load(folder).params, half)


# --- config.json ----------------------------------------------------------------------------------------


def test_rotary_positions_are_read_from_fields_of_transformers_4_and_5():
    def read(name, **values):
        cfg, _ = FAMILIES[name].read_config(LLAMA_SIZES | values, "config.json")
        return cfg.rotary_base, cfg.rotary_fraction

    assert read("llama", rope_theta=5e5, rope_scaling=None) == (5e5, 1.0)
    assert read("llama", rope_parameters={"rope_type": "default", "rope_theta": 7e3}) == (7e3, 1.0)
    assert read("llama", rope_scaling={"type": "default"}, rope_theta=9.5) == (9.5, 1.0)
    assert read("llama") == (1e4, 1.0)
    assert read("gpt_neox", rotary_pct=0.5, rotary_emb_base=100) == (100.0, 0.5)
    assert read("gpt_neox") == (1e4, 0.25)
    parameters = {"rope_type": "default", "rope_theta": 10, "partial_rotary_factor": 1.0}
    assert read("gpt_neox", rope_parameters=parameters, rotary_pct=0.5) == (10.0, 1.0)


def test_windows_of_qwen3_are_those_of_all_layers_or_of_none():
    def read(**values):
        return FAMILIES["qwen3"].read_config(LLAMA_SIZES | values, "config.json")[0].attention_window

    assert read() is None and read(sliding_window=4) is None
    assert read(use_sliding_window=True, sliding_window=4, max_window_layers=0) == 4
    assert read(use_sliding_window=True, sliding_window=4, max_window_layers=2) is None
    assert read(layer_types=["sliding_attention"] * 2, sliding_window=4) == 4
    with pytest.raises(UserError, match="some layers have an attention window"):
        read(use_sliding_window=True, sliding_window=4, max_window_layers=1)


# As published, in config.json and in the number of parameters.
PUBLISHED = {
    "SmolLM2-135M": (134_515_008, {
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49_152,
        "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
        "rope_theta": 100_000, "rope_scaling": None, "tie_word_embeddings": True, "hidden_act": "silu",
        "attention_bias": False, "rope_interleaved": False,
    }),
    "TinyLlama-1.1B": (1_100_048_384, {
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "vocab_size": 32_000,
        "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
        "rope_scaling": None, "tie_word_embeddings": False, "hidden_act": "silu", "pretraining_tp": 1,
    }),
    "Qwen3-0.6B": (596_049_920, {
        "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "vocab_size": 151_936,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40_960,
        "rms_norm_eps": 1e-6, "rope_theta": 1_000_000, "rope_scaling": None, "tie_word_embeddings": True,
        "hidden_act": "silu", "max_window_layers": 28, "sliding_window": None, "use_sliding_window": False,
        "attention_bias": False,
    }),
    "Pythia-70m": (70_426_624, {
        "model_type": "gpt_neox", "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "vocab_size": 50_304,
        "num_attention_heads": 8, "max_position_embeddings": 2048, "layer_norm_eps": 1e-5, "rotary_emb_base": 10_000,
        "rotary_pct": 0.25, "tie_word_embeddings": False, "hidden_act": "gelu", "use_parallel_residual": True,
    }),
    "Pythia-160m": (162_322_944, {
        "model_type": "gpt_neox", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "vocab_size": 50_304,
        "num_attention_heads": 12, "max_position_embeddings": 2048, "layer_norm_eps": 1e-5, "rotary_emb_base": 10_000,
        "rotary_pct": 0.25, "tie_word_embeddings": False, "hidden_act": "gelu", "use_parallel_residual": True,
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_published_number_of_parameters(name):
    count, values = PUBLISHED[name]
    family = FAMILIES[values["model_type"]]
    cfg, assumed = family.read_config(values, "config.json")
    assert count_params(param_shapes(cfg)) == count and not assumed
    assert sum(math.prod(place.shape) for place in family.places(cfg)) == count
    assert family.in_its_terms(cfg) == cfg and not family.obstacles(cfg)
    again, _ = family.read_config(family.config_json(cfg, None), "config.json")
    assert again == cfg


# --- what a family can't express ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("llama", {"position": "learned"}, "rotary positions, not model.position='learned'"),
        ("llama", {"norm": "layernorm"}, "RMSNorm, not model.norm='layernorm'"),
        ("llama", {"activation": "relu"}, "a gated MLP, not model.activation='relu'"),
        ("llama", {"qk_norm": True}, "no model.qk_norm=True"),
        ("llama", {"attention_window": 3}, "attention to all tokens before, not model.attention_window=3"),
        ("llama", {"parallel_residual": True}, "no model.parallel_residual=True"),
        ("llama", {"rotary_fraction": 0.5}, "no model.rotary_fraction=0.5"),
        ("llama", {"d_ff": 0}, "an MLP in every block, not model.d_ff=0"),
        ("qwen3", {}, "query-key norm, not model.qk_norm=False"),
        ("qwen3", {"qk_norm": True, "use_bias": True}, "an MLP without biases"),
        ("arcee", {}, "an MLP of two matrices, not model.activation='swiglu'"),
        ("gpt_neox", {"norm": "layernorm", "head_dim": 6}, "heads of d_model / num_heads numbers"),
        ("gpt2", {"head_dim": 6}, "not model.head_dim=6"),
        ("qwen3", {"logit_softcap": 9.0, "embedding_dim": 4}, "no model.logit_softcap=9.0; no model.embedding_dim=4"),
        ("mamba", {}, "--family=mamba: choose one of auto, gpt2, llama, qwen3, arcee, gpt_neox"),
    ],
)  # fmt: skip
def test_what_a_family_lacks_is_refused(tmp_path, name, fields, words):
    with pytest.raises(UserError) as error:
        published.export_run(run_of(dataclasses.replace(MODERN, **fields)), tmp_path / "out", name)
    assert words in str(error.value) and not (tmp_path / "out").exists()


def test_auto_gives_the_reason_of_every_family():
    with pytest.raises(UserError) as error:
        for_export(dataclasses.replace(MODERN, logit_softcap=9.0))
    assert str(error.value) == (
        "no family expresses this model: GPT-2 has a table of positions, not model.position='rotary'; Llama has no "
        "model.logit_softcap=9.0; Qwen3 has query-key norm, not model.qk_norm=False; Arcee has an MLP of two matrices, not "
        "model.activation='swiglu'; GPT-NeoX has LayerNorm, not model.norm='rmsnorm'"
    )


def test_the_fast_recipe_is_two_fields_away_from_two_families():
    cfg = read_config("char_fast", {}).model
    cfg = dataclasses.replace(cfg, vocab_size=71)
    with pytest.raises(UserError, match="no family expresses this model"):
        for_export(cfg)
    assert for_export(dataclasses.replace(cfg, activation="swiglu")).title == "Qwen3"
    assert for_export(dataclasses.replace(cfg, qk_norm=False)).title == "Arcee"


# --- the command, and runs that start from a folder -----------------------------------------------------


def command(line: str) -> str:
    """What the command prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        convert.main(shlex.split(line))
    return printed.getvalue()


def test_the_command_goes_both_ways_and_init_from_takes_such_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(Path("folder"), QWEN, "qwen3")
    assert "2 layers, 2 heads, d_model 8" in command("import --from_dir folder --workdir run")
    assert json.loads(Path("run/run.json").read_text())["imported"]["format"] == "qwen3"
    command("export --workdir run --to_dir out")
    assert Path("out", FILE).read_bytes() == Path("folder", FILE).read_bytes()
    with pytest.raises(UserError, match="can't be exported as Arcee"):
        command("export --workdir run --to_dir other --family arcee")
    cfg = Config(model=dataclasses.replace(QWEN, lora_rank=2), init_from="folder")
    start = transfer.from_source(cfg, IdsTokenizer(11))
    np.testing.assert_array_equal(
        start.arrays["block_1/attention/query_norm/scale"],
        jaxgpt.load("run").params["block_1"]["attention"]["query_norm"]["scale"],
    )
    with pytest.raises(UserError, match=r"model.norm_epsilon is 1e-06 in the source and 1e-05 here"):
        transfer.from_source(
            Config(model=dataclasses.replace(QWEN, norm_epsilon=1e-5), init_from="folder"), IdsTokenizer(11)
        )


BAD_CONFIGS = {
    "another architecture": ("llama", {"model_type": "mamba"}, "model_type='mamba': only 'gpt2', 'llama'"),
    "no name": ("llama", {"model_type": ["llama"]}, "model_type=['llama']"),
    "llama 3": ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope_type='llama3'"),
    "yarn": ("qwen3", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling has rope_type='yarn'"),
    "scaling is text": ("llama", {"rope_scaling": "linear"}, "rope_scaling='linear' is not an object"),
    "theta": ("llama", {"rope_parameters": {"rope_theta": "10"}}, "rope_theta='10'"),
    "theta of 4": ("llama", {"rope_theta": 0}, "rope_theta=0 is not a number"),
    "by layer": ("qwen3", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "differs by kind of layer"),
    "a part in llama": ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "rotates all of a head"),
    "a part of nothing": ("gpt_neox", {"rope_parameters": {"partial_rotary_factor": 0}}, "partial_rotary_factor=0"),
    "half a pair": ("gpt_neox", {"rotary_pct": 0.25}, "position='rotary' turns pairs of numbers"),
    "activation": ("llama", {"hidden_act": "relu"}, "hidden_act='relu' is not one of silu, gelu"),
    "epsilon": ("qwen3", {"rms_norm_eps": 0}, "rms_norm_eps=0"),
    "heads": ("gpt_neox", {"num_attention_heads": 3}, "hidden_size=8 is not a multiple of num_attention_heads=3"),
    "heads of keys": ("llama", {"num_key_value_heads": 3}, "model.num_heads=2 is not a multiple of model.num_kv_heads=3"),
    "width of heads": ("llama", {"head_dim": 8}, "is [8, 8], not [16, 8] (and 7 more)"),
    "absurd width": ("qwen3", {"head_dim": 2**31 - 1}, "model.head_dim=2147483647"),
    "layers": ("arcee", {"num_hidden_layers": 3}, "holds 2 layers, its config.json says num_hidden_layers=3"),
    "bias": ("llama", {"attention_bias": True}, "lacks 8 tensors"),
    "switch": ("llama", {"mlp_bias": 1}, "mlp_bias=1 is not true or false"),
    "window": ("qwen3", {"layer_types": ["full_attention", "chunked"]}, "layer_types is not a list of"),
    "code": ("llama", {"auto_map": {"AutoModel": "x.py"}}, "no such code is executed"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_bad_config_gets_one_line_and_leaves_nothing(tmp_path, name):
    family, values, words = BAD_CONFIGS[name]
    folder = write_folder(tmp_path / "folder", OWN[family][0], family, **values)
    with pytest.raises(UserError) as error:
        published.import_folder(folder, tmp_path / "run")
    assert words in str(error.value) and "\n" not in str(error.value) and not (tmp_path / "run").exists()
