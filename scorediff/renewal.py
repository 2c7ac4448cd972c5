"""A config of an older run in the terms of today.

A saved config names every argument that there was when it was saved. What a class has gained since,
here or in optax, had no other value than its default then; what has moved is found by its new name.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from scorediff.config import blank, is_node, kind_and_name
from scorediff.errors import UserError
from scorediff.names import resolve


def renewed(value: Any, packages: Sequence[str] = ()) -> Any:
    """The value with every node as today's class would record it; what cannot be named stays."""
    if isinstance(value, list | tuple):
        return type(value)(renewed(item, packages) for item in value)
    if not isinstance(value, ConfigDict):
        return value
    given = {key: renewed(item, packages) for key, item in value.items()}
    return ConfigDict({**given, **_gained(value, packages)} if is_node(value) else given)


def _gained(node: ConfigDict, packages: Sequence[str]) -> Mapping[str, Any]:
    """What the node lacks of its class's own record, and the name of today."""
    try:
        kind, name = kind_and_name(node)
        today = blank(kind, resolve(name, packages=packages))
    except UserError:
        return {}
    return {key: item for key, item in today.items() if key not in node or key == kind}
