"""Records a tiny MLP-Mixer's weights, images and logits, from its authors' code in Flax. Needs jax, flax and einops."""

from functools import partial
from types import SimpleNamespace
from unittest import mock

import flax.linen
import flax.traverse_util
import jax
import numpy as np

from tests.references.make import support


def main() -> None:
    """Run the reference as it is, and with the exact GELU in place of its tanh approximation."""
    path = support.checkout(__doc__)
    from vit_jax import models_mixer

    sizes = {"num_blocks": 2, "hidden_dim": 24, "tokens_mlp_dim": 12, "channels_mlp_dim": 40}
    model = models_mixer.MlpMixer(patches=SimpleNamespace(size=(4, 4)), num_classes=5, **sizes)
    images = np.array(jax.random.normal(jax.random.key(0), (3, 16, 16, 3)))
    fresh = flax.traverse_util.flatten_dict(model.init(jax.random.key(1), images, train=False)["params"], sep="/")
    keys = jax.random.split(jax.random.key(2), len(fresh))
    # Norms start as identities, and biases and the head at zero, which hides mistakes.
    weights = {
        n: np.array(w + 0.2 * jax.random.normal(k, w.shape)) for k, (n, w) in zip(keys, fresh.items(), strict=True)
    }
    variables = {"params": flax.traverse_util.unflatten_dict(weights, sep="/")}

    found = {f"weights/{name}": value for name, value in weights.items()} | {"images": images}
    found["logits"] = np.array(model.apply(variables, images, train=False))
    with mock.patch.object(flax.linen, "gelu", partial(jax.nn.gelu, approximate=False)):
        found["logits, exact GELU"] = np.array(model.apply(variables, images, train=False))

    large = models_mixer.MlpMixer(
        patches=SimpleNamespace(size=(16, 16)),
        num_classes=1000,
        num_blocks=1,
        hidden_dim=512,
        tokens_mlp_dim=256,
        channels_mlp_dim=2048,
    )
    start = large.init(jax.random.key(3), np.zeros((1, 224, 224, 3), np.float32), train=False)["params"]
    start = {name: np.array(value) for name, value in flax.traverse_util.flatten_dict(start, sep="/").items()}
    found["names"] = np.array(list(start))
    found["mean, std, min, max"] = np.array([[w.mean(), w.std(), w.min(), w.max()] for w in start.values()])
    about = "A tiny MLP-Mixer: weights, images [B, H, W, 3] and logits; how the tensors of one block of S/16 start."
    repository = "https://github.com/google-research/vision_transformer"
    support.record("flax_mixer", found, about, repository, "flax_mixer", path, ["jax", "flax"])


if __name__ == "__main__":
    main()
