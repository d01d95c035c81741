"""A character GPT on three texts at once: Shakespeare, the King James Bible, and Python's documentation late in the run.

    python -m jaxgpt.train --config configs/mixture.py --dry_run    # tokens, share and epochs of each source
    python -m jaxgpt.train --config configs/mixture.py

Cost: 1 min 46 s on 2 cores of a shared Xeon with other work, including start and evaluations (commit 96a065d).
Result: validation loss 1.846 nats a character on 32,768 characters of all three; a bigram table gets 2.468. On each source's
own validation text (the first 32,768 characters):

    step       plays    bible    python
       0       4.687    4.707     4.557
     300       2.273    2.054     4.098
     450       2.159    1.913     2.308
     900       1.972    1.710     1.822

The share of Python's documentation rises from 0 at step 300 to a third at step 600: its loss falls when it is read, and hardly
before.
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
