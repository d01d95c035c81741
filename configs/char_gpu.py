"""The fast recipe at the size of nanoGPT's character model for a GPU: 6 layers, d_model 384, context 256, dropout 0.2.

    python -m jaxgpt.train --config configs/char_gpu.py --config.data.path=tinyshakespeare.txt

The recipe of configs/char_fast.py, with ten steps per dispatch and the tokens on the device, as a step of this model is
short on a GPU. nanoGPT's own settings reach 1.4697 nats a character in 5,000 steps (its README).

Cost and result: not measured on a GPU yet; `python -m experiments.on_gpu` does that.
"""

from jaxgpt.config import default_config


def get_config():
    config = default_config()
    config.model.context_length = 256
    config.model.d_model = 384
    config.model.num_layers = 6
    config.model.num_heads = 6
    config.model.dropout_rate = 0.2
    config.model.attention_dropout_rate = 0.0  # so that attention is fused
    config.model.dropout_bits = 8
    config.model.activation = "relu_squared"
    config.model.position = "rotary"
    config.model.rotary_base = 1_000.0
    config.model.norm = "rmsnorm_plain"
    config.model.qk_norm = True
    config.model.use_bias = False
    config.model.tie_embeddings = False
    config.model.init = "fan_in"
    config.model.dtype = "bfloat16"
    config.data.corpus = "shakespeare"
    config.data.tokenizer = "char"
    config.data.batch_size = 64
    config.data.on_device = True
    config.optim.name = "muon"
    config.optim.learning_rate = 1e-2
    config.optim.muon_learning_rate = 2e-2
    config.optim.muon_dtype = "bfloat16"
    config.optim.b1 = 0.8
    config.optim.b2 = 0.95
    config.optim.weight_decay = 0.0
    config.optim.grad_clip_norm = 0.0
    config.optim.schedule = "linear"
    config.optim.warmup_steps = 50
    config.optim.final_learning_rate_ratio = 0.02
    config.train.num_steps = 2_000
    config.train.steps_per_dispatch = 10
    config.train.eval_every = 100
    config.train.checkpoint_every = 0
    return config
