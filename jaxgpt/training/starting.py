"""The start of a run: its resolved config, the check of memory, and its initial parameters."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt import config
from jaxgpt.common.files import expand, read_json
from jaxgpt.common.say import say
from jaxgpt.config import Config, UserError
from jaxgpt.data import documents, encoding, tokenizers
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import init_params, param_shapes
from jaxgpt.model.paths import map_named
from jaxgpt.runs.checkpoint import saved_steps
from jaxgpt.training import trainable


def resolve(cfg: Config, tokenizer: tokenizers.Tokenizer) -> Config:
    """The config with every derived field set. Raises UserError where its rules on parameters do not fit."""
    model, train, optim = cfg.model, cfg.train, cfg.optim
    if model.vocab_size not in (None, tokenizer.vocab_size):
        raise UserError(
            f"model.vocab_size={model.vocab_size}, but the {tokenizer.kind} tokenizer of this text has "
            f"{tokenizer.vocab_size} tokens: leave model.vocab_size out"
        )
    if optim.train_rows_from == -1:
        known = tokenizers.load(cfg.data.tokenizer_path).vocab_size
        optim = dataclasses.replace(optim, train_rows_from=known)
    model = dataclasses.replace(
        model,
        vocab_size=tokenizer.vocab_size,
        d_ff=model.mlp_width,
        document_end=document_end(cfg, tokenizer),
    )
    trainable.check(optim, param_shapes(model), tokenizer.vocab_size)
    return dataclasses.replace(
        cfg,
        model=model,
        data=dataclasses.replace(cfg.data, documents=documents.mode(cfg.data)),
        optim=optim,
        train=dataclasses.replace(
            train,
            eval_batch_size=cfg.eval_batch_size,
        ),
    )


def document_end(cfg: Config, tokenizer: tokenizers.Tokenizer) -> int | None:
    """model.document_end: the id that ends a document, None where nothing asks for it. Raises UserError without one."""
    given = cfg.model.document_end
    if given is not None and given >= tokenizer.vocab_size:
        raise UserError(
            f"model.document_end={given}, but the {tokenizer.kind} tokenizer has the ids 0 to "
            f"{tokenizer.vocab_size - 1}: leave model.document_end out, or give one of them"
        )
    if not cfg.finds_documents or given is not None:
        return given
    separator = encoding.separator_ids(tokenizer, cfg.data.separator)
    if len(separator) == 1:
        return int(separator[0])
    if not len(separator) and cfg.data.special_tokens_in_text:
        return tokenizer.eos_id
    found = f"is {len(separator)} tokens" if len(separator) else "leaves nothing between documents"
    asks = "model.document_mask=true" if cfg.model.document_mask else "data.windows='documents'"
    raise UserError(
        f"{asks} finds documents by the one token that ends them, but data.separator={cfg.data.separator!r} {found} "
        f"with this {tokenizer.kind} tokenizer: train on documents (data.documents) with a tokenizer that has an end of text, "
        "or give the id as model.document_end"
    )


def with_sources_at_hand(cfg: Config, workdir: Path) -> Config:
    """The config of a run that resumes, with its own tokenizer where that of data.tokenizer_path is gone."""
    path, own = cfg.data.tokenizer_path, workdir / "tokenizer.json"
    if not path or expand(path).exists() or not saved_steps(workdir) or not own.is_file():
        return cfg
    say(f"data.tokenizer_path={path!r} is gone: the run's own tokenizer is used")
    rows = cfg.optim.train_rows_from
    if rows == -1:
        rows = config.from_json(read_json(workdir / "config.json")).optim.train_rows_from
    return dataclasses.replace(
        cfg,
        data=dataclasses.replace(cfg.data, tokenizer_path=str(own)),
        optim=dataclasses.replace(cfg.optim, train_rows_from=rows),
    )


@dataclass(frozen=True)
class Start:
    """The initial parameters that are not drawn, by path; their record in run.json; and a line to print."""

    arrays: dict[str, np.ndarray]
    record: dict[str, Any]
    text: str

    def params(self, model: GPT, key: jax.Array) -> dict:
        """All initial parameters: these, and the others as `init_params` draws them."""
        return map_named(
            lambda path, drawn: jnp.asarray(self.arrays[path], drawn.dtype) if path in self.arrays else drawn,
            init_params(model, key),
        )


def prepare(cfg: Config, tokenizer: tokenizers.Tokenizer) -> Start | None:
    """The start from a resolved config's init_from or init_vectors; None without either. Raises UserError."""
    if not cfg.init_from and not cfg.init_vectors:
        return None
    from jaxgpt.training import transfer  # imports the formats of other tools

    return transfer.from_source(cfg, tokenizer) if cfg.init_from else transfer.from_vectors(cfg, tokenizer)
