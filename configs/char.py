"""A character GPT on Shakespeare: the smallest run that writes something worth reading.

    python -m jaxgpt.train --config configs/char.py

Cost: 2 min on 2 cores of a shared 2.5 GHz Xeon, including start, evaluations and the report (commit 8231a6d).
Result: validation loss 1.748 nats a character on 65,536 characters (1.780 on the complete split); a bigram table
gets 2.446.

Learned positions, ReLU, d_ff = 4 x d_model, pre-norm: the textbook transformer. The learning rate is the best of 2e-3,
4e-3 and 8e-3 after 600 steps (2.009, 1.963, 1.965).
"""

from jaxgpt.config import default_config


def get_config():
    config = default_config()
    config.model.context_length = 64
    config.model.d_model = 128
    config.model.num_layers = 4
    config.model.num_heads = 4
    config.model.activation = "relu"
    config.data.corpus = "shakespeare"
    config.data.tokenizer = "char"
    config.data.batch_size = 16
    config.optim.learning_rate = 4e-3
    config.optim.final_learning_rate_ratio = 0.025
    config.optim.warmup_steps = 100
    config.train.num_steps = 1_500
    config.train.eval_every = 250
    config.train.eval_tokens = 65_536
    config.train.checkpoint_every = 250
    config.train.snapshots = "log:24"  # parameters of 24 steps, 3 MB each: how it learned
    config.train.report = True  # runs/char/report.html: what it learned
    return config
