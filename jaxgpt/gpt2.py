"""GPT-2's weights in and out: folders as the Hugging Face libraries keep them <-> runs of ours.

    python -m jaxgpt.gpt2 import --from_dir gpt2 --workdir runs/gpt2
    python -m jaxgpt.gpt2 export --workdir runs/char --to_dir exported

A folder has config.json, the weights (model.safetensors, or shards with their index) and, for text, the
tokenizer's files (vocab.json and merges.txt, or tokenizer.json). What is imported is a run folder with one
checkpoint, step 0: generate, evaluate and jaxgpt.load take it, and training starts from it with init_from. What is
exported loads in transformers with from_pretrained. Nothing in a folder is run, and pickles are refused.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

from jaxgpt import checkpoint, cli, config, gpt2_layout, records, tensor_files, tokenizer_files
from jaxgpt.checkpoint import Run
from jaxgpt.config import UserError, first_line
from jaxgpt.files import new_folder, read_json
from jaxgpt.lora import merge_lora
from jaxgpt.model import GPT, count_params
from jaxgpt.tensor_files import TensorFiles

CONFIG = "config.json"
EXPORT = "jaxgpt_export.json"  # what an export says of where it comes from


def is_gpt2_folder(folder: str | Path) -> bool:
    """Whether `load` is the one to open a folder: it has a config.json with model_type, and no checkpoints."""
    path = Path(folder)
    if (path / checkpoint.FOLDER).exists() or not (path / CONFIG).is_file():
        return False
    try:
        values = read_json(path / CONFIG, gpt2_layout.MAX_CONFIG_SIZE)
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and "model_type" in values


def load(folder: str | Path) -> Run:
    """A GPT-2 folder as a run of step 0, ready for use: config, model, params, tokenizer.

    Where there are no tokenizer files, the tokenizer is of kind `ids`. Raises UserError, one line, for what is
    damaged, does not fit together, or is another architecture.
    """
    return _load(Path(folder))[0]


def _load(folder: Path) -> tuple[Run, TensorFiles]:
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: give one with {CONFIG} and {tensor_files.FILE}")
    cfg = gpt2_layout.read_config(folder / CONFIG)
    files = tensor_files.open_tensors(folder)
    gpt2_layout.check_tensors(files, cfg)
    tokenizer = tokenizer_files.read(folder, cfg.vocab_size)
    params = gpt2_layout.read_params(files, cfg)
    # A vocabulary size of its own, because byte pairs below GPT-2's are otherwise taken to be trained anew.
    vocab_size = None if tokenizer.kind == "gpt2" else tokenizer.vocab_size
    data = config.Data(tokenizer=tokenizer.kind, vocab_size=vocab_size)
    return Run(config.Config(model=cfg, data=data), GPT(cfg), params, tokenizer, 0, folder), files


def import_folder(folder: str | Path, workdir: str | Path) -> Run:
    """Write a run folder with one checkpoint, step 0, from a GPT-2 folder; what `load` gives of it is returned.

    The run folder is there as a whole or not at all. Raises UserError where `workdir` holds anything, and as `load`.
    """
    folder, workdir = Path(folder), Path(workdir)
    _check_free(workdir, "--workdir", "the run")
    run, files = _load(folder)
    # Where the run's own copy is, so that a text can be encoded for it.
    data = dataclasses.replace(run.config.data, tokenizer_path=str(workdir / "tokenizer.json"))
    cfg = config.from_config_dict(config.to_json(dataclasses.replace(run.config, data=data)))
    imported = {"name": folder.resolve().name, "format": "gpt2", "sha256": files.sha256()}
    checkpoint.write_run(workdir, cfg, run.params, run.tokenizer, 0, {"imported": imported})
    return dataclasses.replace(run, config=cfg, workdir=workdir)


def export_run(run: Run, folder: str | Path) -> list[str]:
    """Write a run as a GPT-2 folder that transformers loads; returns what is written otherwise than it is here.

    The folder is there as a whole or not at all. Raises UserError where it holds anything already, and where the
    model is not GPT-2's architecture, with every obstacle named.
    """
    folder = Path(folder)
    cfg, params = merge_lora(run.config.model, run.params)
    values = gpt2_layout.write_config(cfg, run.tokenizer.eos_id)
    _check_free(folder, "--to_dir", "the export")
    records.make_folder(folder.parent)
    notes = [*gpt2_layout.notes(cfg), *tokenizer_files.notes(run.tokenizer)]
    with new_folder(folder) as temporary:
        tensors = gpt2_layout.write_params(cfg, params)
        # transformers asks for this word before it reads a file.
        tensor_files.write_tensors(temporary / tensor_files.FILE, tensors, {"format": "pt"})
        for name, content in tokenizer_files.files_of(run.tokenizer, cfg.context_length).items():
            (temporary / name).write_bytes(content)
        provenance = {
            "run": run.workdir.resolve().name,
            "step": run.step,
            "sha256": tensor_files.open_tensors(temporary).sha256(),
            "notes": notes,
        }
        records.write_json(temporary / EXPORT, provenance)
        records.write_json(temporary / CONFIG, values)
    return notes


def _check_free(folder: Path, flag: str, what: str) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        held = "a run" if (folder / checkpoint.FOLDER).exists() else "files"
        raise UserError(f"{flag}={folder} holds {held} already: give a new or an empty folder for {what}")


def _download(name: str) -> Path:
    """The folder of a model of the Hugging Face hub, downloaded or from its cache."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError('--from_hub needs huggingface-hub: pip install "jaxgpt[hub]", or give --from_dir')
    from huggingface_hub import snapshot_download

    wanted = [CONFIG, "model*.safetensors", tensor_files.INDEX, *tokenizer_files.NAMES]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:
        # Of many kinds, by name, network, token and version; each says why in its first line.
        raise UserError(
            f"--from_hub={name} can't be downloaded ({type(error).__name__}: {first_line(error)}): check the "
            "name and the network, or download the folder elsewhere and give --from_dir"
        ) from error


def _import(args: Any) -> None:
    if bool(args.from_dir) == bool(args.from_hub):
        raise UserError("give one of --from_dir and --from_hub (see --help)")
    _check_free(Path(args.workdir), "--workdir", "the run")  # before a download
    run = import_folder(_download(args.from_hub) if args.from_hub else args.from_dir, args.workdir)
    model, tokenizer = run.config.model, run.tokenizer
    print(
        f"{count_params(run.params):,} parameters: {model.num_layers} layers, {model.num_heads} heads, d_model "
        f"{model.d_model}, context {model.context_length}, vocabulary {model.vocab_size:,}, "
        f"dropout {model.dropout_rate} in training"
    )
    if tokenizer.kind == "ids":
        print(
            "no tokenizer: prompts and texts are token ids between spaces; with vocab.json and merges.txt, text"
        )
    else:
        print(f"tokenizer: {tokenizer.kind}, {tokenizer.vocab_size:,} tokens")
    print(
        f"written to {run.workdir}: generate and evaluate take it; train another with --config.init_from={run.workdir}"
    )


def _export(args: Any) -> None:
    run = checkpoint.load(args.workdir, step=args.step)
    for note in export_run(run, args.to_dir):
        print(f"note: {note}")
    print(
        f"step {run.step} of {args.workdir} written to {args.to_dir}: from_pretrained({args.to_dir!r}) loads it"
    )


def main(argv: list[str]) -> None:
    """The command line: see --help."""
    parser = cli.Parser(prog="python -m jaxgpt.gpt2", description="GPT-2's weights in and out.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="import | export")
    importing = commands.add_parser(
        "import",
        help="a folder with GPT-2's files -> a run folder",
        description="Make a run folder of a GPT-2 folder.",
    )
    importing.add_argument("--from_dir", default="", help="config.json, model.safetensors (or shards with their "
                           "index), and for text vocab.json and merges.txt, or tokenizer.json")  # fmt: skip
    importing.add_argument("--from_hub", default="", help="a model's name on the Hugging Face hub, downloaded once: "
                           "openai-community/gpt2")  # fmt: skip
    importing.add_argument("--workdir", required=True, help="the run's folder, new or empty")
    importing.set_defaults(run=_import)
    exporting = commands.add_parser(
        "export",
        help="a run folder -> a folder that transformers loads",
        description="Write a run as a GPT-2 folder.",
    )
    exporting.add_argument("--workdir", required=True, help="the run's folder")
    exporting.add_argument("--to_dir", required=True, help="the folder to write, new or empty")
    exporting.add_argument(
        "--step", type=cli.step, default=None, help="a saved step or 'best'; default: the newest"
    )
    exporting.set_defaults(run=_export)
    args = parser.parse_args(argv)
    cli.set_up_process()
    args.run(args)


if __name__ == "__main__":
    cli.run(main)
