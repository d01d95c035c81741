"""Fine-tune the character GPT of configs/char.py from Shakespeare to the King James Bible.

    python -m jaxgpt.train --config configs/char.py
    python -m jaxgpt.train --config configs/finetune.py:all --workdir runs/finetune_all    # or :frozen, :new_embeddings, :lora
    python -m jaxgpt.evaluate --workdir runs/finetune_all --corpus kjv
    python -m jaxgpt.evaluate --workdir runs/finetune_all --corpus shakespeare    # what it forgot

Cost: 42 to 98 s per mode on 2 cores of a shared 2.5 GHz Xeon with other work.
Result, nats a character on the complete validation splits after 300 steps (before: 1.83 on the first 65,536 characters of
the Bible, 1.780 on Shakespeare):

    mode              trained parameters   King James   Shakespeare
    all                          811,264        1.559         2.146
    frozen                       801,536        1.565         2.127
    lora                          32,768        1.644         2.074
    new_embeddings                 9,728        1.652         1.982

The tokenizer is that of the first run, with the Bible's five new characters added at its end.

    all              trains every parameter
    frozen           all but the token table, which stays equal bit for bit
    new_embeddings   the token table alone
    lora             low-rank changes of the four projections of attention, 4 % of the parameters
"""

from jaxgpt.config import UserError, default_config

MODES = {
    "all": {},
    "frozen": {"optim": {"trainable": ("-token_embedding/*", "*")}},
    "new_embeddings": {"optim": {"trainable": ("token_embedding/*",)}},
    "lora": {
        "model": {"lora_rank": 8, "lora_targets": ("query", "key", "value", "out")},
        "optim": {"learning_rate": 4e-3, "final_learning_rate_ratio": 0.025},
    },
}


def get_config(mode="all"):
    if mode not in MODES:
        raise UserError(f"configs/finetune.py:{mode}: choose one of {', '.join(MODES)}")
    config = default_config()
    config.init_from = "runs/char"
    config.model.context_length = 64
    config.model.d_model = 128
    config.model.num_layers = 4
    config.model.num_heads = 4
    config.model.activation = "relu"
    config.data.corpus = "kjv"
    config.data.tokenizer_path = "runs/char/tokenizer.json"
    config.data.add_tokens = True
    config.data.batch_size = 16
    config.optim.learning_rate = 1e-3
    config.optim.final_learning_rate_ratio = 0.1
    config.optim.warmup_steps = 20
    config.train.num_steps = 300
    config.train.eval_every = 100
    config.train.eval_tokens = 65_536
    config.train.checkpoint_every = 100
    config.update(MODES[mode])
    return config
