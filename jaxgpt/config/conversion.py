"""ConfigDicts, command lines and JSON <-> the frozen Config, and the one place where a config is checked.

A config file gives a ConfigDict (`get_config()`), the command line may change any field of it, and
`from_config_dict` turns it into the frozen `Config` that the rest of the package takes. Past this module
there is no ConfigDict, no `.get` and no second default: every default stands in `fields.py`, once.
"""

from __future__ import annotations

import dataclasses
import difflib
import operator
import types
import typing
from typing import Any, Literal

from ml_collections import ConfigDict, config_dict

from jaxgpt.config.errors import UserError
from jaxgpt.config.fields import Config, DataConfig, MeshConfig, ModelConfig, OptimConfig, TrainConfig

# --- conversion -----------------------------------------------------------------------------------------


def to_config_dict(config: Config) -> ConfigDict:
    """The same values as a ConfigDict; a field that is None keeps its type."""
    groups = {}
    for group, fields in _FIELDS.items():
        values = ConfigDict()
        for name, field_type in fields.items():
            value = getattr(getattr(config, group), name)
            values[name] = config_dict.placeholder(_base_type(field_type)) if value is None else value
        groups[group] = values
    return ConfigDict(groups | {name: getattr(config, name) for name in _ALONE})


def default_config() -> ConfigDict:
    """The defaults as a ConfigDict, for config files to start from."""
    return to_config_dict(Config())


def from_config_dict(values: ConfigDict | dict[str, Any]) -> Config:
    """The frozen Config of a ConfigDict, checked. Raises UserError that lists every problem at once."""
    problems: list[str] = []
    groups: dict[str, dict[str, Any]] = {group: {} for group in _FIELDS}
    alone: dict[str, Any] = {}
    for group, fields in values.items():
        if group in _ALONE:
            given, kept = {group: fields}, alone
        elif group in _FIELDS and isinstance(fields, dict | ConfigDict):
            given, kept = fields, groups[group]
        else:
            problems.append(_unknown(group))
            continue
        for name, value in given.items():
            dotted = name if kept is alone else f"{group}.{name}"
            if dotted not in _TYPES:
                problems.append(_unknown(dotted))
                continue
            try:
                kept[name] = _convert(dotted, value)
            except UserError as error:
                problems.append(str(error))
    if problems:
        _raise_all(problems)
    config = Config(
        model=ModelConfig(**groups["model"]),
        data=DataConfig(**groups["data"]),
        optim=OptimConfig(**groups["optim"]),
        train=TrainConfig(**groups["train"]),
        mesh=MeshConfig(**groups["mesh"]),
        **alone,
    )
    if problems := find_problems(config):
        _raise_all(problems)
    return config


def apply_overrides(values: ConfigDict, overrides: dict[str, str]) -> dict[str, Any]:
    """A config file's values, with fields changed by what the command line gives as text.

    Keys are dotted names such as `model.d_model`; the text is read by the type of the field: `true`/`false`,
    numbers, `None` for optional fields. Raises UserError that lists every problem at once.
    """
    problems, merged = [], values.to_dict()
    for dotted, text in overrides.items():
        group, _, name = dotted.rpartition(".")
        if dotted not in _TYPES:
            problems.append(_unknown(dotted))
            continue
        if group and not isinstance(merged.setdefault(group, {}), dict):
            continue  # from_config_dict tells what is wrong with it
        try:
            value = _parse(dotted, text)
            merged |= {group: {**merged[group], name: value}} if group else {name: value}
        except UserError as error:
            problems.append(str(error))
    if problems:
        _raise_all(problems)
    return merged


def to_json(config: Config) -> dict[str, dict[str, Any]]:
    """Plain dictionaries, as written to config.json; `from_config_dict` reads them back."""
    return dataclasses.asdict(config)


def differences(old: Config, new: Config) -> list[str]:
    """One entry for each field that makes it another run: `model.d_model: 128 -> 256`. The mesh does not."""
    return [
        f"{dotted}: {before!r} -> {after!r}"
        for dotted in _TYPES
        if not dotted.startswith("mesh.")
        and (before := value_of(old, dotted)) != (after := value_of(new, dotted))
    ]


_HINTS = typing.get_type_hints(Config)
# The fields of each group; and those of the Config itself.
_FIELDS: dict[str, dict[str, Any]] = {
    name: typing.get_type_hints(hint) for name, hint in _HINTS.items() if dataclasses.is_dataclass(hint)
}
_ALONE: dict[str, Any] = {name: hint for name, hint in _HINTS.items() if name not in _FIELDS}
# The type of every field by its dotted name, in order.
_TYPES: dict[str, Any] = {
    f"{group}.{name}": hint for group, fields in _FIELDS.items() for name, hint in fields.items()
} | _ALONE


def field_names() -> list[str]:
    """The dotted name of every field, in order."""
    return list(_TYPES)


def value_of(config: Config, dotted: str) -> Any:
    """A field's value by its dotted name."""
    return operator.attrgetter(dotted)(config)


def _base_type(field_type: Any) -> type:
    """`int` of `int | None`, `str` of a Literal, `tuple` of texts."""
    if typing.get_origin(field_type) is Literal:
        return str
    if typing.get_origin(field_type) is tuple:
        return tuple
    if isinstance(field_type, types.UnionType):
        return next(t for t in typing.get_args(field_type) if t is not types.NoneType)
    return field_type


def _is_optional(field_type: Any) -> bool:
    return isinstance(field_type, types.UnionType)


def _unknown(dotted: str) -> str:
    """One line with the nearest field that exists."""
    group, _, name = dotted.rpartition(".")
    # The same word in another group first, then near in the same group, then near anywhere.
    near = (
        [known for known in field_names() if known.split(".")[-1] == name]
        or [f"{group}.{n}" for n in difflib.get_close_matches(name, _FIELDS.get(group, {}), n=1, cutoff=0.5)]
        or ([] if group in _FIELDS else difflib.get_close_matches(dotted, field_names(), n=1, cutoff=0.6))
    )
    if dotted in _FIELDS:
        return f"{dotted} is a group of fields: give one of {', '.join(f'{dotted}.{n}' for n in _FIELDS[dotted])}"
    if near:
        return f"unknown field {dotted}: did you mean {near[0]}?"
    if group in _FIELDS:
        return f"unknown field {dotted}: {group} has {', '.join(_FIELDS[group])}"
    return f"unknown field {dotted}: the groups are {', '.join(_FIELDS)}, and by itself there is {', '.join(_ALONE)}"


def _raise_all(problems: list[str]) -> typing.NoReturn:
    if len(problems) == 1:
        raise UserError(problems[0])
    raise UserError(f"{len(problems)} problems in the config:\n" + "\n".join(f"  - {p}" for p in problems))


def _convert(dotted: str, value: Any) -> Any:
    """The value, if it is of its field's type (an int will do for a float); else UserError."""
    field_type = _TYPES[dotted]
    if value is None and _is_optional(field_type):
        return None
    base = _base_type(field_type)
    if base is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if base is tuple and isinstance(value, list | tuple) and all(isinstance(word, str) for word in value):
        return tuple(value)  # JSON knows lists alone
    if base is tuple:
        raise UserError(f"{dotted}={value!r}: give a tuple of texts")
    if not isinstance(value, base) or (base is not bool and isinstance(value, bool)):
        raise UserError(f"{dotted}={value!r} is of type {type(value).__name__}: give {_describe(field_type)}")
    if typing.get_origin(field_type) is Literal and value not in typing.get_args(field_type):
        raise UserError(f"{dotted}={value!r}: choose one of {', '.join(typing.get_args(field_type))}")
    return value


def _parse(dotted: str, text: str) -> Any:
    """What the command line's text means for this field."""
    field_type = _TYPES[dotted]
    if _is_optional(field_type) and text.lower() == "none":
        return None
    base = _base_type(field_type)
    try:
        if base is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        if base is tuple:
            return tuple(word.strip() for word in text.split(",") if word.strip())
        return _convert(dotted, base(text.replace("_", "") if base is int else text))
    except (KeyError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{dotted}={text!r}: give {_describe(field_type)}") from None


def _describe(field_type: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", tuple: "texts"}
    return words[_base_type(field_type)] + (" or None" if _is_optional(field_type) else "")


# --- checks ---------------------------------------------------------------------------------------------


def find_problems(config: Config) -> list[str]:
    """Everything that is wrong with the values, one line each; empty where nothing is."""
    model, data, optim, train = config.model, config.data, config.optim, config.train
    problems = []

    def at_least(lowest: float, dotted: str) -> None:
        value = value_of(config, dotted)
        if value is not None and not value >= lowest:  # "not >=" so that nan is caught too
            problems.append(f"{dotted}={value!r}: give {lowest} or more")

    def above(lowest: float, dotted: str) -> None:
        value = value_of(config, dotted)
        if value is not None and not lowest < value < float("inf"):
            problems.append(f"{dotted}={value!r}: give a number above {lowest:g}")

    def between(low: float, high: float, dotted: str) -> None:
        value = value_of(config, dotted)
        if not low <= value < high:
            problems.append(f"{dotted}={value!r}: give a number from {low} to below {high}")

    sizes = "vocab_size vocab_multiple context_length d_model num_layers num_heads num_kv_heads embedding_dim"
    for name in [*sizes.split(), "attention_window"]:
        at_least(1, f"model.{name}")
    at_least(0, "model.d_ff")
    if model.num_heads >= 1 and model.d_model % model.num_heads:
        problems.append(
            f"model.d_model={model.d_model} is not a multiple of model.num_heads={model.num_heads}: "
            "every head gets d_model / num_heads numbers"
        )
    if model.position == "sinusoidal" and model.d_model % 2:
        problems.append(f"model.d_model={model.d_model} is odd: position='sinusoidal' needs an even width")
    if model.kv_heads >= 1 and model.num_heads % model.kv_heads:
        problems.append(
            f"model.num_heads={model.num_heads} is not a multiple of model.num_kv_heads={model.kv_heads}: "
            "every head of keys serves equally many heads of queries"
        )
    if model.position == "rotary" and model.num_heads >= 1 and model.head_dim % 2:
        problems.append(
            f"model.d_model={model.d_model} over model.num_heads={model.num_heads} gives heads of {model.head_dim}: "
            "position='rotary' turns pairs of numbers, give an even width"
        )
    at_least(0, "model.lora_rank")
    above(0.0, "model.lora_alpha")
    linear = ["query", "key", "value", "out", "up", "gate", "down"]
    absent = linear[4:] if model.d_ff == 0 else [] if model.gated else ["gate"]
    if wrong := [name for name in model.lora_targets if name not in linear or name in absent]:
        problems.append(
            f"model.lora_targets: this model has no layer {', '.join(wrong)}: choose among {', '.join(linear)}"
        )
    if model.lora_rank and not model.lora_targets:
        problems.append(
            "model.lora_rank is given and model.lora_targets is empty: name layers, such as query,value"
        )
    if not model.causal and model.attention_window is not None:
        problems.append(
            f"model.attention_window={model.attention_window} counts the tokens before: it needs model.causal=true"
        )
    if not model.causal and train.sample_tokens:
        problems.append(
            f"train.sample_tokens={train.sample_tokens}: a model without a causal mask (model.causal=false) can't "
            "write with a cache; set train.sample_tokens=0"
        )
    between(0.0, 1.0, "model.dropout_rate")
    above(1.0, "model.rotary_base")
    above(0.0, "model.init_scale")
    above(0.0, "model.attention_scale")
    at_least(0, "model.attention_softcap")
    at_least(0, "model.logit_softcap")

    at_least(1, "data.batch_size")
    at_least(1, "data.vocab_size")
    at_least(0, "data.seed")
    if not 0.0 < data.valid_fraction < 1.0:
        problems.append(f"data.valid_fraction={data.valid_fraction}: give a number between 0 and 1")
    if not data.path and not data.corpus:
        problems.append("data.corpus and data.path are both empty: give a corpus or a file")
    if data.tokenizer == "bpe" and not data.tokenizer_path and (data.vocab_size or 0) < 257:
        problems.append(
            f"data.vocab_size={data.vocab_size}: tokenizer='bpe' needs 257 or more (256 bytes first)"
        )
    if data.tokenizer == "gpt2" and data.vocab_size not in (None, 50_257):
        problems.append(f"data.vocab_size={data.vocab_size}: tokenizer='gpt2' has 50257 tokens; leave it out")
    if data.vocab_size is not None and data.vocab_size > 2**31 - 1:
        problems.append(f"data.vocab_size={data.vocab_size}: ids are 32-bit, the limit is {2**31 - 1}")

    if data.add_tokens and (not data.tokenizer_path or data.tokenizer not in ("char", "word")):
        problems.append(
            "data.add_tokens adds to a char or word tokenizer: give its file as data.tokenizer_path "
            "(RUN/tokenizer.json); a bpe tokenizer has all bytes and needs none"
        )

    at_least(-1, "optim.train_rows_from")
    if optim.train_rows_from == -1 and not data.add_tokens:
        problems.append(
            "optim.train_rows_from=-1 trains the rows that data.add_tokens adds: set data.add_tokens=true"
        )
    above(0.0, "optim.learning_rate")
    above(0.0, "optim.muon_learning_rate")
    if optim.schedule != "constant" and not 0 <= optim.final_learning_rate <= optim.learning_rate:
        problems.append(
            f"optim.final_learning_rate={optim.final_learning_rate}: give a number from 0 to "
            f"optim.learning_rate={optim.learning_rate}"
        )
    at_least(0, "optim.warmup_steps")
    between(0.0, 1.0, "optim.b1")
    between(0.0, 1.0, "optim.b2")
    at_least(0, "optim.eps")
    at_least(0, "optim.weight_decay")
    at_least(0, "optim.grad_clip_norm")
    between(0.0, 1.0, "optim.muon_momentum")
    at_least(1, "optim.muon_iterations")
    between(0.0, 1.0, "optim.ema_decay")
    at_least(1, "optim.mup_base_width")
    if optim.name == "schedule_free" and optim.schedule != "constant":
        problems.append(
            f"optim.schedule={optim.schedule!r}: optim.name='schedule_free' averages instead of lowering "
            "the rate, set optim.schedule='constant'"
        )
    if optim.name == "schedule_free" and not optim.b1 > 0:
        problems.append(f"optim.b1={optim.b1}: optim.name='schedule_free' needs a number above 0")
    if optim.name == "schedule_free" and optim.ema_decay:
        problems.append(
            f"optim.ema_decay={optim.ema_decay}: optim.name='schedule_free' has its own average, leave it 0"
        )
    if optim.parametrization == "mup":
        if optim.name not in ("adamw", "muon"):
            problems.append(f"optim.name={optim.name!r}: parametrization='mup' is for adamw and muon")
        if (model.init, model.tie_embeddings, model.zero_init) != ("fan_in", False, True):
            problems.append(
                "optim.parametrization='mup' needs model.init='fan_in', model.tie_embeddings=false and "
                "model.zero_init=true"
            )
    for rule in optim.rates:
        pattern, _, factor = rule.rpartition("=")
        try:
            good = bool(pattern) and 0.0 < float(factor) < float("inf")
        except ValueError:
            good = False
        if not good:
            problems.append(
                f"optim.rates: {rule!r} is no PATTERN=FACTOR with a factor above 0, such as block_*/mlp/*=0.1 "
                "(optim.trainable says what stays)"
            )
    if not 0.0 < optim.decay_fraction <= 1.0:
        problems.append(f"optim.decay_fraction={optim.decay_fraction}: give a number above 0 and at most 1")

    counts = "num_steps log_every keep_checkpoints grad_accumulation_steps eval_batch_size steps_per_dispatch"
    for name in counts.split():
        at_least(1, f"train.{name}")
    counts = "eval_every checkpoint_every eval_tokens sample_tokens embedding_snapshots seed loss_chunk watchdog_seconds"
    for name in counts.split():
        at_least(0, f"train.{name}")
    at_least(0, "train.bad_grad_norm")
    for name in ("num_steps", "eval_every", "checkpoint_every"):
        value = getattr(train, name)
        if train.steps_per_dispatch >= 1 and value % train.steps_per_dispatch:
            problems.append(
                f"train.{name}={value} is not a multiple of train.steps_per_dispatch={train.steps_per_dispatch}"
            )
    if train.loss_chunk >= 1 and model.context_length % train.loss_chunk:
        problems.append(
            f"model.context_length={model.context_length} is not a multiple of train.loss_chunk={train.loss_chunk}"
        )
    if train.attention == "cudnn" and (obstacle := model.cudnn_obstacle):
        problems.append(f"train.attention='cudnn': {obstacle}; choose 'auto' or 'explicit'")
    if max(train.num_steps, train.seed, config.order_seed) > 2**31 - 1:
        problems.append(f"train.num_steps, train.seed and data.seed are 32-bit: the limit is {2**31 - 1}")
    if train.grad_accumulation_steps >= 1 and data.batch_size % train.grad_accumulation_steps:
        problems.append(
            f"data.batch_size={data.batch_size} is not a multiple of "
            f"train.grad_accumulation_steps={train.grad_accumulation_steps}"
        )

    if config.init_from and config.init_vectors:
        problems.append("init_from and init_vectors are both given: a token table begins as one of them")

    sizes = dataclasses.asdict(config.mesh)
    for name, size in sizes.items():
        if size != -1 and size < 1:
            problems.append(
                f"mesh.{name}={size}: give 1 or more, or -1 for all devices that the others leave"
            )
    if list(sizes.values()).count(-1) > 1:
        problems.append(f"mesh {sizes}: only one size can be -1, all devices that the others leave")
    return problems
