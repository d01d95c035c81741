"""The fast recipe on characters: nanoGPT's CPU shape reaches, in 240 steps, nanoGPT's loss after 2,000.

    python -m jaxgpt.train --config configs/char_fast.py
    python -m jaxgpt.train --config configs/char_fast.py --config.data.path=tinyshakespeare.txt

Rotary positions, RMSNorm without parameters, query-key norm, ReLU squared, an untied head, fan-in initial values;
Muon for the matrices, Adam for the rest; a short warm-up, then a linear decay.

Cost: 24 to 36 s from command to loss on 2 cores of a shared 2.5 GHz Xeon, with nothing compiled before.
Result on tiny Shakespeare, complete split, seeds 0 to 4: 1.8822 1.8621 1.8769 1.8584 1.8688 nats a character; nanoGPT
after 2,000 steps 1.8923. docs/fast.md has the effect of each ingredient (from experiments/recipe.py).
"""

from jaxgpt.config import default_config


def get_config():
    config = default_config()
    config.model.context_length = 64
    config.model.d_model = 128
    config.model.num_layers = 4
    config.model.num_heads = 4
    config.model.activation = "relu_squared"
    config.model.position = "rotary"
    config.model.rotary_base = 1_000.0
    config.model.norm = "rmsnorm_plain"
    config.model.qk_norm = True
    config.model.attention_scale = 0.3
    config.model.use_bias = False
    config.model.tie_embeddings = False
    config.model.init = "fan_in"
    config.data.corpus = "shakespeare"
    config.data.tokenizer = "char"
    config.data.batch_size = 12
    config.optim.name = "muon"
    config.optim.learning_rate = 2e-2
    config.optim.muon_learning_rate = 3e-2
    config.optim.muon_momentum = 0.9
    config.optim.muon_iterations = 4
    config.optim.b1 = 0.8
    config.optim.b2 = 0.95
    config.optim.weight_decay = 0.0
    config.optim.grad_clip_norm = 0.0
    config.optim.schedule = "linear"
    config.optim.warmup_steps = 15
    config.optim.final_learning_rate_ratio = 0.02
    config.train.num_steps = 240
    config.train.eval_every = 0
    config.train.eval_batch_size = 64
    config.train.checkpoint_every = 0
    return config
