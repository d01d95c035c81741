"""The best learning rate for configs/char.py: 8 rates x 3 seeds, all 24 trained in one program.

python -m jaxgpt.sweep --config configs/sweeps/char_lr.py --workdir runs/char_lr
"""

from pathlib import Path

from jaxgpt.common.cli import load_config_dict
from jaxgpt.sweeps.search_space import grid


def get_config():
    config = load_config_dict(Path(__file__).parents[1] / "char.py")
    config.train.num_steps = 200
    config.train.eval_every = 50
    config.train.eval_tokens = 16_384
    config.train.checkpoint_every = 50
    config.train.keep_checkpoints = 1
    config.train.sample_tokens = 0
    config.train.embedding_snapshots = 0
    config.train.snapshots = ""
    config.train.steps_per_dispatch = 10
    config.train.report = False
    config.optim.warmup_steps = 50
    config.optim.final_learning_rate = 1e-4  # all rates decay to this one
    return config


def sweep():
    rates = [5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2]
    yield from grid({"optim.learning_rate": rates, "train.seed": range(3)})
