"""What all families of published models share; a family states only what is its own.

A family has one module with one class and one instance in `families.FAMILIES`. It states the fields of config.json with
the defaults of transformers, how they are ours and the reverse, its tensors, and what it can't express.
"""

from __future__ import annotations

import abc
import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from jaxgpt import config
from jaxgpt.config import ModelConfig, UserError
from jaxgpt.config.checks import find_problems
from jaxgpt.model import linear
from jaxgpt.model.parameters import param_shapes
from jaxgpt.model.paths import named_leaves
from jaxgpt.runs.families.places import Place, Row, place
from jaxgpt.runs.tensor_files import Tensors

_MOST_PADDING = 1024  # rows after the tokens; more are those of another tokenizer
MAX_SIZE = 2**31 - 1  # of a number in config.json
_WRAPPER = re.compile(r"(?:_orig_mod\.|module\.)+")

# Theirs -> ours. relu2 is max(x, 0)^2.
ACTIVATIONS: dict[str, Any] = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu",
               "relu2": "relu_squared"}  # fmt: skip
# Of a gated MLP.
GATES: dict[str, Any] = {"silu": "swiglu", "gelu": "geglu"}

# Their fields of sizes -> ours, of the families after GPT-2.
SIZES = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "context_length",
    "hidden_size": "d_model",
    "intermediate_size": "d_ff",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
}

# Fields that change no result of a trained model: how it started, how it is trained, and with which numbers it computes.
_NO_RESULT = frozenset(
    "vocab_size vocab_multiple dropout_rate attention_dropout_rate dropout_bits init init_scale zero_init dtype "
    "document_end".split()
)


class Family(abc.ABC):
    """One architecture of transformers. See the module's docstring."""

    title: ClassVar[str]
    model_type: ClassVar[str]  # of config.json
    architecture: ClassVar[str]  # the class in transformers
    sizes: ClassVar[dict[str, str]]  # their fields of sizes -> ours
    defaults: ClassVar[dict[str, Any]]  # of config.json's fields; a field that is not listed is ignored
    # Sizes that may be null.
    optional: ClassVar[frozenset[str]] = frozenset()
    # Sizes that may be 0.
    from_zero: ClassVar[frozenset[str]] = frozenset()
    # Numbers that are not from 0 to below 1.
    ranges: ClassVar[dict[str, tuple[float, float]]] = {}
    aliases: ClassVar[dict[str, str]] = {}  # other names that transformers accepts

    # What it can express of a model, at least in part. All other fields must have their default: a field that is added
    # later is then reported, not ignored.
    expressed: ClassVar[frozenset[str]]

    prefix: ClassVar[str]  # of all names but the head's, if the model was saved with a head
    layer: ClassVar[str]  # of a block's tensors: "layers."
    table: ClassVar[Row]
    rest: ClassVar[tuple[Row, ...]]
    block: ClassVar[tuple[Row, ...]]
    head: ClassVar[Row] = Row("lm_head.weight", "linear", "head/kernel")
    # Tensors without parameters that older versions stored in a block.
    buffers: ClassVar[re.Pattern[str]]

    # --- config.json: each family's own -----------------------------------------------------------------

    @abc.abstractmethod
    def read(self, given: dict[str, Any]) -> ModelConfig:
        """Our config from the fields of `defaults`, all of which are given and of the right type."""

    @abc.abstractmethod
    def problems(self, given: dict[str, Any]) -> list[str]:
        """What of these fields is not supported."""

    @abc.abstractmethod
    def write(self, cfg: ModelConfig) -> dict[str, Any]:
        """The fields of config.json of a model in the family's own terms (see `in_its_terms`)."""

    @abc.abstractmethod
    def own_obstacles(self, cfg: ModelConfig) -> list[str]:
        """What the architecture can't express of the `expressed` fields."""

    @abc.abstractmethod
    def in_its_terms(self, cfg: ModelConfig) -> ModelConfig:
        """The config of the same function as the family writes it: what `read` gives of what `write` gives."""

    # --- config.json: the same for all ------------------------------------------------------------------

    def read_config(self, values: dict[str, Any], source: str) -> tuple[ModelConfig, list[str]]:
        """The model that a config.json describes, and the sizes that it lacks, such as `n_layer=12`: the defaults.

        Raises UserError with everything that is not supported. Fields that do not influence the model are ignored.
        """
        values = dict(values)
        for alias, name in self.aliases.items():
            if alias in values and values.setdefault(name, values[alias]) != values[alias]:
                raise UserError(
                    f"{source} has {alias}={values[alias]!r} and {name}={values[name]!r}, two names of one field: "
                    "remove the wrong one"
                )
        given = self.defaults | {name: values[name] for name in self.defaults if name in values}
        found = self._wrong_values(given) or self.problems(given)
        if values.get("auto_map"):
            found.append("auto_map names code of the model, and no such code is executed")
        if values.get("quantization_config"):
            found.append("quantization_config: give the weights before quantization")
        if found:
            raise UserError(f"{source} can't be imported: {'; '.join(found)}")
        return self.read(given), [
            f"{name}={self.defaults[name]}" for name in self.sizes if name not in values
        ]

    def _wrong_values(self, given: dict[str, Any]) -> list[str]:
        """Values of a wrong type, or out of range."""
        wrong = []
        for name, default in self.defaults.items():
            value = given[name]
            if isinstance(default, bool):
                if not isinstance(value, bool):
                    wrong.append(f"{name}={value!r} is not true or false")
            elif isinstance(default, int) or name in self.optional:
                least = 0 if name in self.from_zero else 1
                is_size = type(value) is int and least <= value <= MAX_SIZE
                if not is_size and not (value is None and name in self.optional):
                    wrong.append(f"{name}={value!r} is not a whole number from {least} to {MAX_SIZE}")
            elif isinstance(default, float):
                low, high = self.ranges.get(name, (0.0, 1.0))
                if type(value) not in (int, float) or not low <= value < high:
                    wrong.append(f"{name}={value!r} is not a number from {low:g} to below {high:g}")
        return wrong

    def config_json(self, cfg: ModelConfig, eos_id: int | None, bos_id: int | None = None) -> dict[str, Any]:
        """The content of a config.json. Raises UserError with every one of the model's `obstacles`."""
        self.check(cfg)
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            **self.write(self.in_its_terms(cfg)),
            "tie_word_embeddings": cfg.tie_embeddings,
            "bos_token_id": eos_id if bos_id is None else bos_id,
            "eos_token_id": eos_id,
            "use_cache": True,
            "torch_dtype": "float32",
        }

    # --- what it can't express --------------------------------------------------------------------------

    def check(self, cfg: ModelConfig) -> None:
        """Raise UserError with every one of the model's `obstacles`."""
        if found := self.obstacles(cfg):
            raise UserError(f"this model can't be exported as {self.title}, which has {'; '.join(found)}")

    def obstacles(self, cfg: ModelConfig) -> list[str]:
        """What the architecture can't express of a model, each as `its feature, not model.field=value`."""
        found = self.own_obstacles(cfg)
        if not cfg.mlp_width:
            found.append("an MLP in every block, not model.d_ff=0")
        window = cfg.attention_window
        if "attention_window" not in self.expressed and window is not None and window < cfg.context_length:
            found.append(f"attention to all tokens before, not model.attention_window={window}")
        known = {path.rpartition("/")[0] for row in self.block for path in row.paths.split()}
        for layer in linear.present(cfg):
            if layer.module and layer.path not in known and layer.name != "gate":  # the activation says that
                found.append(f"no linear layer {layer.path}")
        unused = {"attention_window"}  # said above
        unused |= {"rotary_base", "rotary_fraction"} if cfg.position != "rotary" else set()
        for field in dataclasses.fields(cfg):
            if field.name not in self.expressed | _NO_RESULT | unused:
                value = getattr(cfg, field.name)
                if value != field.default:
                    found.append(f"no model.{field.name}={value!r}")
        return found

    def notes(self, cfg: ModelConfig) -> list[str]:
        """What an export expresses differently, with the same result."""
        to, said = self.in_its_terms(cfg), []
        paths = {path for path, _ in named_leaves(param_shapes(cfg))}
        new = {path.rpartition("/")[2] for path, _ in named_leaves(param_shapes(to)) if path not in paths}
        if "bias" in new:
            said.append("biases, which this model lacks, are written as zeros")
        if "scale" in new:
            said.append("scales of norms, which this model lacks, are written as ones")
        if to.kv_heads != cfg.kv_heads:
            said.append(
                f"each of the {cfg.kv_heads} heads of keys and values is written {cfg.num_heads // cfg.kv_heads} times"
            )
        if to.position != cfg.position:
            said.append(f"the positions ({cfg.position}) are written as a table of {cfg.context_length} rows")
        if query_factor(cfg, to) != 1:
            said.append(f"model.attention_scale={cfg.attention_scale:g} is written into the queries")
        if cfg.table_rows != cfg.num_tokens:
            said.append(f"the {cfg.table_rows - cfg.num_tokens} rows that pad the vocabulary are cut")
        if cfg.dtype != "float32":
            said.append(
                f"weights are float32; this run computes in {cfg.dtype}, so logits agree to its precision"
            )
        return said

    # --- tensors ----------------------------------------------------------------------------------------

    def places(self, cfg: ModelConfig) -> list[Place]:
        """All tensors of a model in the order of the forward pass, with the head if it is not tied."""
        shapes = {path: leaf.shape for path, leaf in named_leaves(param_shapes(cfg))}
        rows = [place(self.table, shapes), *(place(row, shapes) for row in self.rest)]
        for i in range(cfg.num_layers):
            rows += [place(row, shapes, f"{self.layer}{i}.", f"block_{i}/") for row in self.block]
        return [found for found in [*rows, place(self.head, shapes)] if found is not None]

    def check_tensors(
        self, files: Tensors, cfg: ModelConfig, assumed: Sequence[str] = ()
    ) -> dict[str, Place]:
        """The place of every tensor of the model by its name in the files.

        `assumed` are the sizes that config.json lacks, for messages. Reads only headers, and allocates nothing: a
        config.json may claim any size. Raises UserError if layers, names or shapes differ from the config's.
        """
        names, wrapper = files.names(), _wrapper(files)
        lacks = f" (it lacks {', '.join(assumed)}: the defaults)" if assumed else ""
        pattern = re.compile(rf"(?:{re.escape(self.prefix)})?{re.escape(self.layer)}(\d{{1,9}})\.")
        layers = {int(match[1]) for name in names if (match := pattern.match(name.removeprefix(wrapper)))}
        if len(layers) != cfg.num_layers:
            field = next(theirs for theirs, ours in self.sizes.items() if ours == "num_layers")
            depth = f"{field}={cfg.num_layers}"
            said = f"lacks {field}, and {depth} is the default" if depth in assumed else f"says {depth}"
            stated = files.described_by
            raise UserError(
                f"{files.source} holds {len(layers)} layers, its {stated} {said}: correct {stated}"
            )
        prefix = self.prefix if any(name.startswith(wrapper + self.prefix) for name in names) else ""
        does_not_fit = f"{files.source} does not fit its {files.described_by}{lacks}: "
        # The table first: no other shape is derived from a size that a model can't have.
        table, rows = wrapper + prefix + self.table.name, (cfg.table_rows, cfg.d_model)
        if table in names and files.shape(table) != rows:
            raise UserError(
                f"{does_not_fit}{files.own_name(table)} is {list(files.shape(table))}, not {list(rows)}"
            )
        if problems := find_problems(config.Config(model=cfg)):
            raise UserError(f"{files.source} can't be imported: {'; '.join(problems)}")
        head = wrapper + self.head.name
        stored = {
            wrapper + (p.name if p.name == self.head.name else prefix + p.name): p for p in self.places(cfg)
        }
        files.check_names(
            stored,
            ignored=lambda name: (
                bool(self.buffers.fullmatch(name.removeprefix(wrapper)))
                or (cfg.tie_embeddings and name == head)
            ),
        )
        wrong = [
            f"{files.own_name(name)} is {list(files.shape(name))}, not {list(p.shape)}"
            for name, p in stored.items()
            if files.shape(name) != p.shape
        ]
        if wrong:
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise UserError(f"{does_not_fit}{wrong[0]}{more}")
        return stored

    def read_params(self, files: Tensors, cfg: ModelConfig) -> dict:
        """The params (float32) of a model from its files. Raises UserError, as `check_tensors`."""
        head = _wrapper(files) + self.head.name
        params: dict[str, Any] = {}
        for name, p in self.check_tensors(files, cfg).items():
            array = files.read(name)
            if cfg.tie_embeddings and p.name == self.table.name and head in files.names():
                self._check_tied(files, head, array)
            for path, part in p.ours(array).items():
                *groups, leaf = path.split("/")
                owner = params
                for group in groups:
                    owner = owner.setdefault(group, {})
                owner[leaf] = jnp.array(part)
        return params

    def _check_tied(self, files: Tensors, head: str, table_VD: np.ndarray) -> None:
        """Raise UserError if a tied head is stored and differs from the table: transformers uses the table."""
        if files.shape(head) != table_VD.shape or not np.array_equal(files.read(head), table_VD):
            raise UserError(
                f"{files.source} has an {head} other than {self.table.name}, though its config.json ties the two: "
                "set tie_word_embeddings=false in it"
            )

    def write_params(self, cfg: ModelConfig, params: dict) -> dict[str, np.ndarray]:
        """Their tensors by name, as `read_params` reads them, for a model without `obstacles`."""
        to = self.in_its_terms(cfg)
        ours = self._in_its_terms(cfg, to, params)
        return {
            (p.name if p.name == self.head.name else self.prefix + p.name): p.theirs(ours)
            for p in self.places(to)
        }

    def _in_its_terms(self, cfg: ModelConfig, to: ModelConfig, params: dict) -> dict[str, np.ndarray]:
        """The arrays of the same function for the config `in_its_terms`, by path."""
        ours = {path: np.asarray(leaf, np.float32) for path, leaf in named_leaves(params)}
        found: dict[str, np.ndarray] = {}
        factor = np.float32(query_factor(cfg, to))
        scaled = "query_norm/scale" if to.qk_norm_scale else "query/"
        for path, leaf in named_leaves(param_shapes(to)):
            array = ours.get(path)
            if array is None:
                array = self.missing(path, leaf.shape, cfg)
            layer = linear.of_path(path)
            if layer and layer.outputs == "GK" and array.shape != leaf.shape:
                array = np.repeat(array, leaf.shape[-2] // array.shape[-2], axis=-2)
            if path == "token_embedding/embedding":
                array = array[: leaf.shape[0]]
            elif path == "head/kernel":
                array = array[:, : leaf.shape[1]]
            found[path] = factor * array if factor != 1 and f"attention/{scaled}" in path else array
        return found

    def missing(self, path: str, shape: tuple[int, ...], cfg: ModelConfig) -> np.ndarray:
        """A parameter that the family has and the model has not, such that it changes nothing."""
        return np.full(shape, 1.0 if path.endswith("/scale") else 0.0, np.float32)


def query_factor(cfg: ModelConfig, to: ModelConfig) -> float:
    """What the queries are multiplied with, so that scores with the scale of `to` are those of `cfg`."""
    scales = [one.attention_scale or one.head_width**-0.5 for one in (cfg, to)]
    return 1.0 if math.isclose(*scales, rel_tol=1e-7) else scales[0] / scales[1]


def _wrapper(files: Tensors) -> str:
    """What torch.compile and DistributedDataParallel put in front of every name, "" without them."""
    found = {(match and match[0]) or "" for match in map(_WRAPPER.match, files.names())}
    return found.pop() if len(found) == 1 else ""


def with_padding(cfg: ModelConfig, num_tokens: int) -> ModelConfig:
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


# --- rotary positions in config.json --------------------------------------------------------------------


def rotary(given: dict[str, Any], base: str = "rope_theta", fraction: str = "") -> dict[str, Any]:
    """rotary_base and rotary_fraction: in `rope_parameters` (transformers 5) or in fields of their own (4)."""
    inside = _inside(given)
    found = {"rotary_base": float(inside.get("rope_theta", given[base]))}
    if fraction:
        found["rotary_fraction"] = float(inside.get("partial_rotary_factor", given[fraction]))
    return found


def _inside(given: dict[str, Any]) -> dict[str, Any]:
    return given["rope_scaling"] or given["rope_parameters"] or {}


def rotary_problems(given: dict[str, Any], fraction: bool = False) -> list[str]:
    """Scalings of rotary positions, which are not supported, and values of a wrong type."""
    name = "rope_scaling" if given["rope_scaling"] else "rope_parameters"
    inside = _inside(given)
    if not isinstance(inside, dict):
        return [f"{name}={inside!r} is not an object"]
    if any(isinstance(value, dict) for value in inside.values()):
        return [f"{name} differs by kind of layer, and all layers here have the same rotary positions"]
    kind = inside.get("rope_type", inside.get("type", "default"))
    if kind != "default":
        return [
            f"{name} has rope_type={kind!r}, a scaling of rotary positions, and only 'default' is supported"
        ]
    wrong = []
    base, part = inside.get("rope_theta", 2.0), inside.get("partial_rotary_factor", 1.0)
    if type(base) not in (int, float) or not 1 < base < 3e38:
        wrong.append(f"{name} has rope_theta={base!r}, which is not a number above 1")
    if type(part) not in (int, float) or not 0 < part <= 1:
        wrong.append(
            f"{name} has partial_rotary_factor={part!r}, which is not a number above 0 and at most 1"
        )
    elif part != 1 and not fraction:
        wrong.append(
            f"{name} has partial_rotary_factor={part!r}, and this architecture rotates all of a head"
        )
    return wrong


ROTARY: dict[str, Any] = {"rope_parameters": None, "rope_scaling": None}  # defaults, not sizes


def plain_activation(cfg: ModelConfig) -> list[str]:
    """The obstacle of an MLP of two matrices."""
    if cfg.activation in ACTIVATIONS.values():
        return []
    return [f"an MLP of two matrices, not model.activation={cfg.activation!r}"]


def their_activation(ours: str, theirs: dict[str, Any] = ACTIVATIONS) -> str:
    """Their name of an activation: the first one."""
    return next(name for name, own in theirs.items() if own == ours)


def unknown_activation(given: dict[str, Any], field: str, known: dict[str, Any] = ACTIVATIONS) -> list[str]:
    """The problem of an activation that is not known."""
    name = given[field]
    if isinstance(name, str) and name in known:
        return []
    return [f"{field}={name!r} is not one of {', '.join(known)}"]
