"""Conversion of configs: ConfigDicts, JSON and texts of the command line, both ways; and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxgpt import config
from jaxgpt.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from tests.config.samples import OTHER, message


def override(**overrides: str) -> Config:
    """The defaults with overrides, given as text by dotted name with `__` for the dot."""
    texts = {name.replace("__", "."): text for name, text in overrides.items()}
    return config.from_config_dict(config.apply_overrides(config.default_config(), texts))


@pytest.mark.parametrize("original", [Config(), OTHER], ids=["defaults", "other"])
def test_a_config_survives_config_dict_and_json(original):
    values = config.to_config_dict(original)
    assert config.from_config_dict(values) == original
    read = json.loads(json.dumps(config.to_json(original)))
    assert config.from_config_dict(read) == original
    assert config.from_config_dict(ConfigDict(read)) == original


def test_no_values_are_the_defaults():
    assert config.from_config_dict(ConfigDict()) == Config()
    assert config.from_config_dict(config.default_config()) == Config()
    assert config.from_config_dict({"model": {"d_model": 12}}).model == ModelConfig(d_model=12)


def test_configs_do_not_change():
    for group in (Config(), ModelConfig(), DataConfig(), OptimConfig(), TrainConfig()):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(group, dataclasses.fields(group)[0].name, None)


def test_optional_fields_of_a_config_dict_take_their_type_later():
    values = config.default_config()
    assert values.model.d_ff is None
    values.model.d_ff = 99
    assert config.from_config_dict(values).model.d_ff == 99
    with pytest.raises(TypeError):
        values.model.d_ff = "wide"


def test_every_problem_is_reported_at_once():
    values = config.default_config()
    with values.ignore_type():
        values.model.d_model = "wide"
    values.optim.schedule = "cosin"
    values.data.batch_sise = 3
    values.traning = ConfigDict({"seed": 1})
    text = message(config.from_config_dict, values)
    assert text.startswith("4 problems in the config:\n")
    assert len(text.splitlines()) == 5
    for words in ("model.d_model='wide'", "optim.schedule='cosin'", "data.batch_sise", "traning"):
        assert words in text
    wrong = {"model": {"num_heads": 5, "context_length": 0}, "optim": {"b1": 1.0}}
    text = message(config.from_config_dict, wrong)
    assert text.startswith("3 problems")
    overrides = {"model.nope": "1", "data.batch_size": "many", "train.tensorboard": "maybe"}
    text = message(config.apply_overrides, config.default_config(), overrides)
    assert text.startswith("3 problems") and all(f"{name}" in text for name in overrides)


def test_one_problem_is_one_line():
    assert len(message(override, model__d_model="wide").splitlines()) == 1


@pytest.mark.parametrize(
    "given, meant",
    [
        ("model.d_modle", "model.d_model"),
        ("optim.learning_rat", "optim.learning_rate"),
        ("model.learning_rate", "optim.learning_rate"),  # the right word in the wrong group
        ("d_model", "model.d_model"),  # without its group
        ("modle.d_model", "model.d_model"),
    ],
)
def test_an_unknown_field_is_answered_with_the_nearest(given, meant):
    text = message(config.apply_overrides, config.default_config(), {given: "1"})
    assert text == f"unknown field {given}: did you mean {meant}?"


def test_an_unknown_field_near_to_nothing_is_answered_with_a_list():
    text = message(config.apply_overrides, config.default_config(), {"model.zzzz": "1"})
    assert all(field.name in text for field in dataclasses.fields(ModelConfig))
    text = message(config.apply_overrides, config.default_config(), {"zzzz.yyyy": "1"})
    assert text.endswith(
        "the groups are model, data, optim, train, mesh, and the fields without a group are init_from, init_vectors, "
        "init_bridge"
    )


@pytest.mark.parametrize(
    "dotted, text, value",
    [
        ("model.use_bias", "true", True),
        ("model.use_bias", "False", False),
        ("train.tensorboard", "1", True),
        ("train.tensorboard", "0", False),
        ("train.num_steps", "5_000", 5000),
        ("train.num_steps", "12", 12),
        ("optim.learning_rate", "3e-4", 3e-4),
        ("optim.weight_decay", "1", 1.0),
        ("model.d_ff", "64", 64),
        ("model.d_ff", "None", None),
        ("model.d_ff", "none", None),
        ("data.path", "None", "None"),  # text: a file may be called so
        ("data.path", "a_b=c.txt", "a_b=c.txt"),
        ("train.sample_prompt", "", ""),
        ("model.activation", "relu", "relu"),
    ],
)
def test_overrides_are_read_by_the_type_of_their_field(dotted, text, value):
    group, name = dotted.split(".")
    read = getattr(getattr(override(**{dotted.replace(".", "__"): text}), group), name)
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    "dotted, text, wanted",
    [
        ("model.use_bias", "yes", "give true or false"),
        ("train.num_steps", "1.5", "give a whole number"),
        ("train.num_steps", "1e3", "give a whole number"),
        ("train.num_steps", "None", "give a whole number"),
        ("train.num_steps", "", "give a whole number"),
        ("model.d_ff", "wide", "give a whole number or None"),
        ("optim.learning_rate", "fast", "give a number"),
        ("model.activation", "swish", "choose one of relu, gelu, gelu_tanh, relu_squared, swiglu, geglu"),
        ("model.position", "alibi", "choose one of learned, sinusoidal, rotary, none"),
        ("model.norm", "None", "choose one of layernorm, rmsnorm, rmsnorm_plain"),
        ("data.tokenizer", "chars", "choose one of char, word, bpe, gpt2, huggingface, ids"),
        ("optim.schedule", "Cosine", "choose one of cosine, linear, constant, wsd"),
    ],
)
def test_overrides_of_another_type_are_refused(dotted, text, wanted):
    said = message(config.apply_overrides, config.default_config(), {dotted: text})
    assert said == f"{dotted}={text!r}: {wanted}"


@pytest.mark.parametrize(
    "dotted, value, wanted",
    [
        ("model.d_model", 1.5, "float: give a whole number"),
        ("model.d_model", True, "bool: give a whole number"),
        ("model.d_model", None, "NoneType: give a whole number"),
        ("model.d_ff", "64", "str: give a whole number or None"),
        ("model.use_bias", 1, "int: give true or false"),
        ("optim.learning_rate", True, "bool: give a number"),
        ("optim.learning_rate", "1e-3", "str: give a number"),
        ("data.path", 3, "int: give text"),
    ],
)
def test_values_of_another_type_are_refused(dotted, value, wanted):
    group, name = dotted.split(".")
    said = message(config.from_config_dict, {group: {name: value}})
    assert said == f"{dotted}={value!r} is of type {wanted}"


def test_an_integer_is_accepted_as_a_float():
    rate = config.from_config_dict({"optim": {"learning_rate": 1}}).optim.learning_rate
    assert rate == 1.0 and type(rate) is float


def test_overrides_reach_groups_that_a_config_file_left_out():
    values = ConfigDict({"model": {"d_model": 12}}).lock()
    cfg = config.from_config_dict(config.apply_overrides(values, {"optim.b1": "0.5", "model.num_heads": "2"}))
    assert (cfg.model.d_model, cfg.model.num_heads, cfg.optim.b1) == (12, 2, 0.5)


def test_differences_name_field_and_both_values():
    assert config.differences(Config(), Config()) == []
    # Where a text lies is no difference: its hash is compared.
    new = Config(model=ModelConfig(d_model=12, d_ff=5), data=DataConfig(path="a.txt", seed=3))
    assert config.differences(Config(), new) == [
        "model.d_model: 384 -> 12",
        "model.d_ff: None -> 5",
        "data.seed: None -> 3",
    ]


# --- names and versions of other times ------------------------------------------------------------------


def ratio(values) -> float:
    return config.from_config_dict(values).optim.final_learning_rate_ratio


def test_an_absolute_final_rate_is_read_as_a_ratio_and_wins():
    values = config.default_config()
    values.optim.learning_rate = 4e-3
    values.optim.final_learning_rate = 1e-4
    assert ratio(values) == 0.025
    assert ratio(config.apply_overrides(values, {"optim.learning_rate": "2e-3"})) == 0.05
    assert ratio(config.apply_overrides(values, {"optim.final_learning_rate": "4e-4"})) == 0.1
    assert ratio(config.apply_overrides(values, {"optim.final_learning_rate": "None"})) == 0.1
    # A ratio that is given after it replaces it.
    assert ratio(config.apply_overrides(values, {"optim.final_learning_rate_ratio": "0.5"})) == 0.5
    assert ratio({"optim": {"final_learning_rate": 0}}) == 0.0


@pytest.mark.parametrize("final", [-1e-9, 2e-3, float("nan")])
def test_an_absolute_final_rate_above_the_peak_is_refused(final):
    text = message(config.from_config_dict, {"optim": {"final_learning_rate": final}})
    assert text == f"optim.final_learning_rate={final}: give a number from 0 to optim.learning_rate=0.001"
    constant = {"schedule": "constant", "learning_rate": 1e-5, "final_learning_rate": 1e-4}
    assert ratio({"optim": constant}) == 0.1  # not used by this schedule


@pytest.mark.parametrize(
    ("final", "rate"),
    [(1e-4, 1e-3), (1e-4, 4e-3), (6e-5, 6e-4), (1e-3, 3e-2), (4e-4, 2e-2), (8e-5, 4e-3), (1e-5, 7e-3)],
)
def test_a_ratio_gives_the_float32_rates_of_the_absolute_one(final, rate):
    cfg = config.from_config_dict({"optim": {"learning_rate": rate, "final_learning_rate": final}}).optim
    assert np.float32(cfg.final_learning_rate) == np.float32(final)
    assert np.float32(rate - cfg.final_learning_rate) == np.float32(rate - final)


def test_fields_of_a_newer_version_are_named():
    values = config.to_json(Config())
    values["model"]["depth_scale"] = 1.0
    values["telescope"] = {}
    text = message(config.from_json, values)
    assert text == (
        "the config has model.depth_scale, telescope, which this version of jaxgpt does not have: a newer version wrote it, "
        "update jaxgpt"
    )
    assert message(config.from_json, []) == "not a JSON object"


OLD = {
    "model": {
        "vocab_size": 71,
        "vocab_multiple": 1,
        "context_length": 64,
        "d_model": 128,
        "num_layers": 4,
        "num_heads": 4,
        "num_kv_heads": None,
        "d_ff": 512,
        "dropout_rate": 0.0,
        "activation": "relu",
        "position": "learned",
        "rotary_base": 10000.0,
        "norm": "layernorm",
        "qk_norm": False,
        "attention_scale": None,
        "attention_softcap": 0.0,
        "attention_window": None,
        "causal": True,
        "residual": True,
        "value_residual": False,
        "embedding_residual": False,
        "logit_softcap": 0.0,
        "use_bias": True,
        "tie_embeddings": True,
        "embedding_dim": None,
        "lora_rank": 0,
        "lora_alpha": 16.0,
        "lora_targets": ["query", "value"],
        "init": "gpt2",
        "init_scale": 1.0,
        "zero_init": False,
        "dtype": "float32",
    },
    "data": {
        "corpus": "shakespeare",
        "path": "",
        "tokenizer": "char",
        "tokenizer_path": "",
        "add_tokens": False,
        "vocab_size": None,
        "valid_fraction": 0.1,
        "batch_size": 16,
        "seed": None,
        "on_device": False,
    },
    "optim": {
        "name": "adamw",
        "learning_rate": 0.004,
        "schedule": "cosine",
        "warmup_steps": 100,
        "final_learning_rate": 0.0001,
        "decay_fraction": 0.2,
        "b1": 0.9,
        "b2": 0.99,
        "eps": 1e-08,
        "weight_decay": 0.1,
        "decay_embeddings": False,
        "grad_clip_norm": 1.0,
        "muon_learning_rate": 0.02,
        "muon_momentum": 0.95,
        "muon_iterations": 5,
        "ema_decay": 0.0,
        "trainable": [],
        "rates": [],
        "train_rows_from": 0,
        "parametrization": "standard",
        "mup_base_width": 128,
    },
    "train": {
        "num_steps": 60,
        "eval_every": 30,
        "log_every": 1,
        "checkpoint_every": 30,
        "keep_checkpoints": 2,
        "grad_accumulation_steps": 1,
        "eval_batch_size": 16,
        "eval_tokens": 8192,
        "sample_tokens": 40,
        "sample_prompt": "",
        "embedding_snapshots": 8,
        "tensorboard": False,
        "report": False,
        "seed": 0,
        "steps_per_dispatch": 1,
        "loss_chunk": 0,
        "remat": "none",
        "on_bad_step": "stop",
        "bad_grad_norm": 0.0,
        "watchdog_seconds": 600,
        "attention": "auto",
    },
    "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
    "init_from": "",
    "init_vectors": "",
    "init_bridge": "none",
}


def test_a_config_json_of_an_older_version_is_read():
    """As stored before the final rate was a ratio."""
    cfg = config.from_json(OLD)
    assert cfg.optim.final_learning_rate_ratio == 0.025 and cfg.optim.final_learning_rate == 1e-4
    assert config.from_json(json.loads(json.dumps(config.to_json(cfg)))) == cfg
    assert "final_learning_rate" not in config.to_json(cfg)["optim"]
    for dotted in config.FIELDS:
        group, _, name = dotted.rpartition(".")
        stored = OLD[group] if group else OLD
        if name in stored:
            value = config.value_of(cfg, dotted)
            assert (list(value) if isinstance(value, tuple) else value) == stored[name]


def test_differences_are_of_what_a_run_is_or_of_every_field():
    new = config.from_config_dict({"train": {"log_every": 7, "num_steps": 9, "seed": 3}, "mesh": {"fsdp": 2}})
    assert config.differences(Config(), new) == ["train.seed: 0 -> 3"]
    assert len(config.differences(Config(), new, every=True)) == 4
    assert config.changed_values(Config(), new)["train.num_steps"] == (5_000, 9)
