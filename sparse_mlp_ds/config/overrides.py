"""Single keys of a recipe or a DeepSpeed JSON, changed on the command line: `--set KEY=VALUE`, `--ds KEY=VALUE`."""

from typing import Any

import yaml

from sparse_mlp_ds.config import yaml_file
from sparse_mlp_ds.errors import UserError, one_line

EXAMPLES = {"--set": ("recipe", "train.seed=1"), "--ds": ("DeepSpeed JSON", "zero_optimization.stage=2")}
"""What each flag changes, and a valid use of it."""


def apply(tree: dict[str, Any], override: str, flag: str = "--set") -> str:
    """Set one `dotted.key=value` in a tree, where numbers select items of lists; return the key.

    Args:
        tree: Of a recipe or a DeepSpeed JSON; it is changed.
        override: The key and the value, which is read as YAML.
        flag: What the override was given with, `--set` or `--ds`.

    Raises UserError.
    """
    what, example = EXAMPLES[flag]
    given = f"{flag} {override}"
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"{given}: write it as dotted.key=value, for example {flag} {example}")
    try:
        value = yaml_file.parse(text)
    except yaml.YAMLError:
        raise UserError(f"{given}: the value is not valid YAML; quote it") from None
    except ValueError as error:
        raise UserError(f"{given}: {one_line(error)}") from None
    *parents, last = key.split(".")
    node: Any = tree
    for part in parents:
        if isinstance(node, dict) and node.get(part) is None:
            node[part] = {}
        node = _child(node, part, given, what)
    if isinstance(node, list):
        _child(node, last, given, what)
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise UserError(f"{given}: '{parents[-1]}' holds a value, not a section; remove '.{last}'")
    return key


def _child(node: Any, part: str, given: str, what: str) -> Any:
    if isinstance(node, list):
        if not part.isdecimal() or int(part) >= len(node):
            raise UserError(f"{given}: '{part}' is not an item of that list; items are 0 to {len(node) - 1}")
        return node[int(part)]
    if isinstance(node, dict):
        return node[part]
    raise UserError(f"{given}: the key goes deeper than the {what}; remove '.{part}' and what follows")
