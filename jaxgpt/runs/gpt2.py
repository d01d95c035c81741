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

from jaxgpt import config
from jaxgpt.common.files import new_folder, read_json, write_json
from jaxgpt.config import UserError, first_line
from jaxgpt.model.gpt import GPT
from jaxgpt.model.lora import merge_lora
from jaxgpt.runs import checkpoint, gpt2_layout, records, tensor_files, tokenizer_files
from jaxgpt.runs.load import Run, write_run
from jaxgpt.runs.tensor_files import TensorFiles

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
    data = config.DataConfig(tokenizer=tokenizer.kind, vocab_size=vocab_size)
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
    write_run(workdir, cfg, run.params, run.tokenizer, 0, {"imported": imported})
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
        write_json(temporary / EXPORT, provenance)
        write_json(temporary / CONFIG, values)
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
