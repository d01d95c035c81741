"""Write the token ids of a text as shards of llm.c's format, or a run's tokenizer as a file.

    python -m jaxgpt.tokenize --config configs/gpt2.py --config.data.path=my_text/ --out FOLDER [--num_workers 8]

FOLDER gets the text's name with `_train_000001.bin`, `_train_000002.bin`, ... and `_val_000000.bin`, and the tokenizer as
tokenizer.json. Train on them with data.path=FOLDER and data.tokenizer_path=FOLDER/tokenizer.json.

    python -m jaxgpt.tokenize --workdir runs/bpe --export tokenizer.json

FILE is a tokenizer.json that the package tokenizers loads (Tokenizer.from_file), and transformers
(PreTrainedTokenizerFast(tokenizer_file=FILE)), with the same ids.
"""

from __future__ import annotations

import re
from pathlib import Path

from jaxgpt.common import cli
from jaxgpt.config import UserError

BLOCK = 1 << 22  # ids that are written together


def main(argv: list[str]) -> None:
    """The command line: see --help."""
    parser = cli.Parser(
        "tokenize",
        description="Write the token ids of a text as llm.c's shards, or a run's tokenizer as a file.",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="a config file; only its data fields count (required)"
    )
    parser.add_argument(
        "--out",
        type=cli.path,
        metavar="FOLDER",
        help="the folder for the shards; absent or empty",
    )
    parser.add_argument("--workdir", type=cli.path, help="the folder of a run whose tokenizer is exported")
    parser.add_argument(
        "--export",
        type=cli.path,
        metavar="FILE",
        help="a new tokenizer.json for the packages tokenizers and transformers",
    )
    parser.add_argument("--shard_tokens", type=int, default=100_000_000, help="the most ids of a shard")
    cli.add_data_flags(parser)
    file, overrides, rest = cli.split_config_flags(argv)
    args = parser.parse_args(rest)
    cli.check_at_least(1, args, "shard_tokens")
    cli.check_at_least(0, args, "num_workers")
    if args.workdir or args.export:
        if file or overrides or args.out or not (args.workdir and args.export):
            raise UserError("give --config and --out, or --workdir and --export (see --help)")
        return _export(args.workdir, Path(args.export))
    if not args.out:
        raise UserError("--out is missing: give a folder for the shards (see --help)")
    cfg = cli.read_config(file, overrides)
    if cfg.data.template:
        raise UserError(
            "token shards can't say which tokens count: train on the conversations with data.template"
        )
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


def _export(workdir: str, file: Path) -> None:
    from jaxgpt.common.files import write_atomically
    from jaxgpt.data import tokenizers
    from jaxgpt.runs import tokenizer_files

    if file.exists():
        raise UserError(f"--export={file} exists already: give a new file")
    tokenizer = tokenizers.load(Path(workdir) / "tokenizer.json")
    content = tokenizer_files.exported(tokenizer)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, content)
    except OSError as error:
        raise UserError(f"cannot write {file} ({error.strerror}): give a path that can be written") from error
    print(f"wrote {file}: {tokenizer.kind}, {tokenizer.vocab_size:,} tokens")
    for note in tokenizer_files.notes(tokenizer):
        print(f"note: {note}")


if __name__ == "__main__":
    cli.run(main)
