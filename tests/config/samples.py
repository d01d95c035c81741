"""A config that differs from the defaults, and the text of an error."""

import pytest

from jaxgpt.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig, UserError

OTHER = Config(
    ModelConfig(vocab_size=300, d_ff=64, position="none", use_bias=False),
    DataConfig(path="a.txt", tokenizer="bpe", vocab_size=300, valid_fraction=0.25),
    OptimConfig(schedule="wsd", warmup_steps=0, grad_clip_norm=0.0),
    TrainConfig(eval_batch_size=4, tensorboard=True, sample_prompt="Once"),
)


def message(function, *args, **kwargs) -> str:
    with pytest.raises(UserError) as error:
        function(*args, **kwargs)
    return str(error.value)
