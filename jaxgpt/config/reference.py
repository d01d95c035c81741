"""All fields as a text, for `--help_config`."""

from __future__ import annotations

import textwrap

from jaxgpt.config.conversion import GROUPS, field_named
from jaxgpt.config.fields import FIELDS
from jaxgpt.config.metadata import Field

WIDTH = 110
LEGEND = (
    "Each field with its default. [resume]: it may change when a run is resumed. [sweep]: runs that differ in it can be "
    "trained in one program. Any field can be set on the command line: --config.model.d_model=256"
)


def as_text(only: str = "") -> str:
    """Every field, or those of a group, or one by its name. Raises UserError for an unknown name."""
    if not only:
        return "\n\n".join([textwrap.fill(LEGEND, WIDTH), *(_group(name) for name in [*GROUPS, ""])])
    if only in GROUPS:
        return _group(only)
    fields = [field for name, field in FIELDS.items() if only in (name, name.rpartition(".")[2])]
    return "\n".join(_entry(field) for field in fields or [field_named(only)])


def _group(group: str) -> str:
    title = f"{group}: {GROUPS[group].__doc__}" if group else "Fields without a group: how the run starts."
    members = (field for name, field in FIELDS.items() if name.rpartition(".")[0] == group)
    return "\n".join([title, "", *map(_entry, members)])


def _entry(field: Field) -> str:
    """The field's name and default, what to give, and below it what the field means."""
    possible = ", ".join(field.choices) or ": ".join(part for part in (field.kind, field.bounds) if part)
    if field.bounds.startswith("a number"):
        possible = field.bounds + (" or None" if field.optional else "")
    if field.choices and field.type is tuple:
        possible = f"any of {possible}"
    default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
    tags = " [resume]" * (field.meaning.resume != "same") + " [sweep]" * (field.meaning.lane != "fixed")
    doc = textwrap.fill(field.meaning.doc + tags, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return f"  {f'{field.name}={default}':<38}  {possible}\n{doc}"
