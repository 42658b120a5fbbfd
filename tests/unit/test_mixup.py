"""Mixup and CutMix by hand: pixels and labels of neighbours, shared out alike, whatever the rest of the batch is."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from sparse_mlp_ds import rng
from sparse_mlp_ds.data.config import Mix
from sparse_mlp_ds.data.mixup import mix

SECTIONS = {
    "mixup": Mix(mixup=0.8),
    "cutmix": Mix(cutmix=1.0),
    "both": Mix(mixup=0.8, cutmix=1.0),
    "sometimes": Mix(mixup=0.2, cutmix=0.5, p=0.5),
}
EVERY_SECTION = pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS)


def batch(count, height=8, width=8, seed=0):
    """Random images, each a class of its own, and keys."""
    images = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))
    return images, F.one_hot(torch.arange(count)).float(), rng.sample_keys(seed, torch.arange(count), "view 0")


def contrasts(count, height=8, width=8, seed=0):
    """Images of ones beside images of zeros, so that a result's pixels say how much of each went in."""
    _, _, keys = batch(count, 1, 1, seed)
    images = (torch.arange(count) % 2).float().view(-1, 1, 1, 1).expand(-1, 3, height, width)
    return images, F.one_hot(torch.arange(count) % 2, 2).float(), keys


def kept(images, targets, result, mixed_targets):
    """What each sample kept of itself: [B, H, W] of its pixels, [B] of its label."""
    return 1 - (result - images).abs()[:, 0], (mixed_targets * targets).sum(dim=1)


def neighbours(values):
    return values[torch.arange(len(values)) ^ 1]


@EVERY_SECTION
def test_targets_hold_a_sample_and_its_neighbour_and_sum_to_one(section):
    images, targets, keys = batch(64)
    _, mixed = mix(images, targets, section, keys)
    assert torch.allclose(mixed.sum(dim=1), torch.ones(64), atol=1e-6) and mixed.min() >= 0
    allowed = targets + neighbours(targets)
    assert (mixed[allowed == 0] == 0).all()  # of nobody else
    assert (mixed * neighbours(targets)).sum(dim=1).max() > 0.3


@EVERY_SECTION
def test_a_pair_holds_each_of_its_images_once(section):
    """If each image drew a share of its own, one of the two could almost vanish from the batch."""
    images, targets, keys = batch(256)
    for before, after in zip((images, targets), mix(images, targets, section, keys), strict=True):
        assert torch.allclose(after[::2] + after[1::2], before[::2] + before[1::2], atol=1e-6)


def test_mixup_gives_pixels_and_labels_the_same_share():
    images, targets, keys = batch(64)
    result, mixed = mix(images, targets, SECTIONS["mixup"], keys)
    keep = (mixed * targets).sum(dim=1)
    shares = keep.view(-1, 1, 1, 1)
    assert torch.allclose(result, shares * images + (1 - shares) * neighbours(images), atol=1e-6)
    assert torch.equal(keep[::2], keep[1::2]) and len(set(keep.tolist())) > 30  # one draw for each pair


@pytest.mark.parametrize("height, width", [(8, 8), (32, 32), (6, 20)])
def test_cutmix_keeps_of_the_label_what_it_keeps_of_the_pixels(height, width):
    images, targets, keys = contrasts(400, height, width)
    pixels, labels = kept(images, targets, *mix(images, targets, SECTIONS["cutmix"], keys))
    assert set(pixels.flatten().tolist()) == {0.0, 1.0}
    counts = labels.double() * height * width
    assert (counts - counts.round()).abs().max() < 1e-3
    assert torch.equal(counts.round(), pixels.double().sum(dim=(1, 2)))


def test_cutmix_replaces_one_rectangle_that_may_lie_anywhere():
    images, targets, keys = contrasts(600, 16, 16)
    result, _ = mix(images, targets, SECTIONS["cutmix"], keys)
    assert torch.equal(result, result[:, :1].expand_as(result))  # the same of every channel
    gone = kept(images, targets, result, targets)[0].numpy() == 0
    for one in gone:
        assert np.array_equal(one, np.outer(one.any(axis=1), one.any(axis=0)))
    assert gone.any(axis=0).all()  # to the corners
    often = gone.mean(axis=0)
    assert abs(often[:8].mean() - often[8:].mean()) < 0.06 and abs(often[:, :8].mean() - often[:, 8:].mean()) < 0.06


def test_cutmix_takes_its_pixels_from_the_same_places():
    images, targets, keys = batch(64)
    result, _ = mix(images, targets, SECTIONS["cutmix"], keys)
    own, other = result == images, result == neighbours(images)
    assert (own | other).all() and other.any() and own.any()


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 4.0])
def test_mixups_share_is_beta_distributed(alpha):
    _, labels = kept_of(Mix(mixup=alpha), count=4000)
    # 1.5 % of Beta(0.2, 0.2) lie so near 1 that float32 makes them 1; at 2000 draws 4.4 % would be noticed.
    assert stats.kstest(labels[::2].numpy(), stats.beta(alpha, alpha).cdf).pvalue > 0.001


def kept_of(section, count=2000, side=2, seed=5):
    images, targets, keys = contrasts(count, side, side, seed)
    return kept(images, targets, *mix(images, targets, section, keys))


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_cutmixs_share_is_that_of_the_papers_procedure(alpha):
    """Its lambda ~ Beta(alpha, alpha), a box of 1 - lambda centred anywhere and cut at the border, here by numpy."""
    draw, side = np.random.default_rng(0), 64
    half = np.sqrt(1 - draw.beta(alpha, alpha, 4000)) / 2
    centre = draw.uniform(size=(2, 4000))
    extent = np.clip(centre + half, 0, 1) - np.clip(centre - half, 0, 1)
    labels = kept_of(Mix(cutmix=alpha), side=side, count=3200)[1][::2]
    # In tenths, beside which the grid of 64 x 64 pixels is fine.
    shares = [np.histogram(values, np.linspace(0, 1 + 1e-9, 11))[0] for values in (labels, 1 - extent.prod(axis=0))]
    assert stats.chi2_contingency(shares).pvalue > 0.001


@pytest.mark.parametrize("alpha", [0.01, 1e4])
def test_extreme_alphas_give_shares(alpha):
    for section in (Mix(mixup=alpha), Mix(cutmix=alpha)):
        pixels, labels = kept_of(section, count=200)
        assert pixels.isfinite().all() and labels.min() >= 0 and labels.max() <= 1
    mixup = kept_of(Mix(mixup=alpha), count=200)[1]
    at_an_end = ((mixup < 1e-3) | (mixup > 1 - 1e-3)).float().mean()
    assert at_an_end > 0.8 if alpha < 1 else (mixup - 0.5).abs().max() < 0.1


@EVERY_SECTION
def test_a_pair_depends_on_no_other_pair_and_so_on_no_number_of_ranks(section):
    images, targets, keys = batch(32)
    whole = mix(images, targets, section, keys)
    for size in (2, 4, 16):
        parts = zip(images.split(size), targets.split(size), keys.split(size), strict=True)
        result, mixed = (torch.cat(t) for t in zip(*(mix(*p[:2], section, p[2]) for p in parts), strict=True))
        assert torch.equal(result, whole[0]) and torch.equal(mixed, whole[1])
    changed = images.clone()
    changed[:10], changed[12:] = 0, 1
    assert torch.equal(mix(changed, targets, section, keys)[0][10:12], whole[0][10:12])


def test_partners_are_neighbours_and_a_pair_never_crosses():
    images = torch.arange(12.0).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    _, targets, keys = batch(12)
    for section in SECTIONS.values():
        result, _ = mix(images, targets, section, keys)
        pair = torch.arange(12).view(-1, 1, 1, 1) // 2
        assert (result >= 2 * pair).all() and (result <= 2 * pair + 1).all()


@pytest.mark.parametrize("name", ["mixup", "cutmix", "both"])
def test_p_is_the_share_of_samples_that_are_mixed(name):
    """Shares of 2000 pairs have a standard deviation of 0.01."""
    images, targets, keys = batch(4000, 16, 16)
    result, mixed = mix(images, targets, SECTIONS[name].model_copy(update={"p": 0.3}), keys)
    is_mixed = (result != images).flatten(1).any(dim=1)
    assert is_mixed.float().mean().item() == pytest.approx(0.3, abs=0.04)
    assert torch.equal(mixed[~is_mixed], targets[~is_mixed])


@pytest.mark.parametrize("section", [Mix(), Mix(p=0, mixup=1, cutmix=1)], ids=["alphas 0", "p 0"])
def test_switched_off_it_changes_nothing(section):
    images, targets, keys = batch(64)
    result, mixed = mix(images, targets, section, keys)
    assert torch.equal(result, images) and torch.equal(mixed, targets)


def test_with_both_on_each_is_as_likely_as_the_other():
    pixels, _ = kept_of(SECTIONS["both"], side=16)
    blended = ((pixels > 0) & (pixels < 1)).flatten(1).any(dim=1)
    assert blended.float().mean().item() == pytest.approx(0.5, abs=0.04)
    assert set(pixels[~blended].flatten().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_with_one_on_it_is_always_that_one(name):
    pixels, _ = kept_of(SECTIONS[name], side=16)
    blended = ((pixels > 0) & (pixels < 1)).flatten(1).any(dim=1)
    assert blended.float().mean() > 0.99 if name == "mixup" else not blended.any()


@EVERY_SECTION
def test_it_is_a_function_of_the_keys_alone_and_leaves_what_it_was_given(section):
    images, targets, keys = batch(16)
    torch.manual_seed(0)
    first = mix(images, targets, section, keys)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    again = mix(images, targets, section, keys)
    assert all(torch.equal(*both) for both in zip(first, again, strict=True))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(images, batch(16)[0]) and torch.equal(targets, batch(16)[1])
    assert not torch.equal(mix(images, targets, section, keys + 1)[0], first[0])


def test_soft_targets_are_mixed_like_any_others():
    images, _, keys = batch(8)
    soft = torch.rand(8, 5, generator=torch.Generator().manual_seed(1)).softmax(dim=1)
    _, shares = mix(images, F.one_hot(torch.arange(8)).float(), SECTIONS["both"], keys)
    _, mixed = mix(images, soft, SECTIONS["both"], keys)
    assert torch.allclose(mixed, shares @ soft, atol=1e-6)
