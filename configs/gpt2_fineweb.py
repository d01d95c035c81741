"""GPT-2 (124M) on FineWeb in llm.c's token shards: the field's race to a validation loss of 3.28.

    python -m jaxgpt.train --config configs/gpt2_fineweb.py --config.data.path=fineweb10B/

The folder has fineweb_train_000001.bin, ... and fineweb_val_000000.bin, as llm.c and modded-nanogpt write them (20 GB for
10 billion tokens; nothing is copied). `python -m jaxgpt.tokenize` makes such shards of documents.

Validation is on the first 10,485,760 tokens of the validation shard, as the field does. Cost and result: not measured on a
GPU yet.
"""

from pathlib import Path

from jaxgpt.common.cli import load_config_dict


def get_config():
    config = load_config_dict(Path(__file__).parent / "gpt2.py")
    config.data.path = "fineweb10B"
    config.data.tokenizer = "gpt2"
    config.train.eval_tokens = 10_485_760
    config.train.eval_every = 250
    return config
