"""What a model answers to in a conversation: the ids before its turn, and where its turn ends."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxgpt.config import UserError
from jaxgpt.data import conversations, encoding
from jaxgpt.data.shards import unmarked
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.model.stopping import Stops


def prompt_ids(
    messages: Any, template: conversations.Template | None, tokenizer: Tokenizer, stops: Stops
) -> tuple[np.ndarray, Stops]:
    """The ids of a conversation up to the assistant's next turn [N], and the stops with the end of that turn.

    messages: `[{"role": ..., "content": ...}, ...]`. Raises UserError for a run without a template, and for turns that are
    none.
    """
    if template is None:
        raise UserError("this run was not trained on conversations (data.template): give a prompt")
    if not messages:
        raise UserError("messages is empty: give at least one turn of the user")
    turns = conversations.checked(messages, template, "messages")
    nothing = np.zeros(0, np.int32)
    ids = np.concatenate(encoding.encode_segments(tokenizer, template.prompt(turns), nothing))
    ids = unmarked(ids)
    end = template.stop
    if not end:
        return ids, stops
    special = tokenizer.special_id(end)
    if special is not None:
        return ids, Stops(special, stops.texts)
    return ids, Stops(stops.id, (*stops.texts, end))
