"""nanoGPT's settings for a CPU, for comparison: the same shape, optimizer and text.

    python -m jaxgpt.train --config configs/nanogpt_cpu.py --config.data.path=input.txt

input.txt is the tiny Shakespeare text. Without the path, it is downloaded once.

Cost: 3 to 4 min on 2 cores of a shared 2.5 GHz Xeon.
Result: validation loss over the complete split 1.914 and 1.904 nats a character (seeds 0 and 2); nanoGPT itself
1.892, measured over the same split on the same machine; a bigram table gets 2.486.
"""

from jaxgpt.config import default_config


def get_config():
    config = default_config()
    config.model.context_length = 64
    config.model.d_model = 128
    config.model.num_layers = 4
    config.model.num_heads = 4
    config.model.activation = "gelu"
    config.model.use_bias = False
    config.data.corpus = "tinyshakespeare"
    config.data.tokenizer = "char"
    config.data.valid_fraction = 0.1
    config.data.batch_size = 12
    config.optim.learning_rate = 1e-3
    config.optim.final_learning_rate_ratio = 0.1
    config.optim.warmup_steps = 100
    config.optim.b2 = 0.99
    config.optim.weight_decay = 0.1
    config.optim.decay_embeddings = True
    config.train.num_steps = 2_000
    config.train.eval_every = 500
    config.train.eval_batch_size = 64
    config.train.checkpoint_every = 500
    return config
