"""Documents: text files, JSON lines, Parquet and Arrow, each also compressed, as one stream of pieces of text.

A stream gives strings, and None at the end of each document: see `text_pieces.Piece`. A document without text is left
out. Files are read in the order of their names, and the same documents give the same stream in every format.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import glob
import gzip
import json
import lzma
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from jaxgpt.common.files import expand
from jaxgpt.config import DataConfig, UserError
from jaxgpt.config.errors import first_line
from jaxgpt.data import corpora, shards, text_files
from jaxgpt.data.position import Position
from jaxgpt.data.text_pieces import PIECE_LENGTH, Piece, check_text

KINDS = {".jsonl": "json lines", ".ndjson": "json lines", ".parquet": "parquet", ".arrow": "arrow"}
COMPRESSED = (".gz", ".zst", ".xz")
CONVERSATION = ("messages", "prompt", "completion")  # the fields of a record that is one
INSTALL = 'pip install "jaxgpt[data]"'


@dataclass(frozen=True)
class Files:
    """The files that a path names, all of one kind, in the order in which they are read."""

    files: tuple[Path, ...]
    kind: str  # "text", "json lines", "parquet", "arrow"
    many: bool  # a folder or a pattern, not a single file


def find(path: str, given: str) -> Files:
    """The files of a path: a file, a folder (at any depth) or a pattern such as `shards/*.jsonl.gz`. Raises UserError."""
    place = expand(path)
    if (place / "state.json").is_file() and list(place.glob("*.arrow")):
        return Files(tuple(_saved_dataset(place)), "arrow", many=True)
    if (place / "dataset_dict.json").is_file():
        splits = sorted(p.name for p in place.iterdir() if p.is_dir())
        raise UserError(
            f"{given}={path!r} holds several data sets: give one of {', '.join(map(repr, splits))} in it"
        )
    if not place.exists() and glob.has_magic(path):
        files = sorted(text_files.regular_files(glob.glob(str(place), recursive=True)))
        if not files:
            raise UserError(f"{given}={path!r}: no file has such a name")
        many = True
    else:
        files, many = text_files.text_files(place, f"{given}={path!r}"), place.is_dir()
    kinds: dict[str, Path] = {}
    for file in files:
        kinds.setdefault(kind_of(file), file)
    if len(kinds) > 1:
        (one, first), (two, second), *_ = kinds.items()
        raise UserError(
            f"{given}={path!r} has files of two kinds, {first.name} ({one}) and {second.name} ({two}): give a pattern for "
            f"one of them, such as {str(place / ('*' + ''.join(second.suffixes)))!r}"
        )
    return Files(tuple(files), next(iter(kinds)), many)


def kind_of(file: Path) -> str:
    """The kind of a file by its name: text unless the name says otherwise."""
    suffixes = [s.lower() for s in file.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return KINDS.get(suffixes[-1] if suffixes else "", "text")


def _saved_dataset(folder: Path) -> list[Path]:
    """The files of a folder that datasets.save_to_disk wrote."""
    try:
        state = json.loads((folder / "state.json").read_bytes())
        names = [str(entry["filename"]) for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / 'state.json'} is not that of a saved data set ({first_line(error)})"
        ) from error
    files = [folder / Path(name).name for name in names]
    if missing := [file for file in files if not file.is_file()]:
        raise UserError(f"{missing[0]} is missing: {folder / 'state.json'} names it")
    return files


Mode = Literal["auto", "whole", "file", "line", "blank_line"]


def mode(cfg: DataConfig) -> Mode:
    """How a text file is cut: `data.documents`, or for "auto" one file is one text and each of several a document."""
    if cfg.documents != "auto" or cfg.mixture:  # each source of a mixture by its own path
        return cfg.documents
    if not cfg.path or shards.find(cfg.path):
        return "whole"
    return "file" if find(cfg.path, "data.path").many else "whole"


def open_documents(path: str, cfg: DataConfig, given: str) -> corpora.Corpus:
    """The text of a path, with its documents where it has some. Raises UserError."""
    found, how = find(path, given), str(mode(dataclasses.replace(cfg, path=path)))
    if cfg.template and found.kind == "text":
        raise UserError(
            f"{given}={path!r} has plain text, but data.template={cfg.template!r} is for conversations: give .jsonl, .parquet or "
            "a saved data set, or set data.template=''"
        )
    position = Position(found.files)
    if cfg.template:
        from jaxgpt.data import conversations

        template = conversations.of_data(cfg)
        how = f"{found.kind} {template.identity}"
        stream: Callable[[], Iterator[Piece]] = lambda: conversations.pieces(  # noqa: E731
            records(found, position), template
        )
    else:
        if found.kind != "text":
            how = found.kind  # every record is a document
        stream = functools.partial(read, found, how, cfg.text_field, cfg.control_characters, position)
        how = f"{how} {cfg.text_field}"
    return corpora.Corpus(
        path,
        lambda: corpora.with_text(stream(), f"{given}={path!r}"),
        found.files,
        has_documents=not how.startswith("whole "),
        how=f"{how} {Path(__file__).stat().st_mtime_ns}",
        part_read=position.part,
    )


def read(
    found: Files, how: str, text_field: str, control_characters: bool, position: Position
) -> Iterator[Piece]:
    """The stream of documents of some files; `how` text files are cut is one of data.documents."""
    for index, file in enumerate(found.files):
        position.enter(index)
        text = functools.partial(_text, file, position, control_characters)
        if found.kind == "parquet":
            documents: Iterable[str] = _parquet(file, text_field, position)
        elif found.kind == "arrow":
            documents = _arrow(file, text_field, position)
        elif found.kind == "json lines":
            documents = _json_lines(file, text_field, position)
        elif how == "line":
            documents = (line.rstrip("\r\n") for line in lines(text()))
        elif how == "blank_line":
            documents = _paragraphs(text())
        else:
            empty = True
            for piece in text():
                empty = False
                yield piece
            if how == "file" and not empty:
                yield None
            continue
        for document in documents:
            for start in range(0, len(document), PIECE_LENGTH):
                yield document[start : start + PIECE_LENGTH]
            if document:
                yield None


# --- text -----------------------------------------------------------------------------------------------


def _text(file: Path, position: Position, control_characters: bool = False) -> Iterator[str]:
    with opened(file, position) as stream:
        yield from corpora.decoded(stream, file, control_characters)


@contextlib.contextmanager
def opened(file: Path, position: Position) -> Iterator[IO[bytes]]:
    """A file as a stream of bytes, decompressed by its suffix. Errors while it is read name it."""
    try:
        suffix = file.suffix.lower()
        with contextlib.ExitStack() as stack:
            raw = stack.enter_context(open(file, "rb"))
            position.within(raw.tell)
            stream: Any = raw
            if suffix == ".gz":
                stream = stack.enter_context(gzip.GzipFile(fileobj=raw))
            elif suffix == ".xz":
                stream = stack.enter_context(lzma.LZMAFile(raw))
            elif suffix == ".zst":
                stream = stack.enter_context(_ZstdFile(raw))
            yield stream
    except EOFError as error:
        raise UserError(f"{file} ends too early: it is not complete, get it again") from error
    except (gzip.BadGzipFile, lzma.LZMAError, ZstdDamage) as error:
        raise UserError(
            f"{file} is not a {suffix} file that can be read ({first_line(error)}): get it again"
        ) from error
    except OSError as error:
        text_files.raise_unreadable(error)


class ZstdDamage(Exception):
    """The content of a .zst file is damaged or cut."""


class _ZstdFile:
    """The content of a .zst file. Raises EOFError where it ends within a frame, which zstandard's own reader does not."""

    def __init__(self, raw: IO[bytes]) -> None:
        try:
            import zstandard
        except ImportError:
            raise UserError(f"{raw.name} is compressed with zstd, which needs zstandard: {INSTALL}") from None
        self._raw, self._new = raw, zstandard.ZstdDecompressor().decompressobj
        self._frame: Any = None
        self._error = zstandard.ZstdError
        self._held = b""  # decompressed and not yet read

    def __enter__(self) -> _ZstdFile:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`; fewer only at the end."""
        parts, length = [self._held], len(self._held)
        while length < size:
            chunk = self._raw.read(1 << 17)
            if not chunk:
                if self._frame is not None:
                    raise EOFError
                break
            while chunk:
                self._frame = self._frame or self._new()
                try:
                    part = self._frame.decompress(chunk)
                except self._error as error:
                    raise ZstdDamage(str(error)) from error
                chunk = self._frame.unused_data
                self._frame = None if self._frame.eof else self._frame
                parts.append(part)
                length += len(part)
        content = b"".join(parts)
        self._held = content[size:]
        return content[:size]


def lines(pieces: Iterable[str]) -> Iterator[str]:
    """The lines of a text, each with its newline. Only a newline ends a line."""
    held: list[str] = []
    for piece in pieces:
        first, *others = piece.split("\n")
        held.append(first)
        for other in others:
            yield "".join(held) + "\n"
            held = [other]
    if rest := "".join(held):
        yield rest


def _paragraphs(pieces: Iterable[str]) -> Iterator[str]:
    """The parts of a text between blank lines, each without the newline at its end."""
    held: list[str] = []
    for line in lines(pieces):
        if line.strip():
            held.append(line)
        elif held:
            yield "".join(held).rstrip("\r\n")
            held = []
    if held:
        yield "".join(held).rstrip("\r\n")


# --- records --------------------------------------------------------------------------------------------


def records(found: Files, position: Position) -> Iterator[tuple[str, Any]]:
    """The records of files, each with its place for errors; of columns only those that conversations have."""
    for index, file in enumerate(found.files):
        position.enter(index)
        if found.kind == "json lines":
            yield from _json_records(file, position)
            continue
        batches = _parquet_batches if found.kind == "parquet" else _arrow_batches
        number = 0
        for batch in batches(file, CONVERSATION, position):
            for record in batch.to_pylist():
                number += 1
                yield f"{file}, row {number:,}", record


def _json_lines(file: Path, text_field: str, position: Position) -> Iterator[str]:
    for where, record in _json_records(file, position):
        yield field_of(record, text_field, where)


def _json_records(file: Path, position: Position) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(lines(_text(file, position)), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number:,}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not JSON ({first_line(error)}): fix it or leave it out") from error
        yield where, record


def field_of(record: Any, text_field: str, where: str) -> str:
    """The text of a record, by a name with dots for nested fields. Raises UserError that names the fields there are."""
    value: Any = record
    done: list[str] = []
    for name in text_field.split("."):
        if value is None and done:  # a nested field of a record that is null
            return ""
        if not isinstance(value, dict) or name not in value:
            inside = f" in {'.'.join(done)}" if done else ""
            there = (
                f"it has {', '.join(map(str, value)) or 'none'}"
                if isinstance(value, dict)
                else "it is no object"
            )
            chat = isinstance(record, dict) and not done and {"messages", "completion"} & record.keys()
            instead = "set data.template for conversations" if chat else "give its name as data.text_field"
            raise UserError(f"{where} has no field {name!r}{inside} ({there}): {instead}")
        value = value[name]
        done.append(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(
            f"{where}: the field {text_field!r} is of type {type(value).__name__}, not text: give another as data.text_field"
        )
    check_text(value, where=where)  # JSON can write half a character
    return value


def _pyarrow(file: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{file} needs pyarrow: {INSTALL}") from None
    return pyarrow


def _parquet(file: Path, text_field: str, position: Position) -> Iterator[str]:
    for batch in _parquet_batches(file, [text_field.split(".")[0]], position):
        yield from _column(file, batch, text_field)


def _arrow(file: Path, text_field: str, position: Position) -> Iterator[str]:
    for batch in _arrow_batches(file, [text_field.split(".")[0]], position):
        yield from _column(file, batch, text_field)


def _parquet_batches(file: Path, names: Sequence[str], position: Position) -> Iterator[Any]:
    """The columns of these names, as far as there are some, one row group at a time."""
    arrow = _pyarrow(file)
    try:
        with arrow.parquet.ParquetFile(file) as table:
            columns = _columns(file, table.schema_arrow, names)
            group_size = file.stat().st_size / max(table.num_row_groups, 1)
            for group in range(table.num_row_groups):
                position.within(functools.partial(float, group * group_size))
                yield from table.iter_batches(row_groups=[group], columns=columns)
    except (arrow.ArrowInvalid, arrow.ArrowIOError, arrow.ArrowException) as error:
        raise UserError(
            f"{file} is not a Parquet file that can be read ({first_line(error)}): get it again"
        ) from error
    except OSError as error:
        text_files.raise_unreadable(error)


def _arrow_batches(file: Path, names: Sequence[str], position: Position) -> Iterator[Any]:
    """The same of the stream format that datasets.save_to_disk writes."""
    arrow = _pyarrow(file)
    try:
        with open(file, "rb") as raw, arrow.ipc.open_stream(raw) as stream:
            position.within(raw.tell)
            columns = _columns(file, stream.schema, names)
            for batch in stream:
                yield batch.select(columns)
    except (arrow.ArrowInvalid, arrow.ArrowException) as error:
        raise UserError(
            f"{file} is not an Arrow stream that can be read ({first_line(error)}): get it again"
        ) from error
    except OSError as error:
        text_files.raise_unreadable(error)


def _columns(file: Path, schema: Any, names: Sequence[str]) -> list[str]:
    if found := [name for name in names if name in schema.names]:
        return found
    there = f"it has {', '.join(schema.names)}"
    if len(names) > 1:
        raise UserError(
            f"{file} has no column of conversations ({there}): give messages, or prompt and completion"
        )
    raise UserError(f"{file} has no column {names[0]!r} ({there}): give its name as data.text_field")


def _column(file: Path, batch: Any, text_field: str) -> Iterator[str]:
    first = text_field.split(".")[0]
    for value in batch.column(first):
        yield field_of({first: value.as_py()}, text_field, str(file))
