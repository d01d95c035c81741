"""A payload's numbers as HTML tables, which also work without JavaScript: one row per token, head or step."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from jaxgpt.common.say import count

UNITS = ("loss",)  # measures whose name does not say their unit
SIGNS = {" ": "␣", "\n": "↵", "\t": "⇥"}
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}


def visible(text: str) -> str:
    """A text with every character visible: a space is ␣, a newline ↵, other invisible characters their code, ⟨U+202E⟩.

    Invisible are control and direction characters, lone surrogates and separators.
    """
    if not text:
        return "⟨empty⟩"
    shown = "".join(
        SIGNS.get(c, f"⟨U+{ord(c):04X}⟩") if unicodedata.category(c) in _UNSEEN else c for c in text
    )
    # A combining accent needs a base character.
    return f"◌{shown}" if unicodedata.category(shown[0]).startswith("M") else shown


def visible_text(text: str) -> str:
    """Like `visible`, but spaces stay spaces: for sentences."""
    return visible(text).replace(SIGNS[" "], " ")


class Words:
    """A payload's tokens as readable text."""

    def __init__(self, payload: dict[str, Any]) -> None:
        self._vocabulary = payload["vocabulary"]
        self._probe = payload["probe"]["ids"]

    def __call__(self, token_id: int) -> str:
        """The text of a token; bytes that are not valid UTF-8 are shown as ⟨e2 80⟩."""
        entry = self._vocabulary[str(token_id)]
        return f"⟨{entry['hex']}⟩" if entry.get("hex") else visible(entry["text"])

    def at(self, t: int) -> str:
        """The text of the token at a position of the probe."""
        return self(self._probe[t])


def number(x: float | int | None) -> str:
    """A number with three decimals; a dash for None."""
    if x is None:
        return "–"
    if isinstance(x, int) or abs(x) >= 1000:
        text = f"{x:,.0f}"
    elif x and abs(x) < 0.5e-3:
        text = f"{x:.1e}"
    else:
        text = f"{x:.3f}"
    return text.replace("-", "−")


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in an open <details>, which the script folds."""
    summary = f"<summary>Table: {escape(caption)}</summary>"
    return f"<details open>{summary}{grid(caption, columns, rows)}</details>"


def grid(caption: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table. Cells are text or numbers; the first cell of a row is its header.

    A column has one style: where one number has decimals, all have.
    """
    rows = [list(row) for row in rows]
    numeric: set[int] = set()
    exact = {c for row in rows for c, cell in enumerate(row) if isinstance(cell, float)}
    lines = []
    for row in rows:
        cells = []
        for c, cell in enumerate(row):
            if not isinstance(cell, str):
                numeric.add(c)
                cell = number(float(cell) if c in exact and cell is not None else cell)
            kind = ' class="r"' if c in numeric else ""
            cells.append(
                f'<th scope="row"{kind}>{escape(cell)}</th>' if c == 0 else f"<td{kind}>{escape(cell)}</td>"
            )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    kinds = [' class="r"' if c in numeric else "" for c in range(len(columns))]
    head = "".join(
        f'<th scope="col"{kind}>{escape(name)}</th>' for name, kind in zip(columns, kinds, strict=True)
    )
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(caption)}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


# --- one function per section -------------------------------------------------------------------------------------


def summary(payload: dict[str, Any]) -> str:
    """The facts of the run."""
    figures = payload["summary"]
    model = figures["model"]
    facts = {
        "text": figures["corpus"],
        "tokenizer": f"{figures['tokenizer']}, {count(figures['vocab_size'], 'token')}",
        "model": f"{count(model['num_layers'], 'layer')}, {count(model['num_heads'], 'head')}, d_model {model['d_model']:,}",
        "context": count(model["context_length"], "token"),
        "parameters": number(figures["num_params"]),
        "trained on": figures["train_tokens"] and count(figures["train_tokens"], "token"),
        # An imported model was not trained here.
        "step": figures["train_tokens"] and f"{figures['step']:,} of {figures['num_steps']:,}",
        "seed": number(figures["seed"]),
        "commit": (figures["commit"] or "")[:12],
    }
    shown = {name: escape(visible_text(str(value))) for name, value in facts.items() if value}
    parts = [f"<div><dt>{name}</dt><dd>{text}</dd></div>" for name, text in shown.items()]
    return f'<dl class="facts">{"".join(parts)}</dl>'


def measures(payload: dict[str, Any]) -> str:
    """The model's loss in every unit, next to the bigram, unigram and uniform baselines; empty without a validation text."""
    if all(row["model"] is None for row in payload["summary"]["measures"]):
        return ""
    rows = [
        [f"{row['name']} ({row['unit']})" if row["name"] in UNITS else row["name"]]
        + [row.get(who) for who in ("model", "bigram", "unigram", "uniform")]
        for row in payload["summary"]["measures"]
    ]
    columns = ["on the validation text", "this model", "bigram", "unigram", "uniform"]
    return f'<div id="measures">{grid("prediction of the validation text", columns, rows)}</div>'


def validation_texts(payload: dict[str, Any]) -> str:
    """The last losses on other validation texts; empty where the run has none."""
    rows = [
        [
            visible_text(row["name"]),
            *(row[name] for name in ("loss", "standard_error", "bits_per_byte", "tokens", "step")),
        ]
        for row in payload["summary"]["texts"]
    ]
    columns = ["other validation texts", "loss, nats", "standard error", "bits per byte", "tokens", "step"]
    return grid("prediction of other validation texts", columns, rows) if rows else ""


def probe(payload: dict[str, Any]) -> str:
    """The probe, one row per token."""
    words, figures = Words(payload), payload["tokens"]
    rows = []
    for t in range(len(payload["probe"]["ids"])):
        known = t < len(figures["nats"])
        names = ("nats", "bits", "probability", "rank", "entropy", "bigram_nats", "difference")
        values = [figures[name][t] if known and figures[name] else None for name in names]
        rows.append([number(t), words.at(t), words.at(t + 1) if known else "(end of text)", *values])
    columns = [
        "at", "token", "next token", "loss, nats", "loss, bits", "probability", "rank", "entropy, nats", "bigram, nats",
        "loss minus bigram",
    ]  # fmt: skip
    return table("every token of the probe text", columns, rows)


def next_tokens(payload: dict[str, Any], count: int = 3) -> str:
    """The most likely next tokens at every position, at temperature 1."""
    words, figures = Words(payload), payload["next"]
    one = figures["temperatures"].index(1.0)
    rows = []
    for t, (ids, logits) in enumerate(zip(figures["ids"], figures["logits"], strict=True)):
        likely = [
            f"{words(i)} {math.exp(x - figures['logsumexp'][t][one]):.3f}"
            for i, x in list(zip(ids, logits, strict=True))[:count]
        ]
        rows.append([number(t), words.at(t), *likely])
    return table(
        "the most likely next tokens", ["at", "token", *(f"guess {k + 1}" for k in range(count))], rows
    )


def attention(payload: dict[str, Any]) -> str:
    """The statistics of every head."""
    figures = payload["attention"]
    jobs = {(one["layer"], one["head"]): one["kind"].replace("_", " ") for one in figures["named"]}
    names = [name for name in figures["statistics"] if name not in figures["patterns"]]
    names += dict.fromkeys(one["kind"] for one in figures["named"] if one["kind"] in figures["patterns"])
    ablation = figures.get("ablation")
    rows = []
    for i in range(figures["layers"]):
        for h in range(figures["heads"]):
            values = []
            for name in names:
                values += [figures["statistics"][name][who][i][h] for who in ("value", "untrained")]
            rows.append(
                [
                    f"{i}.{h}",
                    jobs.get((i, h), ""),
                    *values,
                    *([ablation["mean"]["difference"][i][h]] if ablation else []),
                ]
            )
    columns = ["layer.head", "job"]
    for name in names:
        columns += [name.replace("_", " "), "untrained"]
    return table("every head", [*columns, *(["loss increase without it"] if ablation else [])], rows)


def flow(payload: dict[str, Any]) -> str:
    """The mean length of what each part adds to the stream, and the mean probability of the true token after each block."""
    figures, lens_rows = payload["ledger"], payload["lens"]
    rows: list[list[Any]] = []
    after = {f"{i - 1}.mlp" if i else "token": ps for i, ps in enumerate(lens_rows["true_p"])}
    for name, norms in zip(figures["entries"], figures["norms"], strict=True):
        ps = after.get(name)
        rows.append([name, sum(norms) / len(norms), None if ps is None else sum(ps) / len(ps)])
    return table(
        "means over the probe text, part by part", ["part (layer.head)", "length", "p(true) after it"], rows
    )


def ledger(payload: dict[str, Any]) -> str:
    """The mean norm of each ledger entry over the probe, and its mean contribution to the true token's logit."""
    figures = payload["ledger"]
    rows = []
    for n, name in enumerate(figures["contribution_entries"]):
        norms = figures["norms"][n] if n < len(figures["norms"]) else None
        values = figures["contributions"][n]
        rows.append([name, norms and sum(norms) / len(norms), sum(values) / len(values)])
    columns = ["written by (layer.head)", "norm", "contribution to the true token's logit"]
    return table("means over the probe text", columns, rows)


def lens(payload: dict[str, Any]) -> str:
    """p(true token) after every block."""
    words, figures = Words(payload), payload["lens"]
    rows = [
        [number(t), words.at(t), words.at(t + 1), *(row[t] for row in figures["true_p"])]
        for t in range(len(figures["true_p"][0]))
    ]
    columns = ["at", "token", "next token", *figures["rows"]]
    return table("p(true next token) after every block", columns, rows)


def embeddings(payload: dict[str, Any]) -> str:
    """The nearest tokens of each token, at the start and the end."""
    words = Words(payload)

    def near(pairs: list) -> str:
        return ", ".join(f"{words(i)} {score:.2f}" for i, score in pairs[:5])

    rows = [
        [words(one["id"]), near(one["start"]["raw"]), near(one["end"]["raw"])]
        for one in payload["embeddings"]["neighbours"]
    ]
    return table("the nearest tokens by cosine, at the start and the end", ["token", "start", "end"], rows)


def contextual(payload: dict[str, Any]) -> str:
    """The cosine of one token's vectors in two texts, by layer."""
    figures = payload["contextual"]
    rows = zip(figures["rows"], figures["cosine"], figures["others"], strict=True)
    caption = f"cosine of ‘{Words(payload)(figures['id'])}’ in two texts, by layer"
    return table(caption, ["the vector after", "the same token", "two different tokens"], rows)


def positions(payload: dict[str, Any]) -> str:
    """The cosine of each shown position with the next, or a sentence if the model has no position table."""
    figures = payload["positions"]
    if not figures["end"]:
        kind = f"This model has no position embeddings to compare (model.position={escape(figures['kind'])})."
        return f'<p class="empty">{kind}</p>'
    rows = []
    for a in range(1, len(figures["shown"])):
        at = a * (a + 1) // 2 + a - 1
        cosines = [figures[when] and figures[when][at] for when in ("start", "end")]
        rows.append([f"{figures['shown'][a - 1]} and {figures['shown'][a]}", *cosines])
    return table("cosine of each position with the next one shown", ["positions", "start", "end"], rows)


def neurons(payload: dict[str, Any]) -> str:
    """Per layer: the number of neurons, their mean share of active tokens, and the number of dead ones."""
    names = ("width", "share", "dead")
    rows = [[number(one["layer"]), *(one[name] for name in names)] for one in payload["neurons"]["layers"]]
    return table("neurons by layer", ["layer", "neurons", "mean share of tokens above 0", "dead"], rows)


def health(payload: dict[str, Any]) -> str:
    """Every statistic at the first and the last measured step."""
    figures = payload["health"]
    rows = [
        [f"{name or 'logits'}, {kind.replace('_', ' ')}", values[0], values[-1]]
        for kind, of in figures["series"].items()
        for name, values in of.items()
    ]
    columns = ["statistic", f"step {figures['steps'][0]:,}", f"step {figures['steps'][-1]:,}"]
    return table("statistics at the first and the last step", columns, rows)


def compare(payload: dict[str, Any]) -> str:
    """Both runs' losses, heads and embeddings, and the differences between their configs."""
    other = payload["compare"]
    columns = ["figure", payload["summary"]["title"], other["title"]]
    theirs = {row["name"]: row for row in other["summary"]["measures"]}
    rows: list[list[Any]] = [["parameters", payload["summary"]["num_params"], other["summary"]["num_params"]]]
    for row in payload["summary"]["measures"]:
        rows.append(
            [f"{row['name']}, validation text", row["model"], theirs.get(row["name"], {}).get("model")]
        )
    means = [one["tokens"]["mean"]["nats"] for one in (payload, other)]
    rows.append(["loss, probe text", *means])
    for name, statistic in payload["attention"]["statistics"].items():
        both = [statistic["value"], other["attention"]["statistics"][name]["value"]]
        most = [max((x for row in one for x in row if x is not None), default=None) for one in both]
        rows.append([f"largest {name.replace('_', ' ')} of a head", *most])
    found = {one["name"]: one["end"]["auc"] for one in other["embeddings"]["pairs"]}
    for one in payload["embeddings"]["pairs"]:
        rows.append([f"{one['name']}, AUC", one["end"]["auc"], found.get(one["name"])])
    differences = "".join(f"<li><code>{escape(visible_text(line))}</code></li>" for line in other["config"])
    configs = f"<ul>{differences}</ul>" if differences else '<p class="empty">The configs are the same.</p>'
    return grid("both runs", columns, rows) + f"<h3>Differences between the configs</h3>{configs}"


def methods(payload: dict[str, Any]) -> str:
    """The formula, function and source of every number."""
    rows = [[one[name] for name in ("name", "formula", "function", "source")] for one in payload["methods"]]
    return table("formula and function of every number", ["number", "formula", "function", "source"], rows)
