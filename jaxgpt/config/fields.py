"""Every field of a run with its default, in frozen dataclasses; `config.py` converts and checks them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


def is_off(number: float) -> bool:
    """Whether a number is the 0 that switches something off. One that a program takes as an argument is not: see members.py."""
    return isinstance(number, int | float) and number == 0


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the transformer. Sizes are counts; `None` means "follows from another field"."""

    # Rows of the embedding table. Left None it is the tokenizer's; given, it must be the tokenizer's.
    vocab_size: int | None = None
    # The tables get a multiple of so many rows, for GPUs (50,257 -> 50,304 with 128). The rows beyond vocab_size
    # are never looked up and never get a probability.
    vocab_multiple: int = 1
    context_length: int = 256  # T: tokens that the model sees at once
    d_model: int = 384  # D: width of the residual stream
    num_layers: int = 6
    num_heads: int = 6  # H: d_model is split into num_heads x (d_model // num_heads)
    num_kv_heads: int | None = None  # heads of keys and values, shared by groups of queries; None: num_heads
    # F: width of the MLP's hidden layer; None: 4 * d_model, 2/3 of it where gated; 0: blocks have attention alone.
    d_ff: int | None = None
    dropout_rate: float = 0.0  # on embeddings, attention weights and what each layer adds; training only
    activation: Literal["relu", "gelu", "gelu_tanh", "relu_squared", "swiglu", "geglu"] = "gelu"
    position: Literal["learned", "sinusoidal", "rotary", "none"] = "learned"
    rotary_base: float = 10_000.0  # "rotary" only: the slowest pair turns by 1 / rotary_base a token
    norm: Literal["layernorm", "rmsnorm", "rmsnorm_plain"] = "layernorm"
    qk_norm: bool = False  # queries and keys get a root mean square of 1, head by head
    attention_scale: float | None = None  # what q k is multiplied with; None: 1 / sqrt(head width)
    attention_softcap: float = 0.0  # scores are kept within +- this by a tanh; 0: off
    attention_window: int | None = None  # a token sees so many, itself included; None: all before it
    # Whether a token sees none after it. Without the mask it sees the very tokens that it is to predict: a loss is then
    # no measure of anything, and no text can be generated, as a cache can't hold what each new token changes.
    causal: bool = True
    residual: bool = True  # x + f(x) for attention and MLP; else f(x), which has to learn x too
    value_residual: bool = False  # later layers mix the first layer's values into theirs
    embedding_residual: bool = False  # each layer mixes the embedding into the stream that it reads
    logit_softcap: float = 0.0  # logits are kept within +- this by a tanh; 0: off
    use_bias: bool = True  # in linear layers and in the norms
    tie_embeddings: bool = True  # the output head is the transposed embedding table
    # E: width of the token table, and of a tied head; a learned projection takes it to d_model and back (Lan et al.
    # 2020, "ALBERT", section 3.1). None: d_model, without a projection.
    embedding_dim: int | None = None
    # Low-rank changes of linear layers (Hu et al. 2021, "LoRA"): y = x W + lora_alpha / lora_rank * x A B. 0: none.
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_targets: tuple[str, ...] = ("query", "value")  # among query, key, value, out, up, gate, down
    init: Literal["gpt2", "fan_in"] = "gpt2"  # how matrices and tables start, see model.initial_std
    init_scale: float = 1.0  # times all those standard deviations
    zero_init: bool = False  # what writes to the residual stream, and an untied head, start at 0
    dtype: Literal["float32", "bfloat16"] = "float32"  # of computation; params and softmax stay float32

    @property
    def table_width(self) -> int:
        """E: numbers in a row of the token table."""
        return self.embedding_dim or self.d_model

    @property
    def factorised(self) -> bool:
        """Whether a projection stands between the token table and the stream."""
        return self.table_width != self.d_model

    @property
    def head_dim(self) -> int:
        """K: the width of one head."""
        return self.d_model // self.num_heads

    @property
    def kv_heads(self) -> int:
        """G: heads of keys and values."""
        return self.num_kv_heads or self.num_heads

    @property
    def gated(self) -> bool:
        """Whether the MLP multiplies two projections (Shazeer 2020)."""
        return self.activation in ("swiglu", "geglu")

    @property
    def mlp_width(self) -> int:
        """F: d_ff, or where it is None as many as cost the parameters of a plain MLP of 4 * d_model."""
        if self.d_ff is not None:
            return self.d_ff
        return -(-8 * self.d_model // 24) * 8 if self.gated else 4 * self.d_model

    @property
    def cudnn_obstacle(self) -> str:
        """Why cuDNN's fused attention can't compute this model; empty where it can, given the GPU."""
        if self.dtype != "bfloat16":
            return f"it computes in bfloat16, not in model.dtype={self.dtype!r}"
        if self.head_dim % 8 or self.head_dim > 128:
            return f"it takes head widths that are multiples of 8 up to 128, not {self.head_dim}"
        if self.attention_softcap:
            return "it has no model.attention_softcap"
        if not is_off(self.dropout_rate):
            return "it has no dropout of attention weights (model.dropout_rate)"
        return ""

    @property
    def table_rows(self) -> int:
        """vocab_size rounded up to vocab_multiple."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple


@dataclass(frozen=True)
class DataConfig:
    """Which text, which tokens, and how many of them a step."""

    corpus: str = "shakespeare"  # a name from corpora.CORPORA; not used where `path` is given
    path: str = ""  # a UTF-8 text file, or a folder of them (joined in name order)
    tokenizer: Literal["char", "word", "bpe", "gpt2", "ids"] = "char"  # ids: a text of numbers
    # A folder with GPT-2's two vocabulary files, or a tokenizer.json of an earlier run.
    tokenizer_path: str = ""
    # The characters or words of this text that the tokenizer of tokenizer_path lacks get ids after its own.
    add_tokens: bool = False
    # bpe: the size to train; word: at most that many, the rest is <unk>; char: refuse a text with more.
    vocab_size: int | None = None
    valid_fraction: float = 0.1  # the last part of the text, by characters
    batch_size: int = 64  # sequences a step, over all devices and accumulation steps
    seed: int | None = None  # of the order in which the text is read; None: train.seed
    on_device: bool = False  # the training tokens live on the device, batches are cut there


@dataclass(frozen=True)
class OptimConfig:
    """How parameters move."""

    name: Literal["adamw", "muon", "lion", "adafactor", "schedule_free"] = "adamw"
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
    # "muon" only: the hidden matrices' own peak rate, which follows the same schedule; all else is Adam's.
    muon_learning_rate: float = 0.02
    muon_momentum: float = 0.95
    muon_iterations: int = 5  # Newton-Schulz steps: more come nearer to an orthogonal update
    ema_decay: float = (
        0.0  # evaluate and keep an average of the params, this much of it old each step; 0: off
    )
    # Which parameters move, by patterns on their paths; the first that matches counts: "block_*" does, "-block_*" does
    # not, and what none matches does not. Empty: all, or in a model with LoRA its low-rank matrices. See trainable.py.
    trainable: tuple[str, ...] = ()
    rates: tuple[str, ...] = ()  # "block_*/mlp/*=0.1": times the learning rate; the first that matches counts
    # Rows of the token table (and columns of an untied head) before this one stay as they are; -1: those of all
    # tokens but the ones that data.add_tokens has added.
    train_rows_from: int = 0
    # "mup": rates that stand still when d_model grows, relative to mup_base_width. See optim.py.
    parametrization: Literal["standard", "mup"] = "standard"
    mup_base_width: int = 128


@dataclass(frozen=True)
class TrainConfig:
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
    report: bool = False  # RUN/report.html at the end: see report/
    seed: int = 0
    steps_per_dispatch: int = 1  # so many steps in one call of the device, where the host can't keep up
    # Positions of each window whose logits are formed at once; 0: all. A large vocabulary fits memory in parts.
    loss_chunk: int = 0
    # What the backward pass keeps: all ("none"), matrix products ("dots"), or each layer's input only ("full").
    remat: Literal["none", "dots", "full"] = "none"
    # A step whose loss or gradient is not finite, or whose gradient norm is above bad_grad_norm (0: off), is bad and
    # changes nothing. "stop": the run ends there, with an error; "skip": it goes on with the next batch.
    on_bad_step: Literal["stop", "skip"] = "stop"
    bad_grad_norm: float = 0.0
    watchdog_seconds: int = 600  # say so where a step, an evaluation or a save takes longer; 0: never
    # "cudnn": fused, GPU and bfloat16 only. "auto": that where it is possible, else "explicit".
    attention: Literal["auto", "explicit", "cudnn"] = "auto"


@dataclass(frozen=True)
class MeshConfig:
    """How many devices share what (see sharding.py). One of them may be -1: all that the others leave.

    Not part of what a run is: it may go on under another mesh.
    """

    data: int = -1  # copies of the parameters; each gets its part of the batch
    fsdp: int = 1  # parts of every matrix, and of the batch
    tensor: int = 1  # parts of the heads, of the MLP's width and of the vocabulary


@dataclass(frozen=True)
class Config:
    """One run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    # What the first parameters are: those of a run's newest checkpoint, or of a folder with GPT-2's. See starting.py.
    init_from: str = ""
    # Word vectors that the rows of the token table begin as: a file, or a package's name (see vectors.py). "pca": wider
    # ones are turned to their principal axes; else they are as wide as the table (model.embedding_dim).
    init_vectors: str = ""
    init_bridge: Literal["none", "pca"] = "none"

    @property
    def order_seed(self) -> int:
        """What the order of the batches is drawn from."""
        return self.train.seed if self.data.seed is None else self.data.seed
