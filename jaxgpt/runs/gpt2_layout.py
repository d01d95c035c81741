"""Convert between GPT-2's files and ours: config.json <-> ModelConfig, tensors <-> params.

The architecture is GPT-2 (Radford et al. 2019), the names are those of GPT2LMHeadModel in transformers. Its linear
layers (Conv1D) are stored [in, out] as ours, but queries, keys and values share one matrix [D, 3D], and heads have no
axis. Each of our arrays is a part of one of theirs in another shape, with the same numbers.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxgpt import config
from jaxgpt.common.files import read_json
from jaxgpt.config import UserError
from jaxgpt.model import linear
from jaxgpt.model.initial import GPT2_STD
from jaxgpt.model.layers import sinusoids
from jaxgpt.model.parameters import param_shapes
from jaxgpt.model.paths import named_leaves
from jaxgpt.runs.tensor_files import TensorFiles

MAX_CONFIG_SIZE = 1 << 20  # bytes; GPT-2's config.json has 665
SIZES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
_MOST_PADDING = 1024  # rows after the tokens; more are those of another tokenizer
MAX_SIZE = 2**31 - 1  # of a number in config.json

# Theirs -> ours. relu2 is max(x, 0)^2.
ACTIVATIONS: dict[str, Any] = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu",
               "relu2": "relu_squared"}  # fmt: skip
_THEIR_ACTIVATIONS = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}

# The defaults of transformers for fields that config.json lacks.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 50_257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "activation_function": "gelu_new",
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,  # float32 scores, as ours always are
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}

# Other names of fields, which transformers accepts too.
_ALIASES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}

# --- config.json ----------------------------------------------------------------------------------------


def read_config(path: Path) -> tuple[config.ModelConfig, list[str]]:
    """The ModelConfig that a config.json describes, and the sizes that it lacks, such as `n_layer=12`: the defaults.

    Raises UserError with everything that is not supported.

    Of the three dropout rates resid_pdrop is used. Fields that do not influence the model are ignored.
    """
    try:
        values = read_json(path, MAX_CONFIG_SIZE)
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({error.strerror}): give a folder with GPT-2's config.json"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): give a complete config.json") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a JSON object: give a model's config.json")
    if values.get("model_type") != "gpt2":
        raise UserError(f"{path} has model_type={values.get('model_type')!r}: only 'gpt2' can be imported")
    for alias, name in _ALIASES.items():
        if alias in values and values.setdefault(name, values[alias]) != values[alias]:
            raise UserError(
                f"{path} has {alias}={values[alias]!r} and {name}={values[name]!r}, two names of one field: "
                "remove the wrong one"
            )
    if problems := _config_problems(values):
        raise UserError(f"{path} can't be imported: {'; '.join(problems)}")
    assumed = [f"{name}={DEFAULTS[name]}" for name in SIZES if name not in values]
    given = DEFAULTS | {name: values[name] for name in DEFAULTS if name in values}
    cfg = config.ModelConfig(
        vocab_size=given["vocab_size"],
        context_length=given["n_positions"],
        d_model=given["n_embd"],
        num_layers=given["n_layer"],
        num_heads=given["n_head"],
        d_ff=given["n_inner"] or 4 * given["n_embd"],
        dropout_rate=float(given["resid_pdrop"]),
        activation=ACTIVATIONS[given["activation_function"]],
        attention_scale=None if given["scale_attn_weights"] else 1.0,
        norm_epsilon=float(given["layer_norm_epsilon"]),
        tie_embeddings=given["tie_word_embeddings"],
    )
    return cfg, assumed


def with_padding(cfg: config.ModelConfig, num_tokens: int) -> config.ModelConfig:
    """The same model where only the first `num_tokens` rows of the table are tokens: the rows after them pad it.

    Padding rows are never looked up and have no probability. Raises UserError where they are too many for padding.
    """
    rows = cfg.num_tokens
    if rows == num_tokens:
        return cfg
    if rows - num_tokens > max(_MOST_PADDING, rows // 8):
        raise UserError(f"the tokenizer has {num_tokens:,} tokens, the model {rows:,}")
    multiples = [*(1 << n for n in range(1, 11)), rows]
    multiple = next(m for m in multiples if -(-num_tokens // m) * m == rows)
    return dataclasses.replace(cfg, vocab_size=num_tokens, vocab_multiple=multiple)


def _config_problems(values: dict[str, Any]) -> list[str]:
    problems = []
    given = DEFAULTS | {name: values[name] for name in DEFAULTS if name in values}
    for name, default in DEFAULTS.items():
        value = given[name]
        if isinstance(default, bool):
            if not isinstance(value, bool):
                problems.append(f"{name}={value!r} is not true or false")
        elif isinstance(default, int) or name == "n_inner":
            if not (type(value) is int and 1 <= value <= MAX_SIZE) and not (
                name == "n_inner" and value is None
            ):
                problems.append(f"{name}={value!r} is not a whole number from 1 to {MAX_SIZE}")
        elif isinstance(default, float) and (type(value) not in (int, float) or not 0 <= value < 1):
            problems.append(f"{name}={value!r} is not a number from 0 to below 1")
    if problems:
        return problems
    if given["n_embd"] % given["n_head"]:
        problems.append(f"n_embd={given['n_embd']} is not a multiple of n_head={given['n_head']}")
    if not isinstance(given["activation_function"], str) or given["activation_function"] not in ACTIVATIONS:
        problems.append(
            f"activation_function={given['activation_function']!r} is not one of {', '.join(ACTIVATIONS)}"
        )
    if not given["layer_norm_epsilon"]:
        problems.append("layer_norm_epsilon=0, and it is above 0 here")
    if given["scale_attn_by_inverse_layer_idx"]:
        problems.append(
            "scale_attn_by_inverse_layer_idx=true, but all layers here scale their scores in the same way"
        )
    if given["add_cross_attention"]:
        problems.append("add_cross_attention=true, but there is no encoder here")
    if values.get("auto_map"):
        problems.append("auto_map names code of the model, and no such code is executed")
    if values.get("quantization_config"):
        problems.append("quantization_config: give the weights before quantization")
    return problems


def write_config(cfg: config.ModelConfig, eos_id: int | None) -> dict[str, Any]:
    """The content of a config.json. Raises UserError with every one of the model's `obstacles`."""
    if found := obstacles(cfg):
        raise UserError(f"this model can't be exported as GPT-2, which has {'; '.join(found)}")
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": cfg.vocab_size,
        "n_positions": cfg.context_length,
        "n_embd": cfg.d_model,
        "n_layer": cfg.num_layers,
        "n_head": cfg.num_heads,
        "n_inner": None if cfg.mlp_width == 4 * cfg.d_model else cfg.mlp_width,
        "activation_function": _THEIR_ACTIVATIONS[cfg.activation],
        "resid_pdrop": cfg.dropout_rate,
        "embd_pdrop": cfg.dropout_rate,
        "attn_pdrop": cfg.dropout_rate,
        "layer_norm_epsilon": cfg.norm_epsilon,
        "initializer_range": GPT2_STD,
        "scale_attn_weights": _scaled(cfg),
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "tie_word_embeddings": cfg.tie_embeddings,
        "bos_token_id": eos_id,
        "eos_token_id": eos_id,
        "use_cache": True,
        "torch_dtype": "float32",
    }


def _scaled(cfg: config.ModelConfig) -> bool:
    """Whether the scores are q k / sqrt(K), not q k."""
    return cfg.attention_scale is None or math.isclose(
        cfg.attention_scale, cfg.head_width**-0.5, rel_tol=1e-7
    )


# The fields that GPT-2 can express, at least in part, or that change no result. All others must have their default:
# a field that is added later is then reported, not ignored.
_EXPRESSED = frozenset(
    "vocab_size vocab_multiple context_length d_model num_layers num_heads num_kv_heads d_ff dropout_rate activation "
    "position rotary_base rotary_fraction norm norm_epsilon attention_scale attention_window use_bias attention_bias "
    "tie_embeddings init zero_init dtype document_end".split()
)


def obstacles(cfg: config.ModelConfig) -> list[str]:
    """What GPT-2's architecture can't express of a model, each as `GPT-2's feature, not model.field=value`."""
    found = []
    if cfg.position == "rotary":
        found.append("a table of positions, not model.position='rotary'")
    if cfg.norm != "layernorm":
        found.append(f"LayerNorm, not model.norm={cfg.norm!r}")
    if cfg.activation not in _THEIR_ACTIVATIONS:
        found.append(f"an MLP of two matrices, not model.activation={cfg.activation!r}")
    if cfg.attention_scale not in (None, 1.0) and not _scaled(cfg):
        found.append(
            f"scores times 1 / sqrt(head width) or 1, not model.attention_scale={cfg.attention_scale}"
        )
    if not cfg.mlp_width:
        found.append("an MLP in every block, not model.d_ff=0")
    if cfg.attention_window is not None and cfg.attention_window < cfg.context_length:
        found.append(f"attention to all tokens before, not model.attention_window={cfg.attention_window}")
    expressed = {path.rpartition("/")[0] for _, _, paths in BLOCK for path in paths.split()}
    for layer in linear.present(cfg):
        if layer.module and layer.path not in expressed and layer.name != "gate":  # the activation says that
            found.append(f"no linear layer {layer.path}")
    for field in dataclasses.fields(cfg):
        if field.name not in _EXPRESSED and getattr(cfg, field.name) != field.default:
            found.append(f"no model.{field.name}={getattr(cfg, field.name)!r}")
    return found


def notes(cfg: config.ModelConfig) -> list[str]:
    """What an export expresses differently, with the same result."""
    said = []
    if not (cfg.use_bias and linear.LINEAR["query"].has_bias(cfg)):
        said.append("biases, which this model lacks, are written as zeros")
    if cfg.kv_heads != cfg.num_heads:
        said.append(
            f"each of the {cfg.kv_heads} heads of keys and values is written {cfg.num_heads // cfg.kv_heads} times"
        )
    if cfg.position != "learned":
        said.append(f"the positions ({cfg.position}) are written as a table of {cfg.context_length} rows")
    if cfg.table_rows != cfg.vocab_size:
        said.append(f"the {cfg.table_rows - cfg.num_tokens} rows that pad the vocabulary are cut")
    if cfg.dtype != "float32":
        said.append(
            f"weights are float32; this run computes in {cfg.dtype}, so logits agree to its precision"
        )
    return said


# --- tensors --------------------------------------------------------------------------------------------

# Their tensor, its shape, and our arrays in it, concatenated along the last axis.
BLOCK = (
    ("ln_1.weight", "D", "attention_norm/scale"),
    ("ln_1.bias", "D", "attention_norm/bias"),
    ("attn.c_attn.weight", "D 3D", "attention/query/kernel attention/key/kernel attention/value/kernel"),
    ("attn.c_attn.bias", "3D", "attention/query/bias attention/key/bias attention/value/bias"),
    ("attn.c_proj.weight", "D D", "attention/out/kernel"),
    ("attn.c_proj.bias", "D", "attention/out/bias"),
    ("ln_2.weight", "D", "mlp_norm/scale"),
    ("ln_2.bias", "D", "mlp_norm/bias"),
    ("mlp.c_fc.weight", "D F", "mlp/up/kernel"),
    ("mlp.c_fc.bias", "F", "mlp/up/bias"),
    ("mlp.c_proj.weight", "F D", "mlp/down/kernel"),
    ("mlp.c_proj.bias", "D", "mlp/down/bias"),
)
REST = (
    ("wte.weight", "V D", "token_embedding/embedding"),
    ("wpe.weight", "T D", "position_embedding/embedding"),
    ("ln_f.weight", "D", "final_norm/scale"),
    ("ln_f.bias", "D", "final_norm/bias"),
)
HEAD = "lm_head.weight"  # [V, D]: ours is transposed
PREFIX = "transformer."  # of all names except the head, if the model was saved with a head
_LAYER = re.compile(r"(?:transformer\.)?h\.(\d{1,9})\.")
_WRAPPER = re.compile(r"(?:_orig_mod\.|module\.)+")
_BUFFER = re.compile(
    r"(?:transformer\.)?h\.\d+\.attn\.(bias|masked_bias)"
)  # masks, which older versions kept


@dataclass(frozen=True)
class Place:
    """One of their tensors: its name without prefix, its shape, and the paths of our arrays in it."""

    name: str
    shape: tuple[int, ...]
    paths: tuple[str, ...]


def places(cfg: config.ModelConfig, rows: int) -> list[Place]:
    """All tensors of a model in the order of the forward pass, with the head if it is not tied.

    `rows` of the token table are stored: with or without those that pad it.
    """
    sizes = {"V": rows, "T": cfg.context_length, "D": cfg.d_model, "3D": 3 * cfg.d_model,
             "F": cfg.mlp_width}  # fmt: skip

    def place(name: str, letters: str, paths: str, i: int | None = None) -> Place:
        theirs, ours = ("", "") if i is None else (f"h.{i}.", f"block_{i}/")
        shape = tuple(sizes[letter] for letter in letters.split())
        return Place(theirs + name, shape, tuple(ours + path for path in paths.split()))

    blocks = [place(*row, i=i) for i in range(cfg.num_layers) for row in BLOCK]
    tables, norm = [place(*row) for row in REST[:2]], [place(*row) for row in REST[2:]]
    head = [] if cfg.tie_embeddings else [Place(HEAD, (rows, cfg.d_model), ("head/kernel",))]
    return [*tables, *blocks, *norm, *head]


def check_tensors(
    files: TensorFiles, cfg: config.ModelConfig, assumed: Sequence[str] = ()
) -> dict[str, Place]:
    """The place of every tensor of the model by its name in the files.

    `assumed` are the sizes that config.json lacks, for messages. Reads only headers, and allocates nothing: a
    config.json may claim any size. Raises UserError if layers, names or shapes differ from the config's.
    """
    names, wrapper = files.names(), _wrapper(files)
    lacks = f" (it lacks {', '.join(assumed)}: the defaults)" if assumed else ""
    layers = {int(match[1]) for name in names if (match := _LAYER.match(name.removeprefix(wrapper)))}
    if len(layers) != cfg.num_layers:
        depth = f"n_layer={cfg.num_layers}"
        said = f"lacks n_layer, and {depth} is the default" if depth in assumed else f"says {depth}"
        raise UserError(
            f"{files.source} holds {len(layers)} layers, its config.json {said}: correct config.json"
        )
    prefix = PREFIX if any(name.startswith(wrapper + PREFIX) for name in names) else ""
    stored = {
        wrapper + (place.name if place.name == HEAD else prefix + place.name): place
        for place in places(cfg, cfg.table_rows)
    }
    head = wrapper + HEAD
    files.check_names(
        stored,
        ignored=lambda n: (
            bool(_BUFFER.fullmatch(n.removeprefix(wrapper))) or (cfg.tie_embeddings and n == head)
        ),
    )
    wrong = [
        f"{name} is {list(files.shape(name))}, not {list(place.shape)}"
        for name, place in stored.items()
        if files.shape(name) != place.shape
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise UserError(f"{files.source} does not fit its config.json{lacks}: {wrong[0]}{more}")
    return stored


def _wrapper(files: TensorFiles) -> str:
    """What torch.compile and DistributedDataParallel put in front of every name, "" without them."""
    found = {(match and match[0]) or "" for match in map(_WRAPPER.match, files.names())}
    return found.pop() if len(found) == 1 else ""


def read_params(files: TensorFiles, cfg: config.ModelConfig) -> dict:
    """The params (float32) of a model from its files. Raises UserError, as `check_tensors`."""
    shapes = {path: leaf.shape for path, leaf in named_leaves(param_shapes(cfg))}
    head = _wrapper(files) + HEAD
    params: dict[str, Any] = {}
    for name, place in check_tensors(files, cfg).items():
        array = files.read(name)
        if cfg.tie_embeddings and place.name == "wte.weight" and head in files.names():
            _check_tied(files, head, array)
        for path, part in zip(place.paths, np.split(array, len(place.paths), axis=-1), strict=True):
            *groups, leaf = path.split("/")
            owner = params
            for group in groups:
                owner = owner.setdefault(group, {})
            owner[leaf] = jnp.array(part.T if place.name == HEAD else part.reshape(shapes[path]))
    return params


def _check_tied(files: TensorFiles, head: str, table_VD: np.ndarray) -> None:
    """Raise UserError if a tied head is stored and differs from the table: transformers uses the table."""
    if files.shape(head) != table_VD.shape or not np.array_equal(files.read(head), table_VD):
        raise UserError(
            f"{files.source} has an {head} other than wte.weight, though its config.json ties the two: "
            "set tie_word_embeddings=false in it"
        )


def write_params(cfg: config.ModelConfig, params: dict) -> dict[str, np.ndarray]:
    """Their tensors by name, as `read_params` reads them, for a model without `obstacles`."""
    ours = dict(named_leaves(params))
    return {
        (place.name if place.name == HEAD else PREFIX + place.name): _theirs(cfg, place, ours)
        for place in places(cfg, cfg.num_tokens)
    }


def _theirs(cfg: config.ModelConfig, place: Place, ours: dict[str, Any]) -> np.ndarray:
    if place.name == HEAD:
        return np.asarray(ours[place.paths[0]], np.float32)[:, : cfg.vocab_size].T
    part_shape = (*place.shape[:-1], place.shape[-1] // len(place.paths))
    parts = []
    for path in place.paths:
        if path in ours:
            part = np.asarray(ours[path], np.float32)
            layer = linear.of_path(path)
            if layer and layer.outputs == "GK":  # -> [..., H, K]
                part = np.repeat(part, cfg.num_heads // cfg.kv_heads, axis=-2)
            if place.name == "wte.weight":
                part = part[: cfg.vocab_size]
        elif place.name == "wpe.weight" and cfg.position == "sinusoidal":
            part = np.asarray(sinusoids(jnp.arange(cfg.context_length), cfg.d_model))
        else:  # no biases, or no positions
            part = np.zeros(part_shape, np.float32)
        parts.append(part.reshape(part_shape))
    return np.concatenate(parts, axis=-1)
