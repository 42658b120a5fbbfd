"""A trained model as a module: read, run, written, given away."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from sparse_mlp_ds.data.augment import normalize, to_unit
from sparse_mlp_ds.data.decode import Picture, center_box
from sparse_mlp_ds.hub.config import ModelConfig
from sparse_mlp_ds.hub.folder import write
from sparse_mlp_ds.hub.opening import open_model, read_files
from sparse_mlp_ds.hub.remote import fetch, is_repo, push
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.spec import MoESpec
from sparse_mlp_ds.moe.layer import MoELayer


class SparseVisionModel(nn.Module):
    """A classifier with all its experts in one process; every pass is deterministic, as in evaluation."""

    def __init__(self, config: ModelConfig, capacity_factor: float | None = None, priority: str = "importance"):
        """Build it; its weights are not initialised, `from_pretrained` reads them.

        capacity_factor: drop what exceeds this share of an expert's even load, counted within each image; `priority`
        (`importance` or `position`) says who is served first then. None drops nothing.
        """
        super().__init__()
        self.config = config

        def make_moe(kind: str, dim: int, spec: MoESpec, dropout: float) -> MoELayer:
            return registry.local_moe(kind, dim, spec, dropout, config.moe.routing(kind, capacity_factor, priority))

        self.backbone = registry.build(config.spec, len(config.classes), make_moe)

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        capacity_factor: float | None = None,
        priority: str = "importance",
    ) -> "SparseVisionModel":
        """Read an export's, a run's or a checkpoint's folder, or an export from the Hugging Face Hub.

        revision, token: of the Hub. The others: see the constructor. Raises UserError; warns of a run's checkpoints
        that it passed over.
        """
        path = Path(path_or_repo)
        if path.exists() or not is_repo(str(path_or_repo)):
            opened = open_model(path)
        else:
            opened = read_files(*fetch(str(path_or_repo), revision, token))
        for remark in opened.remarks:
            warnings.warn(f"passed over {remark}", RuntimeWarning, stacklevel=2)
        return cls.of(opened.config, opened.weights, capacity_factor, priority)

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        weights: dict[str, Tensor],
        capacity_factor: float | None = None,
        priority: str = "importance",
    ) -> "SparseVisionModel":
        """Build a model and give it its weights, which must be all of them (`hub.check`)."""
        model = cls(config, capacity_factor, priority)
        with torch.no_grad():
            for name, parameter in model.backbone.named_parameters():
                parameter.copy_(weights[name])
        return model

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the logits."""
        return self.config.classes

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, classes]; a model without a head returns features [B, C].

        images: [B, 3, H, W], as `preprocess` returns them.
        """
        return self.backbone(images)[0]

    def forward_features(self, images: Tensor) -> Tensor:
        """Return pooled features [B, C] of the same images."""
        return self.backbone.forward_features(images)[0]

    def preprocess(self, images: Sequence[Image.Image | bytes | str | Path]) -> Tensor:
        """Return what evaluation makes of images: cut out, scaled, normalised, [B, 3, H, W] on the model's device.

        images: Pillow's, encoded ones, or files. One of Pillow's whose pixels have been asked for already is scaled
        from them; evaluation decodes large JPEGs at a fraction of their size, which may differ in the last bits.
        Raises BadSampleError, or OSError for a file.
        """
        size, pixels = self.config.spec.image_size, self.config.data
        pictures = [Picture(_encoded(image)) for image in images]
        cuts = [torch.from_numpy(p.cut([center_box(p.size, pixels.crop_fraction)], size)) for p in pictures]
        batch = torch.cat(cuts) if cuts else torch.zeros(0, 3, size, size, dtype=torch.uint8)
        return normalize(to_unit(batch.to(next(self.parameters()).device)), pixels)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write model.safetensors, config.json and README.md, as `sparse-mlp-ds export` does. Raises UserError."""
        weights = {name: parameter.detach() for name, parameter in self.backbone.named_parameters()}
        return write(Path(folder), self.config, weights)

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | None = None, **commit: Any) -> str:
        """Write it to the Hugging Face Hub, into a repository that is made if need be; return the commit's address.

        commit: `commit_message`, `branch` and so on, as `huggingface_hub.HfApi.upload_folder` takes them.
        Needs `pip install sparse_mlp_ds[hub]`; raises UserError without.
        """
        return push(self.save_pretrained, repo_id, private, token, commit)


def _encoded(image: Image.Image | bytes | str | Path) -> Image.Image | bytes:
    """Return an image's bytes where they can be had: decoding them leaves the caller's image as it was."""
    if isinstance(image, (str, Path)):
        return Path(image).read_bytes()
    file = getattr(image, "fp", None)
    if isinstance(image, bytes) or file is None or not getattr(image, "tile", None):
        return image  # encoded already, or decoded already
    place = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(place)
    return content
