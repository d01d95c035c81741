"""GPT-2 (124M by default) from scratch on your own text, with GPT-2's own tokens.

    python -m jaxgpt.train --config configs/gpt2.py --config.data.path=my_text/
    python -m jaxgpt.train --config configs/gpt2.py:gpt2-medium --config.data.path=my_text/

The argument after the colon is any shape of jaxgpt.config.presets.PRESETS.

Cost: 124,439,808 parameters (and 47 rows that pad the table); half a million tokens per step, 19,000 steps, 10 billion
tokens: for a GPU of 40 GiB or more (of 16 or 24 GiB: --config.train.grad_accumulation_steps=32). Result: not measured on
one yet. The usual rates and schedule of this size (Radford et al. 2019; Brown et al. 2020, table 2.1).
"""

from jaxgpt.config import default_config
from jaxgpt.config.presets import preset


def get_config(shape: str = "gpt2"):
    config = default_config()
    config.model = preset(shape)
    config.model.vocab_size = None  # the tokenizer's
    config.model.vocab_multiple = 128  # 50,257 rows become 50,304: full tiles of a GPU's matrix units
    config.model.dtype = "bfloat16"
    config.data.corpus = "shakespeare"
    config.data.tokenizer = "gpt2"
    config.data.valid_fraction = 0.01
    config.data.batch_size = 512  # x 1,024 = half a million tokens per step
    config.optim.learning_rate = 6e-4
    config.optim.final_learning_rate_ratio = 0.1
    config.optim.warmup_steps = 700
    config.optim.b2 = 0.95
    config.train.num_steps = 19_000
    config.train.grad_accumulation_steps = 8  # parts of 64 windows: 22 GiB of temporaries
    config.train.loss_chunk = 128  # logits of 64 x 128 positions at a time, 0.8 GB, instead of 13 GB
    config.train.logits_dtype = "bfloat16"  # by the compiled program 4 % faster; no loss seen (docs/fast.md)
    config.train.eval_every = 500
    config.train.eval_tokens = 10_485_760
    config.train.checkpoint_every = 1_000
    return config
