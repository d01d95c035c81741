"""Import folders of published models, in the format of the Hugging Face libraries, as runs; export runs as such folders.

    python -m jaxgpt.convert import --from_dir SmolLM2-135M --workdir runs/smollm2
    python -m jaxgpt.convert export --workdir runs/char --to_dir exported

The architectures are those of `families`. A folder has config.json, the weights (model.safetensors, or shards with their index) and, for text, the
tokenizer files (vocab.json and merges.txt, or tokenizer.json). An import writes a run folder with one checkpoint,
step 0; it works with generate, evaluate, jaxgpt.load and init_from. An export can be loaded with from_pretrained.
No code from a folder is executed, and pickles are refused.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxgpt import config
from jaxgpt.common.files import expand, new_folder, read_json, write_json
from jaxgpt.config import UserError, first_line
from jaxgpt.data import chat_templates
from jaxgpt.data.tokenizers import Tokenizer
from jaxgpt.model.gpt import GPT
from jaxgpt.model.lora import merge_lora
from jaxgpt.runs import checkpoint, records, tensor_files, tokenizer_files
from jaxgpt.runs.families import AUTO, FAMILIES, Family, for_export, with_padding
from jaxgpt.runs.load import Run, write_run
from jaxgpt.runs.tensor_files import Tensors

CONFIG = "config.json"
MAX_CONFIG_SIZE = 1 << 20  # bytes; GPT-2's config.json has 665
EXPORT = "jaxgpt_export.json"  # the provenance of an export


def is_published(folder: str | Path) -> bool:
    """Whether a folder is for this module's `load`: it has a config.json with model_type, and no checkpoints."""
    path = expand(folder)
    if (path / checkpoint.FOLDER).exists() or not (path / CONFIG).is_file():
        return False
    try:
        values = read_json(path / CONFIG, MAX_CONFIG_SIZE)
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and "model_type" in values


def load(folder: str | Path) -> Run:
    """Open the folder of a published model as a run at step 0.

    Without tokenizer files the tokenizer is of kind `ids`. Raises UserError if a file is damaged, if files do not
    belong together, or for another architecture.
    """
    return _load(expand(folder), AUTO).run


class Loaded(NamedTuple):
    """A published model as a run, and what an import records."""

    run: Run
    family: Family
    files: Tensors
    notes: list[str]  # what a user must know
    template: str | None  # the chat template


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = read_json(path, MAX_CONFIG_SIZE)
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({error.strerror}): give a folder with a model's config.json"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): give a complete config.json") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a JSON object: give a model's config.json")
    return values


def _family(path: Path, kind: Any, name: str) -> Family:
    """The family of a model_type, which must be that of the name unless it is auto."""
    possible = FAMILIES if name == AUTO else {name: FAMILIES[name]}
    if not isinstance(kind, str) or kind not in possible:
        raise UserError(
            f"{path} has model_type={kind!r}: only {', '.join(map(repr, possible))} can be imported"
            + ("" if name == AUTO else " here (python -m jaxgpt.convert reads more)")
        )
    return FAMILIES[kind]


def _load(folder: Path, name: str) -> Loaded:
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: give one with {CONFIG} and {tensor_files.FILE}")
    values = _read_config(folder / CONFIG)
    family = _family(folder / CONFIG, values.get("model_type"), name)
    files = tensor_files.open_tensors(folder)

    def read_tokenizer(num_rows: int) -> tuple[Tokenizer, list[str]]:
        return tokenizer_files.read(folder, num_rows)

    template = chat_templates.read(folder)
    return assemble(family, values, folder / CONFIG, files, read_tokenizer, template=template)


def assemble(
    family: Family,
    values: dict[str, Any],
    stated: Path,
    files: Tensors,
    read_tokenizer: Callable[[int], tuple[Tokenizer, list[str]]],
    instead: str = tokenizer_files.WITHOUT,
    template: str | None = None,
) -> Loaded:
    """A model of a family from its config.json, which `stated` has, its tensors and its tokenizer.

    `read_tokenizer` takes the number of rows of the table, and `instead` says how to import without a tokenizer.
    """
    cfg, assumed = family.read_config(values, str(stated))
    family.check_tensors(files, cfg, assumed)
    rows = cfg.num_tokens
    tokenizer, notes = read_tokenizer(rows)
    if tokenizer.vocab_size > rows:
        what = f"the tokenizer has {tokenizer.vocab_size:,} tokens, the model {rows:,}"
        raise tokenizer_files.unfit(files.source, what, instead)
    try:
        cfg = with_padding(cfg, tokenizer.vocab_size)
    except UserError as error:
        raise tokenizer_files.unfit(files.source, str(error), instead) from error
    if cfg.num_tokens < rows:
        notes.append(
            f"the tokenizer has {cfg.num_tokens:,} tokens, the model {rows:,} rows: the last {rows - cfg.num_tokens:,} are padding, "
            "which is never generated and has no probability"
        )
    params = family.read_params(files, cfg)
    # A config needs the size of a vocabulary other than GPT-2's.
    vocab_size = None if tokenizer.kind == "gpt2" else tokenizer.vocab_size
    kind: Any = tokenizer.kind  # one of the choices of data.tokenizer
    data = config.DataConfig(tokenizer=kind, vocab_size=vocab_size)
    run = Run(config.Config(model=cfg, data=data), GPT(cfg), params, tokenizer, 0, files.source)
    return Loaded(run, family, files, notes, template)


def import_folder(
    folder: str | Path,
    workdir: str | Path,
    tell: Callable[[str], None] = lambda note: None,
    family: str = AUTO,
) -> Run:
    """Write the folder of a published model as a run folder with one checkpoint, step 0, and return the run.

    `family` is the name of the only family that is read; auto: any. `tell` gets a line for each thing that a user must know: rows that pad the vocabulary, tokens that are left out.

    Writes the run folder completely or not at all. Raises UserError if `workdir` is not empty, and as `load`.
    """
    folder, workdir = expand(folder), expand(workdir)
    check_empty(workdir, "--workdir", "the run")
    return write_import(_load(folder, family), workdir, tell)


def write_import(loaded: Loaded, workdir: Path, tell: Callable[[str], None]) -> Run:
    """Write a model as a run folder, completely or not at all, and return the run. See `import_folder`."""
    run = loaded.run
    for note in loaded.notes:
        tell(note)
    # The run's own tokenizer, to encode other texts for it.
    data = dataclasses.replace(run.config.data, tokenizer_path=str(workdir / "tokenizer.json"))
    cfg = config.from_config_dict(config.to_json(dataclasses.replace(run.config, data=data)))
    imported = {
        "name": loaded.files.source.resolve().name,
        "format": loaded.family.model_type,
        "sha256": loaded.files.sha256(),
    }
    more = {} if loaded.template is None else {chat_templates.FILE: loaded.template.encode()}
    write_run(workdir, cfg, run.params, run.tokenizer, 0, {"imported": imported}, more)
    return dataclasses.replace(run, config=cfg, workdir=workdir)


def export_run(run: Run, folder: str | Path, family: str = AUTO) -> list[str]:
    """Write a run as a folder for transformers. Returns notes on what the folder expresses differently.

    `family` is a name in FAMILIES; auto: the first that expresses the model exactly. Writes the folder completely or not
    at all. Raises UserError if it is not empty, or if the family can't express the model; the error lists every obstacle.
    """
    folder = expand(folder)
    cfg, params = merge_lora(run.config.model, run.params)
    to = for_export(cfg, family)
    values = to.config_json(cfg, run.tokenizer.eos_id, run.tokenizer.bos_id)
    check_empty(folder, "--to_dir", "the export")
    records.make_folder(folder.parent)
    notes = [*to.notes(cfg), *tokenizer_files.notes(run.tokenizer)]
    with new_folder(folder) as temporary:
        tensors = to.write_params(cfg, params)
        # transformers requires this metadata.
        tensor_files.write_tensors(temporary / tensor_files.FILE, tensors, {"format": "pt"})
        for name, content in tokenizer_files.files_of(run.tokenizer, cfg.context_length).items():
            (temporary / name).write_bytes(content)
        if (template := chat_templates.read(run.workdir)) is not None:
            (temporary / chat_templates.FILE).write_text(template, encoding="utf-8")
        provenance = {
            "run": run.workdir.resolve().name,
            "step": run.step,
            "family": to.model_type,
            "sha256": tensor_files.open_tensors(temporary).sha256(),
            "notes": notes,
        }
        write_json(temporary / EXPORT, provenance)
        write_json(temporary / CONFIG, values)
    return notes


def check_empty(folder: Path, flag: str, what: str) -> None:
    """Raise UserError if a folder to write to is not empty."""
    if folder.is_dir() and any(folder.iterdir()):
        held = "a run" if (folder / checkpoint.FOLDER).exists() else "files"
        raise UserError(f"{flag}={folder} already holds {held}: give a new or empty folder for {what}")


def download(name: str) -> Path:
    """The folder of a model on the Hugging Face hub, downloaded or from the cache. Raises UserError."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError('--from_hub needs huggingface-hub: pip install "jaxgpt[hub]", or give --from_dir')
    from huggingface_hub import snapshot_download

    wanted = [
        CONFIG,
        "model*.safetensors",
        tensor_files.INDEX,
        *tokenizer_files.NAMES,
        *(chat_templates.FILE, chat_templates.SETTINGS),
    ]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:
        # There are many kinds (name, network, token, version); the first line states the reason.
        raise UserError(
            f"--from_hub={name} can't be downloaded ({type(error).__name__}: {first_line(error)}): check the "
            "name and the network, or download the folder elsewhere and give --from_dir"
        ) from error
