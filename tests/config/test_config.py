"""Configs: conversion both ways, overrides, every check, config files and the flags of the command line."""

import dataclasses
import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from jaxgpt import config
from jaxgpt.common import cli
from jaxgpt.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig, UserError, presets

CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.py"))
OTHER = Config(
    ModelConfig(vocab_size=300, d_ff=64, position="none", use_bias=False),
    DataConfig(path="a.txt", tokenizer="bpe", vocab_size=300, valid_fraction=0.25),
    OptimConfig(schedule="wsd", warmup_steps=0, grad_clip_norm=0.0),
    TrainConfig(eval_batch_size=4, tensorboard=True, sample_prompt="Once"),
)


def override(**overrides: str) -> Config:
    """The defaults with overrides, given as text by dotted name with `__` for the dot."""
    texts = {name.replace("__", "."): text for name, text in overrides.items()}
    return config.from_config_dict(config.apply_overrides(config.default_config(), texts))


def message(function, *args, **kwargs) -> str:
    with pytest.raises(UserError) as error:
        function(*args, **kwargs)
    return str(error.value)


# --- conversion -----------------------------------------------------------------------------------------


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
        "the groups are model, data, optim, train, mesh, and by itself there is init_from, init_vectors, init_bridge"
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
        ("data.tokenizer", "chars", "choose one of char, word, bpe, gpt2, ids"),
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


def test_a_whole_number_will_do_for_a_float():
    rate = config.from_config_dict({"optim": {"learning_rate": 1}}).optim.learning_rate
    assert rate == 1.0 and type(rate) is float


def test_overrides_reach_groups_that_a_config_file_left_out():
    values = ConfigDict({"model": {"d_model": 12}}).lock()
    cfg = config.from_config_dict(config.apply_overrides(values, {"optim.b1": "0.5", "model.num_heads": "2"}))
    assert (cfg.model.d_model, cfg.model.num_heads, cfg.optim.b1) == (12, 2, 0.5)


def test_differences_name_field_and_both_values():
    assert config.differences(Config(), Config()) == []
    new = Config(model=ModelConfig(d_model=12, d_ff=5), data=DataConfig(path="a.txt"))
    assert config.differences(Config(), new) == [
        "model.d_model: 384 -> 12",
        "model.d_ff: None -> 5",
        "data.path: '' -> 'a.txt'",
    ]


# --- checks ---------------------------------------------------------------------------------------------

TOO_MANY = 2**31
WRONG = {
    "model": [
        *({name: 0} for name in "vocab_size context_length d_model num_layers num_heads".split()),
        {"num_layers": -1},
        {"d_ff": -1},
        {"d_ff": 0, "lora_rank": 1, "lora_targets": ("up",)},
        {"causal": False, "attention_window": 4},
        {"d_model": 10, "num_heads": 4},
        {"d_model": 9, "num_heads": 3, "position": "sinusoidal"},
        {"d_model": 9, "num_heads": 3, "position": "rotary"},
        *({name: 0} for name in "vocab_multiple num_kv_heads attention_window".split()),
        {"num_kv_heads": 4},  # of 6
        *({"rotary_base": base} for base in (1.0, math.inf, math.nan)),
        *({"attention_scale": scale} for scale in (0.0, -1.0, math.inf)),
        *({name: cap} for name in ("attention_softcap", "logit_softcap") for cap in (-1.0, math.nan)),
        *({"dropout_rate": rate} for rate in (-0.1, 1.0, math.nan)),
    ],
    "data": [
        {"batch_size": 0},
        {"vocab_size": 0},
        *({"valid_fraction": fraction} for fraction in (0.0, 1.0, -0.5, math.nan)),
        {"corpus": "", "path": ""},
        {"tokenizer": "bpe", "vocab_size": None},
        {"tokenizer": "bpe", "vocab_size": 256},
        {"tokenizer": "gpt2", "vocab_size": 50_000},
        {"vocab_size": TOO_MANY},
    ],
    "optim": [
        *({"learning_rate": rate} for rate in (0.0, -1.0, math.inf, math.nan)),
        *({"final_learning_rate": rate} for rate in (-1e-9, 1e-2, math.nan)),
        {"warmup_steps": -1},
        *({name: value} for name in ("b1", "b2") for value in (-0.1, 1.0, math.nan)),
        *({name: value} for name in "eps weight_decay grad_clip_norm".split() for value in (-0.1, math.nan)),
        *({"decay_fraction": fraction} for fraction in (0.0, 1.1, math.nan)),
        *({"muon_learning_rate": rate} for rate in (0.0, math.inf, math.nan)),
        {"muon_iterations": 0},
        {"mup_base_width": 0},
        *({name: x} for name in ("muon_momentum", "ema_decay") for x in (-0.1, 1.0, math.nan)),
        {"name": "schedule_free"},  # with a cosine
        {"name": "schedule_free", "schedule": "constant", "b1": 0.0},
        {"name": "schedule_free", "schedule": "constant", "ema_decay": 0.9},
        {"parametrization": "mup"},  # with a tied head that starts at random
        {"parametrization": "mup", "name": "lion"},
    ],
    "train": [
        *(
            {name: 0}
            for name in "num_steps log_every keep_checkpoints grad_accumulation_steps eval_batch_size "
            "steps_per_dispatch".split()
        ),
        {"loss_chunk": -1},
        {"loss_chunk": 100},  # of 256
        *({name: 15, "steps_per_dispatch": 10} for name in ("num_steps", "eval_every", "checkpoint_every")),
        {"attention": "cudnn"},  # in float32
        *(
            {name: -1}
            for name in "eval_every checkpoint_every eval_tokens sample_tokens embedding_snapshots seed".split()
        ),
        {"num_steps": TOO_MANY},
        {"seed": TOO_MANY},
        {"grad_accumulation_steps": 3},  # of a batch of 64
    ],
}


@pytest.mark.parametrize(
    "group, values", [(group, values) for group, cases in WRONG.items() for values in cases], ids=str
)
def test_every_check_finds_its_problem_and_names_the_field(group, values):
    good = getattr(Config(), group)
    problems = config.find_problems(
        dataclasses.replace(Config(), **{group: dataclasses.replace(good, **values)})
    )
    assert any(f"{group}.{name}" in problem for problem in problems for name in values), problems
    assert all("\n" not in problem for problem in problems)
    with pytest.raises(UserError):
        config.from_config_dict({group: values})


@pytest.mark.parametrize(
    "cfg",
    [
        Config(),
        OTHER,
        Config(model=ModelConfig(d_model=9, num_heads=3)),  # odd, but learned positions do not mind
        Config(data=DataConfig(tokenizer="gpt2", vocab_size=50_257)),
        Config(data=DataConfig(tokenizer="bpe", tokenizer_path="tokenizer.json")),
        Config(optim=OptimConfig(schedule="constant", learning_rate=1e-5)),  # its final rate is not used
        Config(
            optim=OptimConfig(warmup_steps=0, b1=0.0, b2=0.0, eps=0.0, decay_fraction=1.0, weight_decay=0.0)
        ),
        Config(
            train=TrainConfig(eval_every=0, checkpoint_every=0, sample_tokens=0, grad_accumulation_steps=64)
        ),
        Config(train=TrainConfig(num_steps=1, seed=2**31 - 1)),
    ],
)
def test_values_at_the_limits_are_no_problem(cfg):
    assert config.find_problems(cfg) == []


def test_presets_are_models_and_an_unknown_one_lists_them():
    for name, model in presets.PRESETS.items():
        values = config.default_config()
        values.model = presets.preset(name)
        assert config.from_config_dict(values).model == model
    text = message(presets.preset, "gpt5")
    assert "'gpt5'" in text and all(name in text for name in presets.PRESETS)


def test_a_preset_handed_out_is_a_copy():
    presets.preset("gpt2").d_model = 1
    assert presets.preset("gpt2").d_model == 768


# --- the command line -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv, expected",
    [
        ([], (None, {}, [])),
        (["--config", "a.py"], ("a.py", {}, [])),
        (["--config=a.py:big"], ("a.py:big", {}, [])),
        (
            ["--config.model.d_model=8", "--workdir", "w", "--config", "a.py", "--config.optim.b1", "0.5"],
            ("a.py", {"model.d_model": "8", "optim.b1": "0.5"}, ["--workdir", "w"]),
        ),
        (["--config=a.py", "--config=b.py"], ("b.py", {}, [])),
        (["--config.train.seed=1", "--config.train.seed", "2"], (None, {"train.seed": "2"}, [])),
        (["--config.data.path=a=b.txt"], (None, {"data.path": "a=b.txt"}, [])),
        (["--config.train.sample_prompt="], (None, {"train.sample_prompt": ""}, [])),
        (["--config.optim.weight_decay", "-1"], (None, {"optim.weight_decay": "-1"}, [])),
        (["--configs", "x", "--help"], (None, {}, ["--configs", "x", "--help"])),
    ],
)
def test_config_flags_are_taken_out_of_the_arguments(argv, expected):
    assert cli.split_config_flags(argv) == expected


@pytest.mark.parametrize("flag", ["--config", "--config.model.d_model"])
def test_a_flag_without_its_value_is_refused(flag):
    assert message(cli.split_config_flags, ["--workdir", "w", flag]) == f"{flag} needs a value: {flag}=VALUE"


def config_file(folder: Path, body: str) -> str:
    path = folder / "a.py"
    path.write_text(f"from jaxgpt.config import default_config\n{body}\n", "utf-8")
    return str(path)


def test_a_config_file_gives_its_config_dict_and_overrides_come_after(tmp_path):
    file = config_file(
        tmp_path,
        """
def get_config(size="small"):
    config = default_config()
    config.model.d_model = {"small": 12, "a:b": 24}[size]
    return config""",
    )
    assert cli.load_config_dict(file).model.d_model == 12
    assert cli.load_config_dict(f"{file}:a:b").model.d_model == 24
    cfg = cli.read_config(file, {"model.num_layers": "2", "optim.b1": "0.5"})
    assert (cfg.model.d_model, cfg.model.num_layers, cfg.optim.b1) == (12, 2, 0.5)
    assert cli.read_config(file, {"model.d_model": "18"}).model.d_model == 18


@pytest.mark.parametrize(
    "body, words",
    [
        ("", "a.py has no get_config()"),
        ("def get_config(): return 3", "get_config() returned int, not a ConfigDict"),
        ("def get_config(): return {}", "get_config() returned dict, not a ConfigDict"),
        ("def get_config(): pass", "get_config() returned NoneType, not a ConfigDict"),
        ("def get_config(): return default_config().modle", "a.py failed: AttributeError: "),
        ("def get_config(): raise ValueError('first\\nsecond')", "a.py failed: ValueError: first"),
        ("def get_config(", "a.py failed: SyntaxError"),
        ("import no_such_module", "a.py failed: ModuleNotFoundError"),
    ],
)
def test_a_config_file_that_does_not_work_is_one_line(tmp_path, body, words):
    text = message(cli.load_config_dict, config_file(tmp_path, body))
    assert words in text and "\n" not in text


def test_what_is_no_config_file_is_refused(tmp_path):
    assert "no config file nowhere.py" in message(cli.load_config_dict, "nowhere.py")
    assert f"no config file {tmp_path}" in message(cli.load_config_dict, str(tmp_path))
    (tmp_path / "a.txt").write_text("")
    assert "is no Python file" in message(cli.load_config_dict, str(tmp_path / "a.txt"))
    no_argument = config_file(tmp_path, "def get_config(): return default_config()")
    assert "failed: TypeError" in message(cli.load_config_dict, f"{no_argument}:big")


def test_without_a_config_the_command_says_so_in_one_line():
    done = subprocess.run([sys.executable, "-m", "jaxgpt.train"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --config is missing")


# --- the repository's own configs -----------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_of_the_repository_is_valid_and_says_how_to_run_it(path):
    assert isinstance(cli.read_config(str(path), {}), Config)
    doc = importlib.util.spec_from_file_location("a_config", path).loader.get_source("a_config")
    assert f"--config configs/{path.relative_to(CONFIGS[0].parent)}" in doc


def test_the_repository_has_configs():
    assert CONFIGS
