"""Every field of a model: see fields.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxgpt.config.metadata import INT32_MAX, field


def is_off(number: float) -> bool:
    """Whether a number is the 0 that switches something off. A traced number (see training/lanes.py) is never off."""
    return isinstance(number, int | float) and number == 0


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the transformer. None means that the value follows from another field."""

    # fmt: off
    vocab_size: int | None = field(
        None, "rows of the token table; None: as many as the tokenizer has tokens, which is the only other choice",
        at_least=1, same_in_source=False,
    )
    vocab_multiple: int = field(
        1, "round the rows of the table up to a multiple, for GPUs (50,257 -> 50,304 with 128); the added rows are "
        "never looked up and have no probability",
        at_least=1, at_most=1 << 20, same_in_source=False,
    )
    context_length: int = field(256, "T: tokens that the model sees at once", at_least=1, at_most=1 << 24, same_in_source=False)
    d_model: int = field(384, "D: width of the residual stream", at_least=1, at_most=1 << 20)
    num_layers: int = field(6, "number of transformer blocks", at_least=1, at_most=10_000)
    num_heads: int = field(6, "H: heads of attention", at_least=1, at_most=1 << 16)
    head_dim: int | None = field(
        None, "K: numbers in a head; None: d_model / num_heads", at_least=1, at_most=1 << 16, same_in_source=False,
    )
    num_kv_heads: int | None = field(
        None, "heads of keys and values, each shared by a group of query heads; None: num_heads",
        at_least=1, at_most=1 << 16, same_in_source=False,
    )
    d_ff: int | None = field(
        None, "F: width of the MLP's hidden layer; None: 4 * d_model, or 2/3 of it if gated; 0: no MLP",
        at_least=0, at_most=1 << 24, same_in_source=False,
    )
    dropout_rate: float = field(
        0.0, "dropout of embeddings, attention weights and what each layer adds, in training only; 0: off",
        at_least=0, below=1, lane="argument", switch=True, same_in_source=False,
    )
    attention_dropout_rate: float | None = field(
        None, "dropout of attention weights; 0 lets a GPU fuse attention; None: dropout_rate",
        at_least=0, below=1, same_in_source=False,
    )
    dropout_bits: int = field(
        32, "random bits for each number that dropout may drop: 32, or 8, which costs a quarter and rounds the rates to "
        "multiples of 1 / 256",
        at_least=8, at_most=32, same_in_source=False,
    )
    activation: Literal["relu", "gelu", "gelu_tanh", "relu_squared", "swiglu", "geglu"] = field(
        "gelu", "activation of the MLP; swiglu and geglu are gated",
    )
    position: Literal["learned", "sinusoidal", "rotary", "none"] = field("learned", "how positions are encoded")
    rotary_base: float = field(
        10_000.0, "rotary positions only: the slowest pair turns by 1 / rotary_base per token", above=1,
    )
    rotary_fraction: float = field(
        1.0, "rotary positions only: the part of each head, its first numbers, that is rotated (GPT-NeoX, 2022)",
        above=0, at_most=1,
    )
    norm: Literal["layernorm", "rmsnorm", "rmsnorm_plain"] = field(
        "layernorm", "normalization; rmsnorm_plain has no scale",
    )
    norm_epsilon: float = field(
        1e-5, "added to the mean square in every norm, so that small vectors are not blown up", above=0, at_most=1,
    )
    qk_norm: bool = field(False, "normalize queries and keys of each head to a root mean square of 1")
    qk_norm_scale: bool = field(
        False, "qk_norm has learned scales: K numbers for the queries and K for the keys of a layer (Qwen3, 2025)",
    )
    attention_scale: float | None = field(None, "factor of the attention scores; None: 1 / sqrt(head width)", above=0)
    attention_softcap: float = field(0.0, "limit attention scores to +- this with a tanh; 0: off", at_least=0)
    attention_window: int | None = field(
        None, "tokens that a token attends to, itself included; None: all before it", at_least=1,
    )
    document_mask: bool = field(
        False, "a token attends to its own document only, and positions start again with each document",
        same_in_source=False,
    )
    document_end: int | None = field(
        None, "id of the token that ends a document, for document_mask; None: that of data.separator",
        at_least=0, at_most=INT32_MAX, same_in_source=False,
    )
    causal: bool = field(
        True, "a token attends to no later token; without this mask the loss measures nothing and no text can be "
        "generated",
    )
    residual: bool = field(True, "x + f(x) for attention and MLP; false: f(x) alone")
    parallel_residual: bool = field(
        False, "attention and MLP of a block read the same stream: x + attention(norm(x)) + mlp(norm(x)) (GPT-J, 2021)",
    )
    post_norm: bool = field(
        False, "normalize the stream after each sum, norm(x + f(x)), as the first transformer (Vaswani et al. 2017); false: "
        "what a layer reads, x + f(norm(x)) (Xiong et al. 2020 compare them)",
    )
    value_residual: bool = field(False, "later layers mix the first layer's values into theirs")
    embedding_residual: bool = field(False, "each layer mixes the embedding into the stream that it reads")
    logit_softcap: float = field(0.0, "limit logits to +- this with a tanh; 0: off", at_least=0)
    use_bias: bool = field(True, "biases in linear layers and norms")
    attention_bias: bool | None = field(
        None, "biases in the linear layers of attention; None: use_bias", same_in_source=False,
    )
    tie_embeddings: bool = field(True, "the output head is the transposed token table")
    embedding_dim: int | None = field(
        None, "E: width of the token table; a learned projection takes it to d_model and back (Lan et al. 2020, "
        "section 3.1); None: d_model, without a projection",
        at_least=1, at_most=1 << 20, same_in_source=False,
    )
    lora_rank: int = field(
        0, "rank of LoRA (Hu et al. 2021): y = x W + lora_alpha / lora_rank * x A B; 0: no LoRA",
        at_least=0, at_most=1 << 16, same_in_source=False,
    )
    lora_alpha: float = field(16.0, "scale of LoRA", above=0, same_in_source=False)
    lora_targets: tuple[str, ...] = field(
        ("query", "value"), "linear layers with LoRA, by their names in model/linear.py: query, key, ...",
        same_in_source=False,
    )
    init: Literal["gpt2", "fan_in", "identity"] = field(
        "gpt2", "initial standard deviations: GPT-2's, or of matrices 1 / sqrt(3 * inputs); identity: for residual=false, "
        "blocks that pass their normed input on (Balduzzi et al. 2017; He et al. 2023)",
        lane="outside", same_in_source=False,
    )
    init_scale: float = field(1.0, "factor of all initial standard deviations", above=0, lane="outside")
    zero_init: bool = field(
        False, "layers that write to the residual stream, and an untied head, start at 0",
        lane="outside", same_in_source=False,
    )
    dtype: Literal["float32", "bfloat16"] = field(
        "float32", "of computation; parameters and softmax stay float32", same_in_source=False,
    )
    # fmt: on

    @property
    def table_width(self) -> int:
        """E: numbers in a row of the token table."""
        return self.embedding_dim or self.d_model

    @property
    def factorised(self) -> bool:
        """Whether a projection is between the token table and the stream."""
        return self.table_width != self.d_model

    @property
    def head_width(self) -> int:
        """K: the width of one head."""
        return self.head_dim or self.d_model // self.num_heads

    @property
    def attention_dropout(self) -> float:
        """The rate of dropout of attention weights."""
        return self.dropout_rate if self.attention_dropout_rate is None else self.attention_dropout_rate

    @property
    def drops(self) -> bool:
        """Whether training draws dropout masks."""
        return not (is_off(self.dropout_rate) and is_off(self.attention_dropout))

    @property
    def rotary_width(self) -> int:
        """The numbers of a head that rotary positions turn."""
        return int(self.head_width * self.rotary_fraction)

    @property
    def kv_heads(self) -> int:
        """G: heads of keys and values."""
        return self.num_kv_heads or self.num_heads

    @property
    def gated(self) -> bool:
        """Whether the MLP multiplies two projections (Shazeer 2020)."""
        return self.activation.endswith("glu")

    @property
    def mlp_width(self) -> int:
        """F: d_ff, or where it is None as many as cost the parameters of a plain MLP of 4 * d_model."""
        if self.d_ff is not None:
            return self.d_ff
        return -(-8 * self.d_model // 24) * 8 if self.gated else 4 * self.d_model

    @property
    def cudnn_obstacle(self) -> str:
        """Why cuDNN's fused attention can't compute this model on any GPU; empty where it can, see `attention.fused_obstacle`."""
        if self.dtype != "bfloat16":
            return f"it computes in bfloat16, not in model.dtype={self.dtype!r}"
        if self.head_width % 8 or self.head_width > 256:
            return f"it takes head widths that are multiples of 8 up to 256, not {self.head_width}"
        if self.attention_softcap:
            return "it has no model.attention_softcap"
        if not is_off(self.attention_dropout):
            return "it has no dropout of attention weights (set model.attention_dropout_rate=0)"
        if self.context_length % 2:  # JAX has no gradient of it then
            return f"it trains with an even model.context_length, not {self.context_length}"
        return ""

    @property
    def table_rows(self) -> int:
        """vocab_size rounded up to vocab_multiple."""
        return -(-self.num_tokens // self.vocab_multiple) * self.vocab_multiple

    @property
    def num_tokens(self) -> int:
        """vocab_size, where it is known. Raises ValueError before the tokenizer has given it."""
        if self.vocab_size is None:
            raise ValueError("model.vocab_size is not known yet: the tokenizer gives it")
        return self.vocab_size

    @property
    def end_id(self) -> int:
        """document_end, where it is known. Raises ValueError before the tokenizer has given it."""
        if self.document_end is None:
            raise ValueError("model.document_end is not known yet: the tokenizer gives it")
        return self.document_end
