"""Every check of a config finds its problem, and values at the limits are accepted."""

import dataclasses
import math

import pytest

from jaxgpt import config
from jaxgpt.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig, UserError
from tests.config.samples import OTHER

TOO_MANY = 2**31
WRONG = {
    "model": [
        *({name: 0} for name in "vocab_size context_length d_model num_layers num_heads".split()),
        {"num_layers": -1},
        {"d_ff": -1},
        {"causal": False, "attention_window": 4},
        {"d_model": 10, "num_heads": 4},
        {"d_model": 9, "num_heads": 3, "position": "sinusoidal"},
        {"d_model": 9, "num_heads": 3, "position": "rotary"},
        {"head_dim": 0},
        {"head_dim": 5, "position": "rotary"},
        {"head_dim": 16, "position": "rotary", "rotary_fraction": 0.1},
        *({"rotary_fraction": part} for part in (0.0, 1.5, math.nan)),
        *({"norm_epsilon": epsilon} for epsilon in (0.0, 2.0, math.nan)),
        {"qk_norm_scale": True},
        {"parallel_residual": True, "residual": False},
        {"init": "identity", "activation": "relu"},
        {"init": "identity", "residual": False, "activation": "gelu"},
        {"init": "identity", "residual": False, "activation": "relu", "head_dim": 5},
        {"post_norm": True, "residual": False},
        {"post_norm": True, "parallel_residual": True},
        *({name: 0} for name in "vocab_multiple num_kv_heads attention_window".split()),
        {"num_kv_heads": 4},  # of 6
        *({"rotary_base": base} for base in (1.0, math.inf, math.nan)),
        *({"attention_scale": scale} for scale in (0.0, -1.0, math.inf)),
        *({name: cap} for name in ("attention_softcap", "logit_softcap") for cap in (-1.0, math.nan)),
        *(
            {name: rate}
            for name in ("dropout_rate", "attention_dropout_rate")
            for rate in (-0.1, 1.0, math.nan)
        ),
        {"dropout_rate": 0.001, "dropout_bits": 8},  # rounds to 0
        {"dropout_bits": 16},
    ],
    "data": [
        {"batch_size": 0},
        {"vocab_size": 0},
        *({"valid_fraction": fraction} for fraction in (0.0, 1.0, -0.5, math.nan)),
        {"corpus": "", "path": ""},
        {"tokenizer": "bpe", "vocab_size": None},
        {"tokenizer": "bpe", "vocab_size": 256},
        {"tokenizer": "gpt2", "vocab_size": 50_000},
        {"vocab_size": TOO_MANY},
    ],
    "optim": [
        *({"learning_rate": rate} for rate in (0.0, -1.0, math.inf, math.nan)),
        *({"final_learning_rate_ratio": ratio} for ratio in (-1e-9, 1.01, math.nan)),
        {"warmup_steps": -1},
        *({name: value} for name in ("b1", "b2") for value in (-0.1, 1.0, math.nan)),
        *(
            {name: value}
            for name in "eps weight_decay grad_clip_norm z_loss".split()
            for value in (-0.1, math.nan)
        ),
        *({"decay_fraction": fraction} for fraction in (0.0, 1.1, math.nan)),
        *({"muon_learning_rate": rate} for rate in (0.0, math.inf, math.nan)),
        {"muon_iterations": 0},
        {"mup_base_width": 0},
        *({name: x} for name in ("muon_momentum", "ema_decay") for x in (-0.1, 1.0, math.nan)),
        {"name": "schedule_free"},  # with a cosine
        {"name": "schedule_free", "schedule": "constant", "b1": 0.0},
        {"name": "schedule_free", "schedule": "constant", "ema_decay": 0.9},
        {"parametrization": "mup"},  # with a tied head that starts at random
        {"parametrization": "mup", "name": "lion"},
    ],
    "train": [
        *(
            {name: 0}
            for name in "num_steps log_every keep_checkpoints grad_accumulation_steps eval_batch_size "
            "steps_per_dispatch".split()
        ),
        {"loss_chunk": -1},
        {"loss_chunk": 100},  # of 256
        *({name: 15, "steps_per_dispatch": 10} for name in ("num_steps", "eval_every", "checkpoint_every")),
        {"logits_dtype": "bfloat16"},  # without chunks
        {"attention": "cudnn"},  # in float32
        *(
            {name: -1}
            for name in "eval_every checkpoint_every eval_tokens sample_tokens embedding_snapshots seed".split()
        ),
        {"num_steps": TOO_MANY},
        {"snapshots": "often"},
        {"seed": TOO_MANY},
        {"grad_accumulation_steps": 3},  # of a batch of 64
    ],
}


@pytest.mark.parametrize(
    "group, values", [(group, values) for group, cases in WRONG.items() for values in cases], ids=str
)
def test_every_check_finds_its_problem_and_names_the_field(group, values):
    good = getattr(Config(), group)
    problems = config.find_problems(
        dataclasses.replace(Config(), **{group: dataclasses.replace(good, **values)})
    )
    assert any(f"{group}.{name}" in problem for problem in problems for name in values), problems
    assert all("\n" not in problem for problem in problems)
    with pytest.raises(UserError):
        config.from_config_dict({group: values})


@pytest.mark.parametrize(
    "cfg",
    [
        Config(),
        OTHER,
        Config(model=ModelConfig(d_model=9, num_heads=3)),  # odd, but learned positions do not mind
        Config(data=DataConfig(tokenizer="gpt2", vocab_size=50_257)),
        Config(data=DataConfig(tokenizer="bpe", tokenizer_path="tokenizer.json")),
        Config(optim=OptimConfig(schedule="constant", learning_rate=1e-5)),
        Config(
            optim=OptimConfig(warmup_steps=0, b1=0.0, b2=0.0, eps=0.0, decay_fraction=1.0, weight_decay=0.0)
        ),
        Config(
            train=TrainConfig(eval_every=0, checkpoint_every=0, sample_tokens=0, grad_accumulation_steps=64)
        ),
        Config(train=TrainConfig(num_steps=1, seed=2**31 - 1)),
    ],
)
def test_values_at_the_limits_are_no_problem(cfg):
    assert config.find_problems(cfg) == []
