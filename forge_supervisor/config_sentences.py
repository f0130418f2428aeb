"""What an operator is told of a value that the schema does not take."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, get_args, get_origin

from pydantic import BaseModel

from forge_supervisor.config_files import Problem, dotted
from forge_supervisor.config_library import meant
from forge_supervisor.config_values import SENTENCES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pydantic_core import ErrorDetails

    from forge_supervisor.config_files import Keys

_WANTED = {
    "string_type": "must be a string",
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "tuple_type": "must be a list",
}
# bool first: Python's booleans are numbers.
_KINDS = ((bool, "a boolean"), (int | float, "a number"), (str, "a string"), (list, "a list"), (dict, "a table"))


def told(detail: ErrorDetails, file: str, schema: type[BaseModel]) -> Problem:
    """Make a problem of what pydantic found in `file`, which `schema` is the schema of."""
    keys = detail["loc"]
    if keys[-1] == "[key]":  # so pydantic marks that a table's key is wrong, not its value
        keys = keys[:-1]
    return Problem(dotted(keys), _sentence(detail, schema), file=file)


def _sentence(detail: ErrorDetails, schema: type[BaseModel]) -> str:
    """Say what is wrong. No sentence repeats a value: it might be a secret, and these go to logs."""
    context = detail.get("ctx", {})
    match detail["type"]:
        case "value_error":
            text = str(context["error"])
        case "extra_forbidden":
            text = _unknown(detail["loc"], schema)
        case "missing":
            text = f"is missing (add {detail['loc'][-1]} = …)"
        case "string_pattern_mismatch":
            text = SENTENCES[context["pattern"]]
        case "literal_error":
            known = re.findall("'([^']*)'", context["expected"])
            text = f"must be one of {_listed(known)}{meant(detail['input'], known)}"
        case "greater_than_equal":
            text = f"must be at least {context['ge']}"
        case other:
            text = _of_another_kind(other, _kind(detail["input"]))
    return text


def _of_another_kind(wanted: str, given: str) -> str:
    quotes = " (put it in quotes)" if wanted == "string_type" and given in {"a number", "a boolean"} else ""
    return f"{_WANTED[wanted]}, not {given}{quotes}"


def _kind(value: object) -> str:
    return next((name for kind, name in _KINDS if isinstance(value, kind)), "a date or time")


def _unknown(keys: Keys, schema: type[BaseModel]) -> str:
    table: Any = schema
    for key in keys[:-1]:
        if isinstance(key, int):  # a place in a list of tables, which are all alike
            continue
        table = _model_of(table.model_fields[str(key)].annotation if _is_model(table) else get_args(table)[1])
    known = list(table.model_fields)
    inner = dict(_inner_keys(table))
    exact = [path for path, key in inner.items() if key == keys[-1]]
    hint = f' (did you mean "{exact[0]}"?)' if exact else meant(keys[-1], [*known, *inner])
    return f"unknown key{hint or f' (known here: {_listed(known)})'}"


def _inner_keys(table: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """List the keys of the tables in a table, with their paths: people forget that one is deeper."""
    for name, info in table.model_fields.items():
        inner = _model_of(info.annotation)
        if _is_model(inner):
            yield from ((f"{name}.{key}", key) for key in inner.model_fields)


def _model_of(annotation: Any) -> Any:
    """Take the model out of `Model | None`; all else stays as it is."""
    if get_origin(annotation) is dict:
        return annotation
    return next((part for part in get_args(annotation) if _is_model(part)), annotation)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
