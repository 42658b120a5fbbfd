"""Distillation as in DeiT (Touvron et al., arXiv 2012.12877): a second token of the student learns from a teacher."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_mlp_ds import files
from sparse_mlp_ds.config.recipe import Recipe
from sparse_mlp_ds.config.stages import Distill
from sparse_mlp_ds.data import augment, class_names
from sparse_mlp_ds.data.class_names import ClassList
from sparse_mlp_ds.distributed import comm, process_group
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.hub import config as hub_config
from sparse_mlp_ds.hub.config import ModelConfig
from sparse_mlp_ds.hub.load import class_list, load_model
from sparse_mlp_ds.hub.model import SparseVisionModel
from sparse_mlp_ds.log.console import say
from sparse_mlp_ds.models.spec import of_images
from sparse_mlp_ds.weights import locate


def distillation_loss(labels_part: Tensor, student: Tensor, teacher: Tensor, distill: Distill) -> Tensor:
    """Return (1 - alpha) x the labels' part + alpha x the teacher's part, averaged over images.

    `hard`: cross-entropy with the teacher's most likely class. `soft`: T^2 KL(teacher / T || student / T), divided by
    the number of classes as in DeiT's code.

    Args:
        labels_part: loss of the class token's head, a scalar.
        student: logits [B, classes] of the distillation token's head.
        teacher: logits [B, classes] of the teacher.
        distill: the stage's section.
    """
    if distill.type == "hard":
        part = F.cross_entropy(student, teacher.argmax(dim=1))
    else:
        temperature = distill.temperature
        said, target = ((logits / temperature).log_softmax(dim=1) for logits in (student, teacher))
        part = F.kl_div(said, target, reduction="sum", log_target=True) * temperature**2 / student.numel()
    return (1 - distill.alpha) * labels_part + distill.alpha * part


class Teacher:
    """A trained model, frozen and as in evaluation, with all of its experts on every rank, in float32."""

    def __init__(self, path: Path, recipe: Recipe):
        """Load the teacher. Collective. Raises UserError if it does not fit the recipe, or differs between ranks."""
        loaded = load_model(path)
        if process_group.rank() == 0:
            for line in loaded.remarks:
                say(f"WARNING: teacher: {line}")
        config = hub_config.of_images(loaded.config, path)
        check_fits(path, config, recipe)
        blocks = (loaded.weights[name].contiguous().view(torch.uint8).numpy().data for name in sorted(loaded.weights))
        self.digest = files.sha256_of(blocks)
        if len(set(comm.gather_objects(self.digest))) > 1:
            error = UserError(f"{path}: the teacher differs between hosts; copy one to all of them")
            raise comm.printed_by_rank_zero(error)
        self.model = SparseVisionModel.from_weights(config, loaded.weights)
        self.model.requires_grad_(False).to(process_group.device())

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return logits [B, classes] of images [B, 3, H, W] in [0, 1], which are normalised as the teacher expects."""
        return self.model(augment.normalize(images, self.model.config.data)).float()


def config_of(path: Path) -> ModelConfig:
    """Return a teacher's configuration; of an export it is read without the weights. Raises UserError."""
    if locate.kind(path) == "export":
        return hub_config.of_images(hub_config.read(locate.export_file(path, locate.CONFIG)), path)
    return hub_config.of_images(load_model(path).config, path)


def check(path: Path, recipe: Recipe, classes: list[str]) -> list[str]:
    """Check that a path holds a teacher for a recipe, without reading its weights.

    Args:
        path: The teacher. Of a run or a checkpoint, the image size is compared only when its weights are read.
        recipe: The recipe.
        classes: The training images' class names.

    Returns remarks about the class names. Raises UserError.
    """
    if locate.kind(path) == "file":
        raise UserError(f"{path}: a file of weights; make an export of it with `sparse-mlp-ds import`")
    if locate.kind(path) == "export":
        check_fits(path, config_of(path), recipe)
    teacher = class_list(path)
    _check_number(path, len(teacher.names), recipe)
    limit = f"data.classes is {len(classes)}"
    return class_names.agree([ClassList("data.train", classes), teacher], len(classes), limit)[1]


def check_fits(path: Path, teacher: ModelConfig, recipe: Recipe) -> None:
    """Raise UserError unless a teacher has the recipe's number of classes and image size."""
    _check_number(path, len(teacher.classes), recipe)
    theirs, ours = teacher.spec.image_size, of_images(recipe.spec).image_size
    if theirs != ours:
        raise UserError(
            f"{path}: the teacher takes images of {theirs} pixels, the model of {ours}; "
            f"set model.image_size: {theirs}, or give a different teacher"
        )


def _check_number(path: Path, classes: int, recipe: Recipe) -> None:
    """Raise UserError unless a teacher has the recipe's number of classes."""
    if classes != recipe.data.classes:
        known = f"knows {classes} classes" if classes else "has no head"
        raise UserError(f"{path}: the teacher {known}, the data has {recipe.data.classes}; give a different teacher")
