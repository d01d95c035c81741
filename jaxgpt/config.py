"""What a run is: frozen dataclasses, and the one place where a config is checked.

A config file gives a ConfigDict (`get_config()`), the command line may change any field of it, and
`from_config_dict` turns it into the frozen `Config` that the rest of the package takes. Past this module
there is no ConfigDict, no `.get` and no second default: every default stands here, once.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from ml_collections import ConfigDict, config_dict


class UserError(ValueError):
    """A mistake that the user can mend. Its text says what was given, what is possible and what to do.

    The command lines print the text alone and exit with code 2; any other exception is a fault of ours and
    keeps its traceback.
    """


@dataclass(frozen=True)
class Model:
    """The shape of the transformer. Sizes are counts; `None` means "follows from another field"."""

    # Rows of the embedding table. Left None it is the tokenizer's; given, it must be the tokenizer's.
    vocab_size: int | None = None
    context_length: int = 256  # T: tokens that the model sees at once
    d_model: int = 384  # D: width of the residual stream
    num_layers: int = 6
    num_heads: int = 6  # H: d_model is split into num_heads x (d_model // num_heads)
    d_ff: int | None = None  # F: width of the MLP's hidden layer; None: 4 * d_model
    dropout_rate: float = 0.0  # on embeddings, attention weights and what each layer adds; training only
    activation: Literal["relu", "gelu", "gelu_tanh"] = "gelu"
    position: Literal["learned", "sinusoidal", "none"] = "learned"
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    use_bias: bool = True  # in linear layers and in the norms
    tie_embeddings: bool = True  # the output head is the transposed embedding table

    @property
    def head_dim(self) -> int:
        """K: the width of one head."""
        return self.d_model // self.num_heads


@dataclass(frozen=True)
class Data:
    """Which text, which tokens, and how many of them a step."""

    corpus: str = "shakespeare"  # a name from corpora.CORPORA; not used where `path` is given
    path: str = ""  # a UTF-8 text file, or a folder of them (joined in name order)
    tokenizer: Literal["char", "word", "bpe", "gpt2"] = "char"
    # A folder with GPT-2's two vocabulary files, or a tokenizer.json of an earlier run.
    tokenizer_path: str = ""
    # bpe: the size to train; word: at most that many, the rest is <unk>; char: refuse a text with more.
    vocab_size: int | None = None
    valid_fraction: float = 0.1  # the last part of the text, by characters
    batch_size: int = 64  # sequences a step, over all devices and accumulation steps


@dataclass(frozen=True)
class Optim:
    """How parameters move."""

    name: Literal["adamw"] = "adamw"
    learning_rate: float = 1e-3  # the peak
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    warmup_steps: int = 100  # linear from 0 to learning_rate
    final_learning_rate: float = 1e-4  # at num_steps; not used by "constant"
    decay_fraction: float = 0.2  # "wsd" only: the last part of the run, in which the rate falls
    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.1  # on matrices; never on biases and norms
    decay_embeddings: bool = False  # on the token and position tables too, as nanoGPT does
    grad_clip_norm: float = 1.0  # on the global norm; 0: off


@dataclass(frozen=True)
class Train:
    """How long, how often, and what is kept. All counts are optimizer steps unless they say otherwise."""

    num_steps: int = 5_000
    eval_every: int = 500  # 0: only at the end
    log_every: int = 10
    checkpoint_every: int = 500  # 0: only at the end
    keep_checkpoints: int = 2  # the newest so many; the best by validation loss is kept besides
    grad_accumulation_steps: int = 1  # batch_size is split into so many parts, one after another
    eval_batch_size: int | None = None  # sequences; None: data.batch_size / grad_accumulation_steps
    eval_tokens: int = 0  # the first so many tokens of the validation split; 0: all of it
    sample_tokens: int = 200  # tokens of text written at every evaluation; 0: none
    sample_prompt: str = ""  # what samples go on from; empty: a new line
    # The embedding tables are kept for later study at step 0 and at so many log-spaced steps from 1 to
    # num_steps, the end included. 0: none are kept.
    embedding_snapshots: int = 8
    tensorboard: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Config:
    """One run."""

    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    optim: Optim = field(default_factory=Optim)
    train: Train = field(default_factory=Train)


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
    return ConfigDict(groups)


def default_config() -> ConfigDict:
    """The defaults as a ConfigDict, for config files to start from."""
    return to_config_dict(Config())


def from_config_dict(values: ConfigDict | dict[str, Any]) -> Config:
    """The frozen Config of a ConfigDict, checked. Raises UserError that lists every problem at once."""
    problems: list[str] = []
    groups: dict[str, dict[str, Any]] = {group: {} for group in _FIELDS}
    for group, fields in values.items():
        if group not in _FIELDS or not isinstance(fields, dict | ConfigDict):
            problems.append(_unknown(group))
            continue
        for name, value in fields.items():
            if name not in _FIELDS[group]:
                problems.append(_unknown(f"{group}.{name}"))
                continue
            try:
                groups[group][name] = _convert(f"{group}.{name}", value)
            except UserError as error:
                problems.append(str(error))
    if problems:
        _raise_all(problems)
    config = Config(
        model=Model(**groups["model"]),
        data=Data(**groups["data"]),
        optim=Optim(**groups["optim"]),
        train=Train(**groups["train"]),
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
        group, _, name = dotted.partition(".")
        if name not in _FIELDS.get(group, {}):
            problems.append(_unknown(dotted))
            continue
        if not isinstance(merged.setdefault(group, {}), dict):
            continue  # from_config_dict tells what is wrong with it
        try:
            merged[group] = {**merged[group], name: _parse(dotted, text)}
        except UserError as error:
            problems.append(str(error))
    if problems:
        _raise_all(problems)
    return merged


def to_json(config: Config) -> dict[str, dict[str, Any]]:
    """Plain dictionaries, as written to config.json; `from_config_dict` reads them back."""
    return dataclasses.asdict(config)


def differences(old: Config, new: Config) -> list[str]:
    """One entry for each field that differs: `model.d_model: 128 -> 256`."""
    return [
        f"{group}.{name}: {before!r} -> {after!r}"
        for group, fields in _FIELDS.items()
        for name in fields
        if (before := getattr(getattr(old, group), name)) != (after := getattr(getattr(new, group), name))
    ]


_FIELDS: dict[str, dict[str, Any]] = {
    group: typing.get_type_hints(group_type) for group, group_type in typing.get_type_hints(Config).items()
}


def field_names() -> list[str]:
    """The dotted name of every field, in order."""
    return [f"{group}.{name}" for group, fields in _FIELDS.items() for name in fields]


def _type_of(dotted: str) -> Any:
    group, name = dotted.split(".")
    return _FIELDS[group][name]


def _base_type(field_type: Any) -> type:
    """`int` of `int | None`, `str` of a Literal."""
    if typing.get_origin(field_type) is Literal:
        return str
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
    return f"unknown field {dotted}: the groups are {', '.join(_FIELDS)}"


def _raise_all(problems: list[str]) -> typing.NoReturn:
    if len(problems) == 1:
        raise UserError(problems[0])
    raise UserError(f"{len(problems)} problems in the config:\n" + "\n".join(f"  - {p}" for p in problems))


def _convert(dotted: str, value: Any) -> Any:
    """The value, if it is of its field's type (an int will do for a float); else UserError."""
    field_type = _type_of(dotted)
    if value is None and _is_optional(field_type):
        return None
    base = _base_type(field_type)
    if base is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, base) or (base is not bool and isinstance(value, bool)):
        raise UserError(f"{dotted}={value!r} is of type {type(value).__name__}: give {_describe(field_type)}")
    if typing.get_origin(field_type) is Literal and value not in typing.get_args(field_type):
        raise UserError(f"{dotted}={value!r}: choose one of {', '.join(typing.get_args(field_type))}")
    return value


def _parse(dotted: str, text: str) -> Any:
    """What the command line's text means for this field."""
    field_type = _type_of(dotted)
    if _is_optional(field_type) and text.lower() == "none":
        return None
    base = _base_type(field_type)
    try:
        if base is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        return _convert(dotted, base(text.replace("_", "") if base is int else text))
    except (KeyError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{dotted}={text!r}: give {_describe(field_type)}") from None


def _describe(field_type: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return words[_base_type(field_type)] + (" or None" if _is_optional(field_type) else "")


# --- checks ---------------------------------------------------------------------------------------------


def find_problems(config: Config) -> list[str]:
    """Everything that is wrong with the values, one line each; empty where nothing is."""
    model, data, optim, train = config.model, config.data, config.optim, config.train
    problems = []

    def at_least(lowest: float, dotted: str) -> None:
        value = getattr(getattr(config, dotted.split(".")[0]), dotted.split(".")[1])
        if value is not None and not value >= lowest:  # "not >=" so that nan is caught too
            problems.append(f"{dotted}={value!r}: give {lowest} or more")

    def between(low: float, high: float, dotted: str) -> None:
        value = getattr(getattr(config, dotted.split(".")[0]), dotted.split(".")[1])
        if not low <= value < high:
            problems.append(f"{dotted}={value!r}: give a number from {low} to below {high}")

    for name in "vocab_size context_length d_model num_layers num_heads d_ff".split():
        at_least(1, f"model.{name}")
    if model.num_heads >= 1 and model.d_model % model.num_heads:
        problems.append(
            f"model.d_model={model.d_model} is not a multiple of model.num_heads={model.num_heads}: "
            "every head gets d_model / num_heads numbers"
        )
    if model.position == "sinusoidal" and model.d_model % 2:
        problems.append(f"model.d_model={model.d_model} is odd: position='sinusoidal' needs an even width")
    between(0.0, 1.0, "model.dropout_rate")

    at_least(1, "data.batch_size")
    at_least(1, "data.vocab_size")
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

    if not optim.learning_rate > 0 or optim.learning_rate == float("inf"):
        problems.append(f"optim.learning_rate={optim.learning_rate}: give a number above 0")
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
    if not 0.0 < optim.decay_fraction <= 1.0:
        problems.append(f"optim.decay_fraction={optim.decay_fraction}: give a number above 0 and at most 1")

    for name in "num_steps log_every keep_checkpoints grad_accumulation_steps eval_batch_size".split():
        at_least(1, f"train.{name}")
    for name in "eval_every checkpoint_every eval_tokens sample_tokens embedding_snapshots seed".split():
        at_least(0, f"train.{name}")
    if train.num_steps > 2**31 - 1 or train.seed > 2**31 - 1:
        problems.append(f"train.num_steps and train.seed are 32-bit: the limit is {2**31 - 1}")
    if train.grad_accumulation_steps >= 1 and data.batch_size % train.grad_accumulation_steps:
        problems.append(
            f"data.batch_size={data.batch_size} is not a multiple of "
            f"train.grad_accumulation_steps={train.grad_accumulation_steps}"
        )
    return problems


# --- shapes that the field speaks of --------------------------------------------------------------------


def _gpt2(d_model: int, num_layers: int, num_heads: int) -> Model:
    """Radford et al. 2019, table 2."""
    return Model(
        vocab_size=50_257, context_length=1024, d_model=d_model, num_layers=num_layers, num_heads=num_heads,
        dropout_rate=0.0, activation="gelu_tanh",
    )  # fmt: skip


def _gpt3(d_model: int, num_layers: int, num_heads: int) -> Model:
    """Brown et al. 2020, table 2.1, dense attention in every layer (the paper alternates with sparse)."""
    return dataclasses.replace(_gpt2(d_model, num_layers, num_heads), context_length=2048)


def _bert(d_model: int, num_layers: int, num_heads: int) -> Model:
    """Devlin et al. 2019, section 3, as a decoder: masked, no segment embeddings, no pooler."""
    return Model(
        vocab_size=30_522, context_length=512, d_model=d_model, num_layers=num_layers, num_heads=num_heads,
        activation="gelu",
    )  # fmt: skip


PRESETS: dict[str, Model] = {
    # Vaswani et al. 2017, table 3, "base": its decoder stack without the attention to an encoder.
    "transformer-2017": Model(
        vocab_size=37_000, context_length=512, d_model=512, num_layers=6, num_heads=8, d_ff=2048,
        activation="relu", position="sinusoidal", dropout_rate=0.1,
    ),
    "bert-base": _bert(768, 12, 12),
    "bert-large": _bert(1024, 24, 16),
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "gpt3-small": _gpt3(768, 12, 12),
    "gpt3-medium": _gpt3(1024, 24, 16),
    "gpt3-large": _gpt3(1536, 24, 16),
    # The paper's table gives 24 heads of 128 for a width of 2048, which do not fit it; 16 of 128 do.
    "gpt3-xl": _gpt3(2048, 24, 16),
    "gpt3-2.7b": _gpt3(2560, 32, 32),
    "gpt3-6.7b": _gpt3(4096, 32, 32),
    # 5140 in the paper's table, which 40 heads of 128 do not fill; 5120 is what they do.
    "gpt3-13b": _gpt3(5120, 40, 40),
    "gpt3-175b": _gpt3(12288, 96, 96),
}  # fmt: skip


def preset(name: str) -> ConfigDict:
    """The model group of a named shape, as a ConfigDict. Raises UserError that lists the names."""
    if name not in PRESETS:
        raise UserError(f"no preset named {name!r}: choose one of {', '.join(PRESETS)}")
    return to_config_dict(Config(model=PRESETS[name])).model
