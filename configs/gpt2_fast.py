"""GPT-2 124M's width and depth with the fast recipe of configs/char_fast.py, for one large GPU.

    python -m jaxgpt.train --config configs/gpt2_fast.py --config.data.path=my_text/

Different from configs/gpt2.py: rotary positions, RMSNorm without parameters, query-key norm, ReLU squared,
output projections that start at zero, an untied head, Muon for the matrices, and a constant rate that decays to zero
over the last 40 %. Each ingredient was measured on characters (docs/fast.md). For this size the evidence is the
records of modded-nanogpt, which use all of them.

Cost and result: not measured on a GPU yet. 162 million parameters, 38 million of them in the head; half a million
tokens per step in 8 parts of 64 windows (for a GPU of 24 GiB: --config.train.grad_accumulation_steps=64).
"""

from jaxgpt.config import default_config
from jaxgpt.config.presets import preset


def get_config():
    config = default_config()
    config.model = preset("gpt2")
    config.model.vocab_size = None  # the tokenizer's
    config.model.vocab_multiple = 128
    config.model.dtype = "bfloat16"
    config.model.activation = "relu_squared"
    config.model.position = "rotary"
    config.model.norm = "rmsnorm_plain"
    config.model.qk_norm = True
    config.model.logit_softcap = 15.0
    config.model.use_bias = False
    config.model.tie_embeddings = False
    config.model.init = "fan_in"
    config.model.zero_init = True
    config.data.corpus = "shakespeare"
    config.data.tokenizer = "gpt2"
    config.data.valid_fraction = 0.01
    config.data.batch_size = 512  # x 1,024 = half a million tokens per step
    config.optim.name = "muon"
    config.optim.learning_rate = 3e-3
    config.optim.muon_learning_rate = 2e-2
    config.optim.muon_dtype = "bfloat16"
    config.optim.b1 = 0.8
    config.optim.b2 = 0.95
    config.optim.weight_decay = 0.0
    config.optim.grad_clip_norm = 0.0
    config.optim.schedule = "wsd"
    config.optim.decay_fraction = 0.4
    config.optim.final_learning_rate_ratio = 0.0
    config.optim.warmup_steps = 0
    config.train.num_steps = 5_000
    config.train.grad_accumulation_steps = 8
    config.train.loss_chunk = 128
    config.train.logits_dtype = "bfloat16"
    config.train.eval_every = 250
    config.train.eval_tokens = 10_485_760
    config.train.checkpoint_every = 1_000
    return config
