"""The command lines of jaxgpt.convert, and of jaxgpt.gpt2, which is the same for one family."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from jaxgpt.common import cli
from jaxgpt.common.say import say
from jaxgpt.config import UserError


def _import(args: argparse.Namespace) -> None:
    if bool(args.from_dir) == bool(args.from_hub):
        raise UserError("give one of --from_dir and --from_hub (see --help)")
    from jaxgpt.model.parameters import count_params
    from jaxgpt.runs.published import check_empty, download, import_folder

    check_empty(Path(args.workdir), "--workdir", "the run")  # before a download
    source = download(args.from_hub) if args.from_hub else args.from_dir
    run = import_folder(source, args.workdir, lambda note: say(f"note: {note}"), args.family)
    model, tokenizer = run.config.model, run.tokenizer
    say(
        f"{count_params(run.params):,} parameters: {model.num_layers} layers, {model.num_heads} heads, d_model "
        f"{model.d_model}, context {model.context_length}, vocabulary {model.vocab_size:,}, "
        f"dropout {model.dropout_rate} in training"
    )
    if tokenizer.kind == "ids":
        say(
            "no tokenizer: prompts and texts are token ids between spaces; for text add vocab.json and merges.txt"
        )
    else:
        say(f"tokenizer: {tokenizer.kind}, {tokenizer.vocab_size:,} tokens")
    say(
        f"written to {run.workdir}: use it with generate or evaluate, or train from it with "
        f"{shlex.quote(f'--config.init_from={run.workdir}')}"
    )


def _export(args: argparse.Namespace) -> None:
    from jaxgpt.runs.load import load
    from jaxgpt.runs.published import export_run

    run = load(args.workdir, step=args.step)
    for note in export_run(run, args.to_dir, args.family):
        say(f"note: {note}")
    say(
        f"step {run.step} of {args.workdir} written to {args.to_dir}: load it with from_pretrained({str(args.to_dir)!r})"
    )


def command(name: str, argv: list[str], family: str = "auto") -> None:
    """A command of this name, for all families or only for one."""
    every = family == "auto"
    parser = cli.Parser(
        name, description=f"Import and export {'published models' if every else 'GPT-2 weights'}."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="import | export")
    importing = commands.add_parser(
        "import",
        help="a model's folder -> a run folder",
        description="Write a model's folder as a run folder.",
    )
    importing.add_argument("--from_dir", type=cli.path, help="config.json, model.safetensors (or shards with their "
                           "index), and for text vocab.json and merges.txt, or tokenizer.json")  # fmt: skip
    importing.add_argument("--from_hub", default="", help="the name of a model on the Hugging Face hub: "
                           "openai-community/gpt2")  # fmt: skip
    importing.add_argument("--workdir", required=True, type=cli.path, help="the run's folder, new or empty")
    importing.set_defaults(run=_import, family=family)
    exporting = commands.add_parser(
        "export",
        help="a run folder -> a transformers folder",
        description="Write a run as a folder for transformers.",
    )
    cli.add_run_flags(exporting)
    exporting.add_argument("--to_dir", required=True, type=cli.path, help="the folder to write, new or empty")
    exporting.set_defaults(run=_export, family=family)
    if every:
        exporting.add_argument("--family", default=family, help="gpt2, llama, qwen3, arcee or gpt_neox; auto: the first that "
                               "expresses the model exactly")  # fmt: skip
    args = parser.parse_args(argv)
    cli.set_up_process()
    args.run(args)
