"""How the images of one optimizer step are shared out over ranks and gradient accumulation."""

import math
from dataclasses import dataclass

from sparse_mlp_ds.config.deepspeed_json import BATCH_KEYS, DeepSpeedJson
from sparse_mlp_ds.errors import UserError


@dataclass(frozen=True)
class BatchPlan:
    """The images of one optimizer step, in micro-batches of equal size that the ranks share as evenly as they can."""

    total: int
    """Images per optimizer step over all ranks."""
    micro: int
    """Images per rank and micro-batch; where ranks get different numbers, the largest."""
    accumulation: int
    """Micro-batches per optimizer step (gradient accumulation)."""
    unit: int = 1
    """Number of neighbouring images that must stay together on one rank."""

    @classmethod
    def over(cls, world: int, total: int, accumulation: int = 1, unit: int = 1) -> "BatchPlan":
        """Share a batch over `world` ranks.

        Every micro-batch must consist of whole units, at least one for each rank; `plan_batch` checks that.
        """
        return cls(total, -(-(total // accumulation // unit) // world) * unit, accumulation, unit)

    @property
    def evaluation(self) -> int:
        """Images per forward pass over all ranks when a stage measures itself: four micro-batches of each rank, as no
        activations are kept."""
        return 4 * self.total // self.accumulation

    def share(self, rank: int, world: int) -> range:
        """Return the positions in each micro-batch that belong to a rank."""
        units = self.total // self.accumulation // self.unit
        return range(units * rank // world * self.unit, units * (rank + 1) // world * self.unit)

    def weight(self, rank: int, world: int) -> float:
        """Return the factor of a rank's mean loss with which the ranks' average is the mean over all images.

        It is 1 where all ranks have the same number of images.
        """
        return len(self.share(rank, world)) * world * self.accumulation / self.total


def plan_batch(
    ds_config: DeepSpeedJson, recipe_file: str, stage: str, total: int, world: int, unit: int = 1
) -> BatchPlan:
    """Derive the batch plan of one stage from the recipe's `batch_size` and the batch keys of the DeepSpeed JSON.

    Where the JSON leaves the images per rank open, ranks may differ by one unit, so that a run can go on with a
    different number of ranks.

    Args:
        ds_config: the checked DeepSpeed JSON.
        recipe_file: the recipe's path, for error messages.
        stage: the stage's name, for error messages.
        total: the stage's `batch_size`.
        world: number of ranks.
        unit: number of neighbouring images that must stay together on one rank.

    Raises UserError naming both files where they conflict or do not multiply out.
    """
    given = {key: ds_config.raw.get(key) for key in BATCH_KEYS}
    owner = f"{recipe_file}: stages.{stage}.batch_size {total}"
    if given["train_batch_size"] not in (None, total):
        raise UserError(
            f"{owner} conflicts with train_batch_size {given['train_batch_size']} in {ds_config.path}; "
            "remove train_batch_size there, the recipe owns the batch size"
        )
    micro, accumulation = given["train_micro_batch_size_per_gpu"], given["gradient_accumulation_steps"]
    fixed = [f"{key} {value}" for key, value in given.items() if value and key != "train_batch_size"]
    where = f"with {' and '.join(fixed)} from {ds_config.path}" if fixed else f"({ds_config.path} fixes no batch size)"
    if micro is None:
        return _open(owner, where, total, world, accumulation or 1, unit)
    if accumulation is None:
        accumulation = max(total // (world * micro), 1)
    if micro * accumulation * world != total:
        least = world * math.prod(given[key] or 1 for key in BATCH_KEYS[1:])
        nearest = max(round(total / least), 1) * least
        raise UserError(f"{owner} does not divide over {world} ranks {where}; the nearest that does is {nearest}")
    if micro % unit:
        raise UserError(
            f"{owner}: train_micro_batch_size_per_gpu {micro} in {ds_config.path} would separate {unit} images that "
            f"stay together (moe.group_images, mix); make it a multiple of {unit}"
        )
    return BatchPlan(total, micro, accumulation, unit)


def _open(owner: str, where: str, total: int, world: int, accumulation: int, unit: int) -> BatchPlan:
    """Return the plan where the JSON does not fix the images per rank. Raises UserError."""
    units, rest = divmod(total, accumulation * unit)
    if rest or units < world:
        least = accumulation * unit
        nearest = max(round(total / least), world) * least
        why = f", {unit} images staying together (moe.group_images, mix)" if unit > 1 else ""
        raise UserError(f"{owner} does not divide over {world} ranks {where}{why}; the nearest that does is {nearest}")
    return BatchPlan.over(world, total, accumulation, unit)
