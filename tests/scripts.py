"""Text in ten scripts."""

import random

# The first and the last letter of ranges of each script.
RANGES = {
    "Latin": ("az", "AZ", "\u00c0\u017f"),
    "Greek": ("\u0391\u03a1", "\u03b1\u03c9"),
    "Cyrillic": ("\u0410\u044f",),
    "Hebrew": ("\u05d0\u05ea",),
    "Arabic": ("\u0627\u063a", "\u0641\u064a"),
    "Devanagari": ("\u0905\u0939", "\u093e\u094d"),
    "Thai": ("\u0e01\u0e3a",),
    "Hangul": ("\uac00\uad00",),
    "Kana": ("\u3041\u3096", "\u30a1\u30fa"),
    "Han": ("\u4e00\u4fff",),
}
BETWEEN = [" "] * 20 + [
    ", ",
    ". ",
    "\n",
    "\n\n",
    "  ",
    "\t",
    "\r\n",
    "'",
    "\u2019",
    "\u3002",
    " 1415 ",
    " \U0001f642 ",
    "\u00a0",
]


def ten_scripts(length: int = 20_000) -> str:
    """As many characters: words, marks, numbers and white space of each script in turn."""
    draw = random.Random(0)
    letters = {
        name: [chr(code) for first, last in ranges for code in range(ord(first), ord(last) + 1)]
        for name, ranges in RANGES.items()
    }
    text = ""
    while len(text) < length:
        for own in letters.values():
            for _ in range(20):
                text += "".join(draw.choices(own, k=draw.randint(1, 9))) + draw.choice(BETWEEN)
    return text[:length]
