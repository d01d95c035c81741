"""A word GPT on Shakespeare: its tokens have meanings, so one can see what an embedding table learns.

    python -m jaxgpt.train --config configs/word.py

Cost: 5 min 33 s on 2 cores of a shared 2.5 GHz Xeon with other work.
Result: validation loss 3.051 nats a token (white space is a token too); a bigram table gets 3.259.
"""

from jaxgpt.config import default_config


def get_config():
    config = default_config()
    config.model.context_length = 64
    config.model.d_model = 128
    config.model.num_layers = 2
    config.model.num_heads = 4
    config.model.activation = "relu"
    config.model.dropout_rate = 0.1
    config.data.corpus = "shakespeare"
    config.data.tokenizer = "word"
    config.data.vocab_size = 8_192
    config.data.batch_size = 16
    config.optim.learning_rate = 2e-3
    config.optim.final_learning_rate_ratio = 0.05
    config.train.num_steps = 1_000
    config.train.eval_every = 250
    config.train.eval_tokens = 32_768
    config.train.checkpoint_every = 250
    return config
