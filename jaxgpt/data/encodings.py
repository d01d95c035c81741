"""What a file is that is not UTF-8 text: another encoding, with the command that converts it, or no text at all.

An encoding is named only where the bytes speak for it. No conversion is advised for a file that is not text.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

# The first bytes of formats that are not text. Those of the first table are in no text.
_NEVER_TEXT = {
    b"\x1f\x8b": "compressed with gzip: decompress it with gunzip, or name it with .gz at the end",
    b"\xfd7zXZ\0": "compressed with xz: decompress it with unxz, or name it with .xz at the end",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: decompress it with unzstd, or name it with .zst at the end",
    b"PK\x03\x04": "a zip archive (as are .docx, .xlsx, .epub, .npz and .pt files): extract the text from it",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive: extract the text from it",
    b"Rar!\x1a\x07": "a RAR archive: extract the text from it",
    b"\x89PNG\r\n\x1a\n": "a PNG image: leave it out",
    b"\xff\xd8\xff": "a JPEG image: leave it out",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file: leave it out",
    b"\x93NUMPY": "a NumPy array: name it with .npy at the end if it has token ids",
    b"\x7fELF": "a program: leave it out",
    b"SQLite format 3\0": "an SQLite database: export the text from it",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an old Office document: save it as plain text",
}
_ALSO_IN_TEXT = {
    b"PAR1": "a Parquet file: name it with .parquet at the end",
    b"ARROW1": "an Arrow file: name it with .arrow at the end",
    b"BZh": "compressed with bzip2: decompress it with bunzip2",
    b"%PDF-": "a PDF document: extract the text from it, with pdftotext",
    b"GIF8": "a GIF image: leave it out",
    b"RIFF": "an audio, video or image file (RIFF): leave it out",
    b"ID3": "an MP3 file: leave it out",
    b"OggS": "an audio file (Ogg): leave it out",
    b"MZ": "a Windows program: leave it out",
}
_DECOMPRESS = {".gz": "gzip -dc", ".xz": "xz -dc", ".zst": "zstd -dc"}
_CONTROLS = bytes(b for b in range(32) if b not in b"\t\n\r\f\x1b") + b"\x7f"
MOST_CONTROLS = 0.02  # of the characters of a text

# Bytes that Windows-1252 has no character for.
_NOT_CP1252 = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")
# Its letters, quotation marks and dashes.
_USUAL_CP1252 = re.compile(rb"[\x80\x85\x91-\x97\xa0\xa1\xa3\xa7\xa9\xab\xb0\xbb\xbf\xc0-\xff]")


def not_text(head: bytes) -> str | None:
    """What a file that starts with these bytes is, and what to do, if it can't be text; else None."""
    return next((what for magic, what in _NEVER_TEXT.items() if head.startswith(magic)), None)


def has_many_controls(content: bytes | str) -> bool:
    """Whether more than MOST_CONTROLS of some text are NULs or other control characters."""
    if isinstance(content, str):
        count = len(content) - len(content.translate(dict.fromkeys(_CONTROLS)))
    else:
        count = len(content) - len(content.translate(None, _CONTROLS))
    return count > MOST_CONTROLS * len(content)


def describe(file: Path, head: bytes, sample: bytes, at_end: bool = False) -> str:
    """What a file seems to be, and what to do.

    head: the first bytes of its text. sample: bytes around the first that is not UTF-8, from an even position on.
    at_end: whether the file ends inside a character.
    """
    if what := not_text(head):
        return f"it is {what}"
    if what := next((what for magic, what in _ALSO_IN_TEXT.items() if head.startswith(magic)), None):
        return f"it is {what}"
    if head[257:262] == b"ustar":
        return "it is a tar archive: extract the text from it"
    encoding = _with_mark(head) or _wide(sample)
    if encoding is None and has_many_controls(sample):
        return "it is a binary file, not text: leave it out"
    if encoding is None and at_end:
        return "it ends inside a character, so it is not complete: get it again"
    if encoding is None and _mostly_utf8(sample):
        return "most of it is UTF-8: correct these bytes, or leave it out"
    encoding = encoding or _of_asia(sample) or _cp1252(sample)
    if encoding is None:
        return (
            f"its encoding is not known: convert it with `{_command(file, 'ENCODING')}`, with the name of its encoding, "
            "or leave it out"
        )
    return f"it looks like {encoding}: convert it with `{_command(file, encoding)}`, or leave it out"


def _command(file: Path, encoding: str) -> str:
    suffix = file.suffix.lower()
    name = file.stem if suffix in _DECOMPRESS else file.name
    stem, dot, end = name.rpartition(".")
    new = file.with_name(f"{stem}.utf8.{end}" if dot and stem else f"{name}.utf8")
    convert = f"iconv -f {encoding} -t UTF-8"
    source, target = _shell(file), shlex.quote(str(new))
    if suffix in _DECOMPRESS:
        return f"{_DECOMPRESS[suffix]} {source} | {convert} > {target}"
    return f"{convert} {source} > {target}"


def _shell(file: Path) -> str:
    text = str(file)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def _with_mark(head: bytes) -> str | None:
    marks = {
        b"\xff\xfe\0\0": "UTF-32",
        b"\0\0\xfe\xff": "UTF-32",
        b"\xff\xfe": "UTF-16",
        b"\xfe\xff": "UTF-16",
    }
    return next((name for mark, name in marks.items() if head.startswith(mark)), None)


def _wide(sample: bytes) -> str | None:
    """UTF-16 or UTF-32 without a mark: the high bytes of its characters are few different ones."""
    sample = sample[: len(sample) // 4 * 4]
    if len(sample) < 8:
        return None
    quarter = len(sample) // 4
    for name, high, plane in (("UTF-32LE", 3, 2), ("UTF-32BE", 0, 1)):
        zeros = sample[high::4].count(0) == quarter and sample[plane::4].count(0) > 0.9 * quarter
        if zeros and _is_text(sample.decode(name, "replace")):
            return name
    for name, high in (("UTF-16LE", 1), ("UTF-16BE", 0)):
        text = sample.decode(name, "replace")
        highs = sample[high::2]
        most = sum(sorted((highs.count(b) for b in set(highs)), reverse=True)[:3])
        lows = len(set(sample[1 - high :: 2]))
        if highs.count(0) and most > 0.95 * len(highs) and _is_text(text) and lows > len(set(highs)):
            return name
    return None


def _is_text(decoded: str) -> bool:
    return "\ufffd" not in decoded[:-1] and not has_many_controls(decoded)


def _mostly_utf8(sample: bytes) -> bool:
    text = sample.decode("utf-8", "replace")
    good = sum(c > "\x7f" and c != "\ufffd" for c in text)
    return good > 4 * text.count("\ufffd")


def _of_asia(sample: bytes) -> str | None:
    """Encodings of Japanese and Chinese that the most usual characters tell."""
    for name, codec in (("SHIFT_JIS", "cp932"), ("EUC-JP", "euc_jp"), ("GB18030", "gb18030")):
        text = [c for c in sample.decode(codec, "replace")[1:-1] if c > "\x7f"]
        if len(text) < 20 or text.count("\ufffd") > 0:
            continue
        if name == "GB18030":
            # The six most frequent characters make about a tenth of a Chinese text.
            if sum(c in "的一是不了在" for c in text) > 0.04 * len(text):
                return name
        elif sum("\u3041" <= c <= "\u30fe" for c in text) > 0.3 * len(text):
            return name
    return None


def _cp1252(sample: bytes) -> str | None:
    high = [b for b in sample if b > 0x7F]
    usual = len(_USUAL_CP1252.findall(sample))
    if _NOT_CP1252.search(sample) or usual < 0.8 * len(high) or len(high) > 0.3 * len(sample):
        return None
    return "WINDOWS-1252"
