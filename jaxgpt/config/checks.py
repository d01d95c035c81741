"""The checks that concern several fields at once; the bounds of a single field are stated in fields.py."""

from __future__ import annotations

import dataclasses

from jaxgpt.config import snapshots, sources
from jaxgpt.config.errors import UserError
from jaxgpt.config.fields import FIELDS, Config, DataConfig, ModelConfig, value_of

# A field, the field that divides it (None or 0: nothing to divide), and the reason.
MULTIPLES = (
    ("model.num_heads", "model.num_kv_heads", ": every head of keys serves equally many heads of queries"),
    ("model.context_length", "train.loss_chunk", ""),
    ("data.batch_size", "train.grad_accumulation_steps", ""),
    ("train.num_steps", "train.steps_per_dispatch", ""),
    ("train.eval_every", "train.steps_per_dispatch", ""),
    ("train.checkpoint_every", "train.steps_per_dispatch", ""),
)


def find_problems(config: Config) -> list[str]:
    """All problems of a config, one line each; empty if there are none."""
    problems = [problem for name, f in FIELDS.items() if (problem := f.problem(value_of(config, name)))]
    for name, divisor, why in MULTIPLES:
        value, by = value_of(config, name), value_of(config, divisor)
        if by is not None and by >= 1 and value % by:
            problems.append(f"{name}={value} is not a multiple of {divisor}={by}{why}")
    if config.train.attention == "cudnn" and (obstacle := config.model.cudnn_obstacle):
        problems.append(f"train.attention='cudnn': {obstacle}; choose 'auto' or 'explicit'")
    return [
        *problems, *_model(config), *_data(config), *_optim(config), *_train(config), *_start_and_mesh(config)
    ]  # fmt: skip


def _model(config: Config) -> list[str]:
    """The model, and the fields that need a causal mask."""
    model = config.model
    problems = []
    heads = f"model.d_model={model.d_model} {{}} model.num_heads={model.num_heads}"
    if model.head_dim is None and model.num_heads >= 1 and model.d_model % model.num_heads:
        problems.append(
            heads.format("is not a multiple of")
            + ": every head gets d_model / num_heads numbers, or model.head_dim of them"
        )
    if model.init == "identity" and _no_identity(model):
        problems.append(
            "model.init='identity' is for residual=false, zero_init=false, activation='relu', d_ff of 2 * d_model or more, and heads that "
            "have d_model numbers together and keys and values of their own"
        )
    if model.position == "sinusoidal" and model.d_model % 2:
        problems.append(f"model.d_model={model.d_model} is odd: position='sinusoidal' needs an even width")
    if model.position == "rotary" and model.num_heads >= 1 and _odd_turns(model):
        given = f"model.head_dim={model.head_dim}" if model.head_dim else heads.format("over")
        part = f", of which model.rotary_fraction={model.rotary_fraction:g} is {model.rotary_width}"
        problems.append(
            f"{given} gives heads of {model.head_width}{part if model.rotary_fraction != 1 else ''}: position='rotary' turns "
            "pairs of numbers, give an even width"
        )
    if model.qk_norm_scale and not model.qk_norm:
        problems.append(
            "model.qk_norm_scale=true scales what model.qk_norm normalizes: set model.qk_norm=true"
        )
    if model.parallel_residual and not model.residual:
        problems.append(
            "model.parallel_residual=true adds to a residual stream: it needs model.residual=true"
        )
    if config.train.logits_dtype == "bfloat16" and (model.dtype != "bfloat16" or not config.train.loss_chunk):
        problems.append(
            f"train.logits_dtype='bfloat16' needs train.loss_chunk (it is {config.train.loss_chunk}) and "
            f"model.dtype='bfloat16' (it is {model.dtype!r})"
        )
    if model.dropout_bits not in (8, 32):
        problems.append(f"model.dropout_bits={model.dropout_bits}: choose 8 or 32")
    for name in ("dropout_rate", "attention_dropout_rate"):
        rate = getattr(model, name) or 0.0
        if model.dropout_bits == 8 and 0 < rate < 1 and not 0 < round(256 * rate) < 256:
            problems.append(
                f"model.{name}={rate:g} rounds to {round(256 * rate) / 256:g} with model.dropout_bits=8: "
                "set model.dropout_bits=32"
            )
    if model.post_norm and (model.parallel_residual or not model.residual):
        problems.append(
            "model.post_norm=true normalizes the sum of the stream and one layer's change: it needs model.residual=true and "
            "model.parallel_residual=false"
        )
    if model.lora_rank and not model.lora_targets:
        problems.append(
            "model.lora_rank is given and model.lora_targets is empty: name layers, such as query,value"
        )
    if not model.causal and model.attention_window is not None:
        problems.append(
            f"model.attention_window={model.attention_window} counts the tokens before: it needs model.causal=true"
        )
    if not model.causal and config.train.sample_tokens:
        problems.append(
            f"train.sample_tokens={config.train.sample_tokens}: a model without a causal mask (model.causal=false) can't "
            "write with a cache; set train.sample_tokens=0"
        )
    return problems


def _no_identity(model: ModelConfig) -> bool:
    """Whether a block of this model has no start that passes its input on (see model/initial.py)."""
    square = model.head_width * model.num_heads == model.d_model and model.kv_heads == model.num_heads
    mirrored = model.activation == "relu" and model.mlp_width >= 2 * model.d_model
    return model.residual or model.zero_init or not (square and mirrored)


def _odd_turns(model: ModelConfig) -> bool:
    """Whether rotary positions have no pairs to turn, or half a pair."""
    return 0 < model.rotary_fraction <= 1 and (model.rotary_width == 0 or model.rotary_width % 2 == 1)


def _data(config: Config) -> list[str]:
    """The text and its tokenizer."""
    data = config.data
    problems = _several_texts(data)
    if not data.path and not data.corpus and not data.mixture:
        problems.append("data.corpus and data.path are both empty: give a corpus or a file")
    if data.tokenizer == "bpe" and not data.tokenizer_path and (data.vocab_size or 0) < 257:
        problems.append(
            f"data.vocab_size={data.vocab_size}: tokenizer='bpe' needs 257 or more (256 bytes first)"
        )
    if data.tokenizer == "gpt2" and data.vocab_size not in (None, 50_257):
        problems.append(f"data.vocab_size={data.vocab_size}: tokenizer='gpt2' has 50257 tokens; leave it out")
    if data.tokenizer == "huggingface" and not data.tokenizer_path:
        problems.append(
            "data.tokenizer='huggingface' reads a published tokenizer: give its tokenizer.json, or a folder with one, as "
            "data.tokenizer_path"
        )
    if data.template == "tokenizer" and not data.tokenizer_path:
        problems.append(
            "data.template='tokenizer' is the chat template of a published tokenizer: give its folder as data.tokenizer_path"
        )
    if data.add_tokens and (not data.tokenizer_path or data.tokenizer not in ("char", "word")):
        problems.append(
            "data.add_tokens adds to a char or word tokenizer: give its file as data.tokenizer_path "
            "(RUN/tokenizer.json); a bpe tokenizer has all bytes and needs none"
        )
    if data.windows == "documents" and not (config.model.causal or config.model.document_mask):
        problems.append(
            "data.windows='documents' has padding, which a model without a causal mask (model.causal=false) would see: set "
            "model.document_mask=true, or data.windows='flat'"
        )
    return problems


def _several_texts(data: DataConfig) -> list[str]:
    """A mixture and the validation texts."""
    problems: list[str] = []
    names: dict[str, set[str]] = {}
    for field, parse in (("mixture", sources.mixture), ("valid_paths", sources.named_texts)):
        text = getattr(data, field)
        try:
            names[field] = {found.name for found in parse(text)} if text else set()
        except UserError as error:
            problems.append(str(error))
            names[field] = set()
    if data.mixture and data.path:
        problems.append(
            f"data.mixture and data.path={data.path!r} are both given: make the path a source of the mixture"
        )
    if not data.valid_path and (both := sorted(names["mixture"] & names["valid_paths"])):
        problems.append(
            f"data.valid_paths: {both[0]!r} is also a source of data.mixture, whose validation split has that name: choose "
            "another name"
        )
    return problems


def _optim(config: Config) -> list[str]:
    """The optimizer, and its requirements of the model."""
    model, data, optim = config.model, config.data, config.optim
    problems = []
    if optim.train_rows_from == -1 and not data.add_tokens:
        problems.append(
            "optim.train_rows_from=-1 trains the rows that data.add_tokens adds: set data.add_tokens=true"
        )
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
                f"optim.rates: {rule!r} is not PATTERN=FACTOR with a factor above 0, such as block_*/mlp/*=0.1 "
                "(to train nothing there, use optim.trainable)"
            )
    return problems


def _train(config: Config) -> list[str]:
    """What is kept of a run."""
    train = config.train
    if train.num_steps < 1 or train.steps_per_dispatch < 1:
        return []  # is a problem already
    problems = []
    try:
        snapshots.steps(train.snapshots, train.num_steps, train.steps_per_dispatch)
    except UserError as error:
        problems.append(str(error))
    if train.stats_every and train.steps_per_dispatch > 1:
        problems.append(
            f"train.stats_every={train.stats_every} looks at single steps, and train.steps_per_dispatch="
            f"{train.steps_per_dispatch}: set train.steps_per_dispatch=1, or train.stats_every=0"
        )
    return problems


def _start_and_mesh(config: Config) -> list[str]:
    """How the run starts, and on how many devices."""
    problems = []
    if config.init_from and config.init_vectors:
        problems.append("init_from and init_vectors are both given: the token table starts from one of them")

    sizes = dataclasses.asdict(config.mesh)
    for name, size in sizes.items():
        if size != -1 and size < 1:
            problems.append(
                f"mesh.{name}={size}: give 1 or more, or -1 for all devices that the others leave"
            )
    if list(sizes.values()).count(-1) > 1:
        problems.append(f"mesh {sizes}: only one size can be -1, all devices that the others leave")
    return problems
