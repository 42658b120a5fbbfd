"""Views with one operation each, and images for them."""

import torch

from sparse_mlp_ds import rng
from sparse_mlp_ds.data.config import Blur, Jitter, RandAugment, View


def jitter(**strength):
    """A view that jitters by these strengths alone."""
    return View(flip=0, jitter=Jitter(**{"p": 1, "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0} | strength))


SINGLE = {
    "rand_augment": View(flip=0, rand_augment=RandAugment()),
    "RandAugment of DeiT": View(flip=0, rand_augment=RandAugment(policy="deit")),
    "RandAugment of big_vision": View(flip=0, rand_augment=RandAugment(policy="big_vision", magnitude=15)),
    "AutoAugment": View(flip=0, auto_augment="original"),
    "brightness": jitter(brightness=0.4),
    "contrast": jitter(contrast=0.4),
    "saturation": jitter(saturation=0.4),
    "hue": jitter(hue=0.2),
    "grayscale": View(flip=0, grayscale=1),
    "blur": View(flip=0, blur=Blur(p=1, sigma=(0.5, 2.0))),
    "solarize": View(flip=0, solarize=1),
    "flip": View(flip=1),
    "erase": View(flip=0, erase=1),
    "erase with noise": View(flip=0, erase={"p": 1, "fill": "noise"}),
}
HALF = View(jitter=Jitter(p=0.5), grayscale=0.5, blur=Blur(p=0.5), solarize=0.5, rand_augment=RandAugment(), erase=0.5)


def batch(count=20, side=16, seed=0):
    """Random images of 8 bits and keys."""
    pixels = torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(seed))
    return pixels / 255, rng.sample_keys(0, torch.arange(count), "view 0")
