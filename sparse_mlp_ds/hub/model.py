"""A trained model of images as a torch module that can be loaded, run, saved and shared."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from sparse_mlp_ds.data.augment import normalize, to_unit
from sparse_mlp_ds.data.decode import Picture, center_box
from sparse_mlp_ds.hub.base_model import TrainedModel
from sparse_mlp_ds.hub.config import ModelConfig, of_images
from sparse_mlp_ds.hub.pretrained import find
from sparse_mlp_ds.hub.save import write_export


class SparseVisionModel(TrainedModel):
    """A classifier of images with all of its experts in one process.

    Every pass is deterministic, as in evaluation: an image's result does not depend on the other images of its batch.
    """

    config: ModelConfig

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        capacity_factor: float | None = None,
        priority: str = "importance",
        best: bool = False,
    ) -> "SparseVisionModel":
        """Load a model from a folder or from the Hugging Face Hub.

        Args:
            path_or_repo: The folder of an export, a run or a checkpoint, a repository OWNER/NAME of the Hub, or
                `cifar10`, the small model that comes with the package. A folder of that name comes first.
            revision: Branch, tag or commit of the repository; None for the newest commit.
            token: Access token of the Hub.
            capacity_factor: See the constructor.
            priority: See the constructor.
            best: Of a run, take the checkpoint with the best validation instead of the newest one.

        Raises UserError. Issues a RuntimeWarning for each newer checkpoint of a run that is damaged and not used, and
        for class names that nobody has compared with the training images'.
        """
        loaded = find(path_or_repo, revision, token, best)
        config = of_images(loaded.config, path_or_repo)
        return cls.from_weights(config, loaded.weights, capacity_factor, priority)

    @classmethod
    def from_weights(
        cls,
        config: ModelConfig,
        weights: dict[str, Tensor],
        capacity_factor: float | None = None,
        priority: str = "importance",
    ) -> "SparseVisionModel":
        """Build a model with the given weights.

        Args:
            config: The model as data.
            weights: All weights of the model under its own names; see `hub.validate.check_tensors`.
            capacity_factor: See the constructor.
            priority: See the constructor.
        """
        model = cls(config, capacity_factor, priority)
        model.fill(weights)
        return model

    def reset_head(self, classes: int | Sequence[str]) -> None:
        """Replace the head by a new one of zeros, as a stage of fine-tuning does.

        classes: Names of the classes, or their number; none leaves out the head, so that the model returns features.
        """
        names = tuple(map(str, range(classes))) if isinstance(classes, int) else tuple(classes)
        self.config = self.config.model_copy(update={"classes": names})
        self.backbone.reset_head(len(names))
        self.backbone.head.to(self.device)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, classes], or features [B, C] if the model has no head.

        images: [B, 3, H, W], as `preprocess` returns them.
        """
        self.config.spec.check_images(images.shape)
        return self.backbone(images)[0]

    def forward_features(self, images: Tensor) -> Tensor:
        """Return pooled features [B, C]. images: [B, 3, H, W], as `preprocess` returns them."""
        self.config.spec.check_images(images.shape)
        return self.backbone.forward_features(images)[0]

    def preprocess(self, images: Sequence[Image.Image | bytes | str | Path]) -> Tensor:
        """Crop, scale and normalise images as evaluation does, and return them as [B, 3, H, W] on the model's device.

        images: Pillow images, encoded images as bytes, or paths of files. Evaluation decodes large JPEGs at a fraction
        of their size; a Pillow image that is decoded already is scaled from its full size instead, so its values may
        differ in the last bits. Raises BadSampleError for an image that cannot be decoded, OSError for a file that
        cannot be read.
        """
        size, pixels = self.config.spec.image_size, self.config.data
        pictures = [Picture(_encoded(image)) for image in images]
        cuts = [torch.from_numpy(p.crop([center_box(p.size, pixels.crop_fraction)], size)) for p in pictures]
        batch = torch.cat(cuts) if cuts else torch.zeros(0, 3, size, size, dtype=torch.uint8)
        return normalize(to_unit(batch.to(self.device)), pixels)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write model.safetensors, config.json and README.md into a folder, as `sparse-mlp-ds export` does.

        Returns the folder. Raises UserError if it holds something else, or cannot be written.
        """
        return write_export(Path(folder), self.config, self.own_weights())


def _encoded(image: Image.Image | bytes | str | Path) -> Image.Image | bytes:
    """Return the encoded bytes of an image, if it is not decoded yet, so that the caller's image is left unchanged."""
    if isinstance(image, (str, Path)):
        return Path(image).read_bytes()
    file = getattr(image, "fp", None)
    if isinstance(image, bytes) or file is None or not getattr(image, "tile", None):
        return image  # bytes, or an image that is decoded already
    offset = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(offset)
    return content
