"""Reading YAML as a user means it: a key that is given twice is an error, as it is in the DeepSpeed JSON."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from sparse_mlp_ds.errors import UserError, one_line


class _UniqueKeys(yaml.SafeLoader):
    """PyYAML's safe loader, which by itself lets the last of two equal keys win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[Hashable, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<` fills in what the mapping itself leaves out
                continue
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if isinstance(key, Hashable) and key in seen:
                lines = f"lines {seen[key]} and {line}" if line != seen[key] else f"line {line}"
                raise ValueError(f"key '{key}' is given twice ({lines}); remove one of the two")
            seen[key] = line
        return super().construct_mapping(node, deep)


def parse(text: str) -> Any:
    """Return the content of a YAML document. Raises yaml.YAMLError, or ValueError naming a key that is given twice."""
    return yaml.load(text, _UniqueKeys)  # noqa: S506  # derives from the safe loader


def read(path: Path, given: str, kind: str) -> dict[str, Any]:
    """Return the mapping that a YAML file holds. Raises UserError.

    Args:
        path: The file, UTF-8 with or without a byte order mark.
        given: Where the path was given, for the error of a file that cannot be read.
        kind: What the file is, such as `recipe`.
    """
    try:
        tree = parse(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{given} {path}: {error.strerror}; give a {kind}'s path or a shipped name") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML, fix it: {one_line(error)}") from None
    except ValueError as error:
        raise UserError(f"{path}: {one_line(error)}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a {kind} is a mapping of sections; start from a copy of a shipped one")
    return tree
