"""A run on text keeps the tokenizer of its data, so that its models can be used where the data are not."""

from pathlib import Path

from sparse_mlp_ds import files
from sparse_mlp_ds.data import sources
from sparse_mlp_ds.data.text_format import TOKENIZER
from sparse_mlp_ds.log.console import say
from sparse_mlp_ds.train.job import Job


def keep(job: Job, folder: Path) -> None:
    """Copy the tokenizer's file of a run's data into its folder; do nothing for images, or if it is there already.

    A file that is missing, or that is not the one of the data, costs a warning: training needs none. Raises OSError if
    the run folder cannot be written.
    """
    if not job.recipe.is_text or _is_of(_read(folder / TOKENIZER), job):
        return
    found = (sources.beside_index(source, TOKENIZER) for source in job.recipe.data.sources)
    content = next((one for one in found if _is_of(one, job)), None)
    if content is None:
        say(
            f"WARNING: {job.train[0].source}: has no {TOKENIZER} of its rows beside index.json; training needs none, "
            "but `sparse-mlp-ds export` and `predict` will ask for it with --tokenizer FILE"
        )
        return
    files.replace(folder / TOKENIZER, content)


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _is_of(content: bytes | None, job: Job) -> bool:
    """Return whether a file has the hash of the tokenizer by which the run's rows were made."""
    return content is not None and files.sha256_of([content]) == job.text.tokenizer
