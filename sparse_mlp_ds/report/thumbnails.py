"""A few held-out images of each of some classes, where the shards of the run can be read on this machine."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import ValidationError

from sparse_mlp_ds.errors import UserError, one_line

EACH = 4
"""Most images of a class."""


def of_classes(recipe: dict[str, Any], labels: Sequence[int]) -> tuple[dict[int, list[str]], str]:
    """Return images of classes, as addresses that hold them, and why there are none.

    Nothing is fetched from elsewhere and no command is run, whatever the recipe says.

    Args:
        recipe: The run's resolved recipe.
        labels: Numbers of the classes.
    """
    from sparse_mlp_ds.config import history
    from sparse_mlp_ds.config.recipe import Recipe
    from sparse_mlp_ds.data import cache, sources
    from sparse_mlp_ds.data.index import join
    from sparse_mlp_ds.models.spec import of_images
    from sparse_mlp_ds.routes import pictures

    try:
        known = Recipe.model_validate(history.completed(recipe))
        if known.is_text:
            return {}, "the samples are text"
        data = known.data.model_copy(update={"allow_commands": False, "cache": None, "bad_limit": 1.0})
        if any(cache.is_remote(source.path) or cache.is_remote(source.index or "") for source in data.val or ()):
            return {}, "the held-out images are not on this machine's disk"
        index = join(sources.open_sources(data, data.val or ()))
        known_labels = np.concatenate([shard.labels for shard in index.shards])
        chosen = {label: np.flatnonzero(known_labels == label)[:EACH].tolist() for label in labels}
        numbers = [number for found in chosen.values() for number in found]
        read = pictures.read(numbers, index, data, of_images(known.spec).image_size)
    except ValidationError as error:
        return {}, f"config.yaml is no recipe of this version ({error.error_count()} keys do not fit)"
    except (UserError, OSError, ValueError, KeyError, TypeError) as error:
        return {}, f"the held-out images cannot be read ({one_line(error, 200)})"
    uri = "data:image/jpeg;base64,"
    return {label: [uri + read[number].jpeg for number in found] for label, found in chosen.items()}, ""
