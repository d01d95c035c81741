"""A character GPT on three texts at once: Shakespeare, the King James Bible, and Python's documentation late in the run.

    python -m jaxgpt.train --config configs/mixture.py --dry_run    # tokens, share and epochs of each source
    python -m jaxgpt.train --config configs/mixture.py

Every evaluation has the loss on each source's own validation text. The share of Python's documentation rises from 0 at step
300 to a third at step 600: its loss falls when it is read, and not before.
"""

from jaxgpt.config import default_config


def get_config():
    config = default_config()
    config.model.context_length = 64
    config.model.d_model = 128
    config.model.num_layers = 4
    config.model.num_heads = 4
    config.model.activation = "relu"
    config.data.mixture = (
        "plays=corpus:shakespeare:1, bible=corpus:kjv:1, python=corpus:python_docs:0@300 1@600"
    )
    config.data.tokenizer = "char"
    config.data.batch_size = 16
    config.optim.learning_rate = 4e-3
    config.optim.final_learning_rate_ratio = 0.025
    config.optim.warmup_steps = 100
    config.train.num_steps = 900
    config.train.eval_every = 150
    config.train.eval_tokens = 32_768
    config.train.checkpoint_every = 300
    return config
