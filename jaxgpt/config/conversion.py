"""ConfigDicts, command lines and JSON <-> the frozen Config.

A config file gives a ConfigDict (`get_config()`), the command line may change any field of it, and
`from_config_dict` turns it into the frozen `Config` that the rest of the package takes. Past this module there is no
ConfigDict, no `.get` and no second default: every default is in `fields.py`, once.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from ml_collections import ConfigDict, config_dict

from jaxgpt.config.checks import find_problems
from jaxgpt.config.errors import UserError, nearest
from jaxgpt.config.fields import FIELDS, Config, value_of

GROUPS: dict[str, type] = {
    name: hint
    for name, hint in typing.get_type_hints(Config).items()
    if isinstance(hint, type) and dataclasses.is_dataclass(hint)
}
UNGROUPED = [name for name in FIELDS if "." not in name]

# The absolute rate at num_steps, as older versions wrote it. It is still read, and wins over the ratio.
FINAL_RATE, FINAL_RATIO = "optim.final_learning_rate", "optim.final_learning_rate_ratio"
READ_NAMES = (*FIELDS, FINAL_RATE)


# --- conversion -----------------------------------------------------------------------------------------


def to_config_dict(config: Config) -> ConfigDict:
    """The same values as a ConfigDict; a field that is None keeps its type."""
    values = ConfigDict({group: ConfigDict() for group in GROUPS})
    for dotted, field in FIELDS.items():
        value = value_of(config, dotted)
        value = config_dict.placeholder(field.type) if value is None else value
        group, _, name = dotted.rpartition(".")
        (values[group] if group else values)[name] = value
    values.optim.final_learning_rate = config_dict.placeholder(float)
    return values


def default_config() -> ConfigDict:
    """The defaults as a ConfigDict, for config files to start from."""
    return to_config_dict(Config())


def from_config_dict(values: ConfigDict | dict[str, Any]) -> Config:
    """Make the frozen Config of a ConfigDict, checked. Raises UserError that lists every problem at once."""
    values = values.to_dict() if isinstance(values, ConfigDict) else values
    problems: list[str] = []
    converted: dict[str, Any] = {}
    for dotted, value in _flat(values).items():
        try:
            converted[dotted] = _convert(dotted, value)
        except UserError as error:
            problems.append(str(error))
    _refuse(problems)
    _use_final_rate(converted)
    groups: dict[str, dict[str, Any]] = {group: {} for group in ["", *GROUPS]}
    for dotted, value in converted.items():
        group, _, name = dotted.rpartition(".")
        groups[group][name] = value
    config = Config(**{name: cls(**groups[name]) for name, cls in GROUPS.items()}, **groups[""])
    _refuse(find_problems(config))
    return config


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Nested values by dotted name. A value that is not a group of fields keeps its name."""
    flat: dict[str, Any] = {}
    for group, fields in values.items():
        if group in GROUPS and isinstance(fields, dict | ConfigDict):
            flat |= {f"{group}.{name}": value for name, value in fields.items()}
        else:
            flat[group] = fields
    return flat


def _use_final_rate(values: dict[str, Any]) -> None:
    """Replace an absolute final rate by its ratio."""
    final = values.pop(FINAL_RATE, None)
    rate = values.get("optim.learning_rate", FIELDS["optim.learning_rate"].default)
    schedule = values.get("optim.schedule", FIELDS["optim.schedule"].default)
    # The rate is not used, or find_problems reports what is wrong.
    if final is None or schedule == "constant" or not rate > 0:
        return
    if not 0 <= final <= rate:
        raise UserError(f"{FINAL_RATE}={final}: give a number from 0 to optim.learning_rate={rate}")
    values[FINAL_RATIO] = final / rate


def set_value(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a field of nested values by its dotted name. A ratio of the final rate replaces an absolute one."""
    group, _, name = dotted.rpartition(".")
    target = values.setdefault(group, {}) if group else values
    if dotted == FINAL_RATIO:
        target.pop("final_learning_rate", None)
    target[name] = value


def apply_overrides(values: ConfigDict, overrides: dict[str, str]) -> dict[str, Any]:
    """A config file's values, with fields changed by what the command line gives as text.

    Keys are dotted names such as `model.d_model`. The text is read by the type of the field: `true` or `false`,
    numbers, `None` for optional fields. Raises UserError that lists every problem at once.
    """
    problems, merged = [], values.to_dict()
    for dotted, text in overrides.items():
        group = dotted.rpartition(".")[0]
        if group in GROUPS and not isinstance(merged.get(group, {}), dict):
            continue  # from_config_dict says what is wrong with the group
        try:
            set_value(merged, dotted, _parse(dotted, text))
        except UserError as error:
            problems.append(str(error))
    _refuse(problems)
    return merged


def to_json(config: Config) -> dict[str, dict[str, Any]]:
    """Plain dictionaries, as written to config.json; `from_json` reads them back."""
    return dataclasses.asdict(config)


class NewerVersion(UserError):
    """A stored config that a newer version of this package wrote."""


def from_json(values: Any) -> Config:
    """Read a stored config. Raises UserError, and NewerVersion for a field that this version does not have."""
    if not isinstance(values, dict):
        raise UserError("not a JSON object")
    if strange := [name for name in _flat(values) if name not in READ_NAMES]:
        raise NewerVersion(
            f"the config has {', '.join(strange)}, which this version of jaxgpt does not have: "
            "a newer version wrote it, update jaxgpt"
        )
    values = {group: dict(own) if isinstance(own, dict) else own for group, own in values.items()}
    for dotted, f in FIELDS.items():
        group, _, name = dotted.rpartition(".")
        if f.meaning.before is not None and isinstance(values.get(group), dict):
            values[group].setdefault(name, f.meaning.before)
    return from_config_dict(values)


def differences(old: Config, new: Config, every: bool = False) -> list[str]:
    """`model.d_model: 128 -> 256` for each field that makes it another run, or for `every` field that differs."""
    return [
        f"{dotted}: {before!r} -> {after!r}"
        for dotted, (before, after) in changed_values(old, new).items()
        if every or not FIELDS[dotted].same_run(before, after)
    ]


def changed_values(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """The old and the new value of every field that differs, by dotted name."""
    pairs = {dotted: (value_of(old, dotted), value_of(new, dotted)) for dotted in FIELDS}
    return {dotted: (before, after) for dotted, (before, after) in pairs.items() if before != after}


# --- one value ------------------------------------------------------------------------------------------


def field_named(dotted: str):
    """The field of a name. Raises UserError with the nearest name that exists."""
    if dotted in FIELDS:
        return FIELDS[dotted]
    if dotted == FINAL_RATE:
        return dataclasses.replace(FIELDS[FINAL_RATIO], name=dotted, hint=float | None)
    group, _, name = dotted.rpartition(".")
    own = [known.partition(".")[2] for known in FIELDS if group and known.startswith(f"{group}.")]
    if dotted in GROUPS:
        members = ", ".join(known for known in FIELDS if known.startswith(f"{dotted}."))
        raise UserError(f"{dotted} is a group of fields: give one of {members}")
    # The same word in another group first, then the nearest in the same group, then the nearest anywhere.
    near = next((known for known in FIELDS if known.split(".")[-1] == name), None)
    if near is None and own and (word := nearest(name, own, cutoff=0.5)):
        near = f"{group}.{word}"
    if near is None and not own:
        near = nearest(dotted, FIELDS)
    if near:
        raise UserError(f"unknown field {dotted}: did you mean {near}?")
    if own:
        raise UserError(f"unknown field {dotted}: {group} has {', '.join(own)}")
    raise UserError(
        f"unknown field {dotted}: the groups are {', '.join(GROUPS)}, and the fields without a group are "
        f"{', '.join(UNGROUPED)}"
    )


def _refuse(problems: list[str]) -> None:
    """Raises UserError that lists all problems; does nothing where there are none."""
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        raise UserError(
            f"{len(problems)} problems in the config:\n" + "\n".join(f"  - {p}" for p in problems)
        )


def _convert(dotted: str, value: Any) -> Any:
    """The value, if it is of its field's type (an int is accepted as a float). Raises UserError."""
    field = field_named(dotted)
    if value is None and field.optional:
        return None
    if field.type is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if field.type is tuple:
        if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
            raise UserError(f"{dotted}={value!r}: give a tuple of texts")
        for word in value if field.choices else ():
            if word not in field.choices:
                raise UserError(
                    f"{dotted}: {word!r} is not possible: choose among {', '.join(field.choices)}"
                )
        return tuple(value)  # JSON has lists only
    if not isinstance(value, field.type) or (field.type is not bool and isinstance(value, bool)):
        raise UserError(f"{dotted}={value!r} is of type {type(value).__name__}: give {field.kind}")
    if field.choices and value not in field.choices:
        raise UserError(f"{dotted}={value!r}: choose one of {', '.join(field.choices)}")
    return value


def _parse(dotted: str, text: str) -> Any:
    """Read the command line's text by the type of the field. Raises UserError."""
    field = field_named(dotted)
    if field.optional and text.lower() == "none":
        return None
    try:
        if field.type is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        if field.type is tuple:
            value = tuple(word.strip() for word in text.split(",") if word.strip())
        else:
            value = field.type(text.replace("_", "") if field.type is int else text)
    except (KeyError, ValueError):
        raise UserError(f"{dotted}={text!r}: give {field.kind}") from None
    return _convert(dotted, value)
