"""A transformer that fits on a screen: every number of its forward pass can be checked by hand.

    python -m jaxgpt.explain --config configs/toy.py --text "I love AI"
    python -m jaxgpt.train --config configs/toy.py
    python -m jaxgpt.explain --workdir runs/toy --text "the value of the list"

Untrained, as in the first command, its vocabulary is the words of the sentence. Trained, its vocabulary is the 63 most
frequent words of Python's documentation; with four numbers per word it learns word frequencies and little more.

Cost: 1 s for 500 steps, 8 s for the command with start and compilation, on 2 busy cores of a shared 2.5 GHz Xeon.
Result: validation loss 1.913 nats a token on 16,384 tokens (white space and <unk> are tokens too); a bigram table gets 1.706.
"""

from jaxgpt.config import default_config


def get_config():
    config = default_config()
    config.model.context_length = 12
    config.model.d_model = 4
    config.model.num_layers = 1
    config.model.num_heads = 2
    config.model.d_ff = 8
    config.model.activation = "relu"
    config.model.init = "fan_in"  # rows of size about 1; GPT-2's 0.02 would print as zeros
    config.data.corpus = "python_docs"
    config.data.tokenizer = "word"
    config.data.vocab_size = 64
    config.data.batch_size = 64
    config.optim.learning_rate = 3e-2
    config.optim.final_learning_rate_ratio = 1 / 30
    config.optim.warmup_steps = 20
    config.train.num_steps = 500
    config.train.eval_every = 0
    config.train.eval_tokens = 16_384
    config.train.eval_batch_size = 256
    config.train.sample_tokens = 0
    config.train.steps_per_dispatch = 100
    config.train.log_every = 100
    config.train.checkpoint_every = 0
    return config
