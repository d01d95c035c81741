"""A GPT on Shakespeare in byte pairs, between characters and words. They are trained on the text, as GPT-2's were.

    python -m jaxgpt.train --config configs/bpe.py

Cost: 7 min 40 s on 2 cores of a shared 2.5 GHz Xeon that also ran the tests.
Result: validation loss 4.290 nats a token; a bigram table gets 4.505.
"""

from jaxgpt.config import default_config


def get_config():
    config = default_config()
    config.model.context_length = 64
    config.model.d_model = 128
    config.model.num_layers = 4
    config.model.num_heads = 4
    config.model.activation = "gelu_tanh"
    config.data.corpus = "shakespeare"
    config.data.tokenizer = "bpe"
    config.data.vocab_size = 2_048
    config.data.batch_size = 16
    config.optim.learning_rate = 4e-3
    config.optim.final_learning_rate_ratio = 0.025
    config.train.num_steps = 1_500
    config.train.eval_every = 250
    config.train.eval_tokens = 32_768
    config.train.checkpoint_every = 250
    return config
