"""Write the token ids of a text as shards that llm.c, modded-nanogpt and this package read.

    python -m jaxgpt.tokenize --config configs/gpt2.py --config.data.path=my_text/ --out FOLDER [--num_workers 8]

FOLDER gets the text's name with `_train_000001.bin`, `_train_000002.bin`, ... and `_val_000000.bin`, and the tokenizer as
tokenizer.json. Train on them with data.path=FOLDER and data.tokenizer_path=FOLDER/tokenizer.json.
"""

from __future__ import annotations

import re
from pathlib import Path

from jaxgpt.common import cli
from jaxgpt.config import UserError

BLOCK = 1 << 22  # ids that are written together


def main(argv: list[str]) -> None:
    """The command line: see --help."""
    parser = cli.Parser("tokenize", description="Write the token ids of a text as llm.c's shards.")
    parser.add_argument(
        "--config", metavar="FILE", help="a config file; only its data fields count (required)"
    )
    parser.add_argument(
        "--out",
        required=True,
        type=cli.path,
        metavar="FOLDER",
        help="the folder for the shards; absent or empty",
    )
    parser.add_argument("--shard_tokens", type=int, default=100_000_000, help="the most ids of a shard")
    cli.add_data_flags(parser)
    file, overrides, rest = cli.split_config_flags(argv)
    args = parser.parse_args(rest)
    cli.check_at_least(1, args, "shard_tokens")
    cli.check_at_least(0, args, "num_workers")
    cfg = cli.read_config(file, overrides)
    from jaxgpt.common.files import new_folder
    from jaxgpt.data import shards, tokenizers
    from jaxgpt.data.dataset import prepare_dataset

    out = Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out={args.out} is not an empty folder: give another")
    if cfg.data.mixture:
        raise UserError("data.mixture: shards are of one text, give each source in turn, as data.path")
    data = prepare_dataset(cfg.data, args.num_workers)
    name = re.sub(r"\W+", "_", Path(data.corpus_name).stem).strip("_") or "text"
    with new_folder(out) as folder:
        for split, ids, first in (("train", data.train.ids, 1), ("val", data.valid.ids, 0)):
            for i, start in enumerate(range(0, len(ids), args.shard_tokens)):
                stop = min(start + args.shard_tokens, len(ids))
                blocks = (ids[at : min(at + BLOCK, stop)] for at in range(start, stop, BLOCK))
                shards.write(folder / f"{name}_{split}_{first + i:06}.bin", blocks, data.tokenizer.vocab_size)
        tokenizers.save(data.tokenizer, folder / "tokenizer.json")
    print(f"wrote {out}: {len(data.train.ids):,} tokens to train on, {len(data.valid.ids):,} to validate")


if __name__ == "__main__":
    cli.run(main)
