"""Every field of a run: its type, default, bounds and meaning, in frozen dataclasses; those of a model are in model_fields.py.

This is the one place where a field is described (see metadata.py for the words). `python -m jaxgpt.train --help_config`
prints the same.
"""

from __future__ import annotations

import dataclasses
import operator
from dataclasses import dataclass
from typing import Any, Literal

from jaxgpt.config import sources
from jaxgpt.config.metadata import INT32_MAX, Field, field, fields_of
from jaxgpt.config.model_fields import ModelConfig


@dataclass(frozen=True)
class DataConfig:
    """Which text, which tokens, and how many of them per step."""

    # fmt: off
    corpus: str = field(
        "shakespeare", "a corpus by name (see data/corpora.py); not used if path is given", resume="source",
    )
    path: str = field(
        "", "a file, a folder or a pattern of text, JSON lines (.jsonl), Parquet, Arrow or token shards (.bin, .npy); "
        "text and JSON lines also as .gz, .zst, .xz",
        resume="source",
    )
    mixture: str = field(
        "", "train on several texts with weights, in place of path: web=path/web:0.7, code=path/code:0.3 (see "
        "config/sources.py for weights that change with the step)",
        resume="source", identity=sources.identity,
    )
    valid_path: str = field(
        "", "another text, in any form of path, that is the validation split; then all of path, or of the mixture, is for "
        "training",
        resume="source",
    )
    valid_paths: str = field(
        "", "further validation texts with names: kjv=path/kjv.txt, code=path/code (see config/sources.py)",
        resume="source",
    )
    documents: Literal["auto", "whole", "file", "line", "blank_line"] = field(
        "auto", "what a document is in text files; auto: of several files each is one, a single file is one text without "
        "documents; whole: the files are joined",
        before="whole",
    )
    control_characters: bool = field(
        False, "accept text with many NULs or other control characters, which otherwise is taken for a binary file or "
        "UTF-16",
        resume="source",
    )
    text_field: str = field("text", "the field or column with the text of a document, with dots for nested fields")
    separator: str = field(
        "auto", "what stands after each document: a text, none, or auto: the tokenizer's end of text, which a tokenizer "
        "that is trained on documents gets as its last token",
    )
    special_tokens_in_text: bool = field(
        False, "the text of a special token, such as <|endoftext|>, becomes that token; otherwise it is text as any other",
    )
    template: Literal["", "play", "line", "chatml", "tokenizer"] = field(
        "", "how conversations are written as text; the loss counts on answers only (see data/conversations.py); empty: none; "
        "tokenizer: by the chat template of tokenizer_path",
    )
    tokenizer: Literal["char", "word", "bpe", "gpt2", "huggingface", "ids"] = field(
        "char", "kind of tokenizer; huggingface: that of a published model, from tokenizer_path; ids: a text of numbers",
    )
    tokenizer_path: str = field(
        "", "the tokenizer.json of an earlier run; gpt2: a folder with its two vocabulary files; huggingface: a "
        "tokenizer.json of the package tokenizers, or a folder with one",
        resume="source",
    )
    add_tokens: bool = field(
        False, "add the characters or words of this text that the tokenizer of tokenizer_path lacks, with ids after "
        "its own",
    )
    vocab_size: int | None = field(
        None, "bpe: tokens to train; word: at most so many, other words are <unk>; char: refuse a text with more",
        at_least=1, at_most=INT32_MAX,
    )
    valid_fraction: float = field(
        0.1, "the last part of the text, by characters, is for validation", above=0, below=1,
    )
    batch_size: int = field(64, "sequences per step, over all devices and accumulation steps", at_least=1, at_most=1 << 24)
    windows: Literal["flat", "documents"] = field(
        "flat", "of training: flat, a stretch of the text; documents: complete ones, and padding (see data/packing.py)",
    )
    seed: int | None = field(
        None, "seed of the order in which the text is read; None: train.seed",
        at_least=0, at_most=INT32_MAX, lane="outside",
    )
    on_device: bool = field(False, "keep the training tokens on the device and cut batches there")
    # fmt: on

    @property
    def marks_targets(self) -> bool:
        """Whether a batch marks tokens that are no targets (see batches.marked). Else all count."""
        return self.windows == "documents" or bool(self.template)


@dataclass(frozen=True)
class OptimConfig:
    """How parameters are updated."""

    # fmt: off
    name: Literal["adamw", "muon", "sgd", "lion", "adafactor", "schedule_free"] = field("adamw", "the optimizer")
    learning_rate: float = field(1e-3, "peak learning rate", above=0, lane="argument")
    schedule: Literal["cosine", "linear", "constant", "wsd"] = field(
        "cosine", "shape of the learning rate after the warm-up; wsd: constant, then linear decay",
    )
    warmup_steps: int = field(100, "steps of linear warm-up from 0 to learning_rate", at_least=0, lane="argument")
    final_learning_rate_ratio: float = field(
        0.1, "learning rate at num_steps, as a ratio of learning_rate; not used by constant",
        at_least=0, at_most=1, lane="argument",
    )
    decay_fraction: float = field(
        0.2, "wsd only: the last part of the run, in which the rate decays", above=0, at_most=1, lane="argument",
    )
    b1: float = field(0.9, "decay of the average of gradients", at_least=0, below=1, lane="argument")
    b2: float = field(0.99, "decay of the average of squared gradients", at_least=0, below=1, lane="argument")
    eps: float = field(1e-8, "added to the root of the squared gradients", at_least=0, lane="argument")
    weight_decay: float = field(
        0.1, "weight decay of matrices; biases and norms never decay", at_least=0, lane="argument",
    )
    decay_embeddings: bool = field(False, "token and position tables decay too, as in nanoGPT")
    grad_clip_norm: float = field(
        1.0, "clip gradients to this global norm; 0: off", at_least=0, lane="argument", switch=True,
    )
    muon_learning_rate: float = field(
        0.02, "muon only: peak rate of the hidden matrices, on the same schedule; Adam updates all other parameters",
        above=0, lane="argument",
    )
    muon_momentum: float = field(0.95, "muon only: momentum", at_least=0, below=1, lane="argument")
    muon_iterations: int = field(
        5, "muon only: Newton-Schulz steps; more of them give an update closer to orthogonal", at_least=1, at_most=1_000,
    )
    muon_dtype: Literal["float32", "bfloat16"] = field(
        "float32", "muon only: of the products of its Newton-Schulz steps; bfloat16 is five times as fast on a GPU, and "
        "slower on a CPU",
    )
    z_loss: float = field(
        0.0, "times the mean of logsumexp(logits)^2 is added to what is minimized, to keep the logits from drifting; the loss that "
        "is reported is without it; 0: off",
        at_least=0,
    )
    ema_decay: float = field(
        0.0, "decay per step of an average of the parameters, which is evaluated and saved; 0: off",
        at_least=0, below=1, lane="argument", switch=True,
    )
    trainable: tuple[str, ...] = field(
        (), "patterns of the parameters to train; the first match counts, -PATTERN excludes, without a match a "
        "parameter is not trained; empty: all, or with LoRA its matrices (see training/trainable.py)",
    )
    rates: tuple[str, ...] = field(
        (), "PATTERN=FACTOR of the learning rate, such as block_*/mlp/*=0.1; the first match counts",
    )
    train_rows_from: int = field(
        0, "rows of the token table (columns of an untied head) before this one are not trained; -1: only those of "
        "the tokens that data.add_tokens adds",
        at_least=-1,
    )
    parametrization: Literal["standard", "mup"] = field(
        "standard", "mup: the best learning rate does not depend on d_model, relative to mup_base_width (see "
        "training/optim.py)",
    )
    mup_base_width: int = field(128, "mup only: the d_model at which all rates are as given", at_least=1, at_most=1 << 20)
    # fmt: on

    @property
    def final_learning_rate(self) -> float:
        """The learning rate at num_steps."""
        return self.final_learning_rate_ratio * self.learning_rate


@dataclass(frozen=True)
class TrainConfig:
    """How long, how often, and what is saved. Counts are optimizer steps unless the text says otherwise."""

    # fmt: off
    num_steps: int = field(
        5_000, "length of the run; it may be changed when the run is resumed",
        at_least=1, at_most=INT32_MAX, resume="length", lane="argument",
    )
    eval_every: int = field(500, "steps between evaluations; 0: only at the end", at_least=0, resume="free")
    log_every: int = field(10, "steps between logged losses", at_least=1, resume="free")
    checkpoint_every: int = field(500, "steps between checkpoints; 0: only at the end", at_least=0, resume="free")
    keep_checkpoints: int = field(
        2, "newest checkpoints to keep; the one with the lowest validation loss is kept in addition",
        at_least=1, resume="free",
    )
    grad_accumulation_steps: int = field(1, "split each batch into parts that run one after another", at_least=1, at_most=1 << 24)
    eval_batch_size: int | None = field(
        None, "sequences per batch of an evaluation; None: data.batch_size / grad_accumulation_steps",
        at_least=1, at_most=1 << 24, resume="free",
    )
    eval_tokens: int = field(
        0, "number of validation tokens to evaluate on, from the start of the split; 0: all", at_least=0, resume="free",
    )
    sample_tokens: int = field(200, "tokens of sample text at each evaluation; 0: none", at_least=0, resume="free")
    sample_prompt: str = field("", "prompt of the sample text; empty: a new line", resume="free")
    embedding_snapshots: int = field(
        8, "save the embedding tables at step 0 and at so many log-spaced steps from 1 to num_steps; 0: never",
        at_least=0, at_most=100_000, resume="free",
    )
    snapshots: str = field(
        "", "keep the parameters, for load and --step, at step 0 and at log:NUMBER steps, at pythia's, or at every:STEPS; "
        "empty: none (see config/snapshots.py)",
        resume="free",
    )
    stats_every: int = field(
        0, "steps between statistics of the run's health: norms, update ratios, activations (see training/stats.py); 0: none",
        at_least=0, resume="free",
    )
    tensorboard: bool = field(False, "write TensorBoard events too", resume="free")
    trackers: tuple[Literal["tensorboard", "wandb", "trackio", "mlflow"], ...] = field(
        (), "experiment trackers that get the config, all metrics, the samples and the report (see docs/runs.md)",
        resume="free",
    )
    report: bool = field(False, "write RUN/report.html at the end", resume="free")
    seed: int = field(
        0, "seed of initial values, dropout and, unless data.seed is given, the order of the text",
        at_least=0, at_most=INT32_MAX, lane="outside",
    )
    steps_per_dispatch: int = field(
        1, "steps in one call of the device, for models so small that the host can't keep up", at_least=1, at_most=1 << 16,
    )
    loss_chunk: int = field(
        0, "positions of a window whose logits are computed at once, to save memory; 0: all", at_least=0,
    )
    logits_dtype: Literal["float32", "bfloat16"] = field(
        "float32", "of the logits that a chunk of the loss stores; bfloat16 halves a GPU's traffic for them, and their "
        "error is up to 2^-9 of each; the sums over them stay float32",
    )
    remat: Literal["none", "dots", "full"] = field(
        "none", "what the backward pass recomputes: nothing, all but matrix products, or all but each layer's input",
    )
    deterministic: bool = field(
        False, "on a GPU, sums in a fixed order, so that a resumed run is equal to the last bit; slower (a CPU's always are)",
        resume="free",
    )
    pipelined: bool = field(
        True, "on GPUs with mesh.fsdp, matrices are gathered for the next part of a batch while one is computed (set by XLA's options)",
        resume="free",
    )
    on_bad_step: Literal["stop", "skip"] = field(
        "stop", "a bad step (loss or gradient not finite, or norm above bad_grad_norm) changes nothing; then stop "
        "with an error, or continue with the next batch",
    )
    bad_grad_norm: float = field(0.0, "a step with a larger gradient norm is bad; 0: off", at_least=0)
    watchdog_seconds: int = field(
        600, "warn if a step, an evaluation or a save takes longer; 0: never", at_least=0, resume="free",
    )
    attention: Literal["auto", "explicit", "cudnn"] = field(
        "auto", "cudnn: fused, needs an NVIDIA GPU and bfloat16; explicit: all weights at once; auto: cudnn where possible, "
        "in blocks of queries on a CPU, else explicit",
    )
    # fmt: on

    @property
    def tracker_names(self) -> tuple[str, ...]:
        """The trackers of the run, each once; train.tensorboard names one too."""
        return tuple(dict.fromkeys((*(("tensorboard",) if self.tensorboard else ()), *self.trackers)))


@dataclass(frozen=True)
class MeshConfig:
    """How many devices share what (see model/sharding.py). One size may be -1: all devices that the others leave."""

    # fmt: off
    data: int = field(
        -1, "copies of the parameters, each with its part of the batch; -1: all devices that the others leave",
        resume="free",
    )
    fsdp: int = field(1, "parts of every matrix, and of the batch", resume="free")
    tensor: int = field(1, "parts of the heads, of the MLP's width and of the vocabulary", resume="free")
    # fmt: on


@dataclass(frozen=True)
class Config:
    """One run."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    # fmt: off
    init_from: str = field(
        "", "start from the parameters of a run's newest checkpoint, or of another tool's folder (training/transfer.py)",
        lane="outside", resume="source",
    )
    init_vectors: str = field(
        "", "start the token table from word vectors: a file, or the name of a package (see vectors/word_vectors.py)",
        lane="outside", resume="source",
    )
    init_bridge: Literal["none", "pca"] = field(
        "none", "pca: project wider word vectors on their principal axes; none: they are as wide as the token table",
        lane="outside",
    )
    # fmt: on

    @property
    def eval_batch_size(self) -> int:
        """Sequences in a batch of an evaluation: train.eval_batch_size, or as many as a step computes at once."""
        return self.train.eval_batch_size or self.data.batch_size // self.train.grad_accumulation_steps

    @property
    def finds_documents(self) -> bool:
        """Whether the run needs to know where a document ends: model.document_end."""
        return self.model.document_mask or self.data.windows == "documents"

    @property
    def order_seed(self) -> int:
        """Seed of the order of the batches."""
        return self.train.seed if self.data.seed is None else self.data.seed


FIELDS: dict[str, Field] = fields_of(Config)  # by dotted name, in order


def value_of(config: Config, dotted: str) -> Any:
    """A field's value by its dotted name."""
    return operator.attrgetter(dotted)(config)
