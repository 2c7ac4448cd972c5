"""Configs of published models: absent fields filled in, unknown ones refused."""

from collections.abc import Iterable, Mapping
from typing import Any

from scorediff.errors import UserError
from scorediff.fields import hint_at_nearest


def complete(
    config: Mapping[str, Any], defaults: Mapping[str, Any], *, unused: Iterable[str] = ()
) -> dict[str, Any]:
    """`config` with the class's own default for each absent field.

    unused: fields that change nothing in what the network computes (how it was drawn, the size
      that it was trained at). Names with a leading underscore are never looked at.
    A field that is in neither is one that this reader does not know: UserError.
    """
    unused = set(unused)
    fields = {k: v for k, v in config.items() if not k.startswith("_") and k not in unused}
    unknown = sorted(set(fields) - set(defaults))
    if unknown:
        where = config.get("_class_name", "the config")
        near = hint_at_nearest(unknown[0], defaults)
        raise UserError(f"{where} has a field that is not known here: {unknown[0]}{near}")
    return {**defaults, **fields}


def only(config: Mapping[str, Any], **supported: Any) -> None:
    """UserError where a field has another value than the only one that is supported here.

    A tuple lists several values.
    """
    for field, values in supported.items():
        values = values if isinstance(values, tuple) else (values,)
        if config[field] not in values:
            raise UserError(
                f"{config.get('_class_name', 'the config')}: {field}={config[field]!r} is not "
                f"supported here, only {' or '.join(map(repr, values))}"
            )


def per_level(value: Any, levels: int, field: str) -> tuple:
    """One value a level, from a list of them or from one for all."""
    values = tuple(value) if isinstance(value, list | tuple) else (value,) * levels
    if len(values) != levels:
        raise UserError(f"{field} should have {levels} values, one a level, got {list(values)}")
    return values
