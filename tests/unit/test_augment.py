"""Augmentation: each draw is a function of the sample's own number in the stage, whatever the operation."""

import pytest
import torch

from sparse_mlp_ds import rng
from sparse_mlp_ds.data.augment import augment, normalize, to_unit, views
from sparse_mlp_ds.data.config import Blur, Data, Jitter, RandAugment, View
from sparse_mlp_ds.data.loader import Batch
from tests.helpers.views import HALF, SINGLE, batch, jitter
from tests.helpers.waits import Waits

POLICIES = ("rand_augment", "RandAugment of DeiT", "RandAugment of big_vision", "AutoAugment")
EVERY_VIEW = pytest.mark.parametrize("view", [*SINGLE.values(), HALF], ids=[*SINGLE, "half of all"])


# what holds for every operation


@EVERY_VIEW
def test_a_sample_is_augmented_the_same_in_any_batch(view):
    images, keys = batch()
    whole = augment(images, view, keys)
    assert whole.shape == images.shape and whole.dtype == torch.float32
    assert torch.equal(torch.cat([augment(images[n : n + 1], view, keys[n : n + 1]) for n in range(20)]), whole)
    mixed = torch.randperm(20, generator=torch.Generator().manual_seed(1))[:13]
    assert torch.equal(augment(images[mixed], view, keys[mixed]), whole[mixed])


@EVERY_VIEW
def test_computing_all_samples_gives_the_same_as_computing_the_chosen_ones(view, monkeypatch):
    """As on a GPU, which does not wait to hear which samples were chosen."""
    images, keys = batch()
    expected = augment(images, view, keys)
    monkeypatch.setattr("sparse_mlp_ds.data.per_sample.by_subset", lambda images: False)
    assert torch.equal(augment(images, view, keys), expected)


@EVERY_VIEW
def test_a_gpus_host_waits_for_nothing(view, monkeypatch):
    monkeypatch.setattr("sparse_mlp_ds.data.per_sample.by_subset", lambda images: False)
    images, keys = batch()
    normalize(augment(images, view, keys), Data(train="a", val="a", classes=2))  # constants are made once
    with Waits() as waits:
        normalize(augment(images, view, keys), Data(train="a", val="a", classes=2))
    assert not waits.seen


@EVERY_VIEW
def test_torchs_global_generator_is_neither_used_nor_moved(view):
    images, keys = batch()
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results.append(augment(images, view, keys))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*results)


@EVERY_VIEW
def test_the_given_images_stay_as_they_are(view):
    images, keys = batch()
    augment(images, view, keys)
    assert torch.equal(images, batch()[0])


@pytest.mark.parametrize("name", [name for name in SINGLE if name not in ("grayscale", "solarize", "flip")])
def test_each_sample_has_draws_of_its_own(name):
    images, keys = batch()
    same = augment(images[:1].expand(20, -1, -1, -1), SINGLE[name], keys)
    assert len({tuple(one.flatten().tolist()) for one in same}) > (8 if name in POLICIES else 15)


@pytest.mark.parametrize("view", [*[v for name, v in SINGLE.items() if name != "erase with noise"], HALF])
def test_pixels_stay_in_the_unit_interval(view):
    """Every operation keeps them there to the last bit, but the blur, whose weights sum to 1 within rounding."""
    images, keys = batch(60)
    images[0], images[1] = 0, 1
    images[2:30] = images[2:30].round()  # the corners of the cube of colours
    result = augment(images, view, keys)
    slack = 1e-6 if view.blur else 0
    assert result.min() >= -slack and result.max() <= 1 + slack


@pytest.mark.parametrize("name", [name for name in SINGLE if name not in POLICIES])  # which leave some as they are
def test_probability_one_changes_every_sample(name):
    images, keys = batch()
    result = augment(images, SINGLE[name], keys)
    assert (result - images).abs().flatten(1).amax(dim=1).min() > 1e-3


def test_probability_zero_changes_nothing():
    images, keys = batch()
    nothing = View(flip=0, jitter=Jitter(p=0), grayscale=0, blur=Blur(p=0), solarize=0, erase=0)
    assert torch.equal(augment(images, nothing, keys), images)
    assert torch.equal(augment(images, jitter(), keys), images)


@pytest.mark.parametrize("p", [0.2, 0.8])
def test_a_probability_is_the_share_of_samples_and_operations_are_drawn_independently(p):
    """Shares of 3000 have a standard deviation of 0.0073, correlations one of 0.018."""
    images, keys = batch(3000, side=4)
    alone = {
        "flip": View(flip=p),
        "solarize": View(flip=0, solarize=p),
        "grayscale": View(flip=0, grayscale=p),
        "blur": View(flip=0, blur=Blur(p=p, sigma=(1.0, 2.0))),
        "jitter": View(flip=0, jitter=Jitter(p=p)),
        "erase": View(flip=0, erase=p),
    }
    changed = torch.stack([(augment(images, v, keys) != images).flatten(1).any(dim=1) for v in alone.values()])
    seen = dict(zip(alone, changed.float().mean(dim=1).tolist(), strict=True))
    erased = seen.pop("erase")  # 2 % of 4 x 4 pixels may lie between the middles of all of them
    assert seen == pytest.approx(dict.fromkeys(seen, p), abs=0.03) and 0.8 * p < erased < p + 0.03
    assert (torch.corrcoef(changed.float()) - torch.eye(6)).abs().max() < 0.08


def test_operations_follow_one_another_in_the_promised_order():
    images, keys = batch()
    everything = View(
        flip=1,
        jitter=Jitter(p=1),
        grayscale=0.3,
        blur=Blur(p=1),
        solarize=1,
        rand_augment=RandAugment(),
        erase=1,
    )
    chain = images
    for name in ("rand_augment", "jitter", "grayscale", "blur", "solarize", "flip", "erase"):
        chain = augment(chain, View(**{"flip": 0, name: getattr(everything, name)}), keys)
    assert torch.equal(augment(images, everything, keys), chain)


# a micro-batch


def two_views(numbers, seed=3):
    """A batch whose pixels are a function of the sample's number, as the loader's are."""
    every = torch.randint(0, 256, (50, 2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return views(Batch(every[numbers], torch.zeros(len(numbers)), numbers), (HALF, SINGLE["hue"]), seed)


def test_views_take_bytes_and_give_each_view_of_each_sample():
    numbers = torch.arange(10, 30)
    images, keys = two_views(numbers)
    assert (images.shape, images.dtype, keys.shape) == ((2, 20, 3, 8, 8), torch.float32, (2, 20))
    assert images.min() >= -1e-6 and 0.9 < images.max() <= 1 + 1e-6
    assert len(set(keys.flatten().tolist())) == 40
    assert torch.equal(keys[1], rng.sample_keys(3, numbers, "view 1"))
    assert not torch.equal(two_views(numbers, seed=4)[0], images)


def test_views_depend_on_no_batch_and_no_rank():
    images, keys = two_views(torch.arange(24))
    for part in (torch.arange(8, 16), torch.tensor([3, 23, 0]), torch.tensor([7])):
        own, own_keys = two_views(part)
        assert torch.equal(own, images[:, part]) and torch.equal(own_keys, keys[:, part])


def test_bytes_may_lie_channels_last_as_they_are_decoded():
    first = torch.randint(0, 256, (6, 1, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    last = first.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    assert to_unit(last[:, 0]).is_contiguous()
    either = [views(Batch(x, torch.zeros(6), torch.arange(6)), (HALF,), 3)[0] for x in (first, last)]
    assert torch.equal(*either)


def test_bytes_become_floats_and_are_normalised_by_channel():
    data = Data(train="a", val="b", classes=2, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))
    images = to_unit(torch.tensor([[0, 255], [51, 102]], dtype=torch.uint8).expand(2, 3, 2, 2))
    assert images.dtype == torch.float32 and images.flatten()[:4].tolist() == pytest.approx([0, 1, 0.2, 0.4])
    result = normalize(images, data)
    assert result[1, :, 0, 1].tolist() == pytest.approx([0.9 / 0.5, 0.8 / 0.25, 0.7])
    assert result[0, :, 1, 0].tolist() == pytest.approx([0.1 / 0.5, 0.0, -0.1], abs=1e-6)
