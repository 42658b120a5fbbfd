"""Which tokens are hidden for masked language modelling: how many, which never, and by what they are replaced."""

import pytest
import torch

from sparse_mlp_ds import rng
from sparse_mlp_ds.data.masking import IGNORED, keys_of_held_out, mask
from sparse_mlp_ds.data.text_format import TextFormat

SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
VOCABULARY = 4096


def _text(length: int) -> TextFormat:
    return TextFormat(length, VOCABULARY, "0" * 64, SPECIAL, "documents")


def _rows(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """[CLS], tokens, [SEP]."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, VOCABULARY, (rows, length), generator=generator)
    tokens[:, 0], tokens[:, -1] = SPECIAL["cls"], SPECIAL["sep"]
    return tokens


def _keys(rows: int, seed: int = 0) -> torch.Tensor:
    return rng.sample_keys(seed, torch.arange(rows), "test")


@pytest.mark.parametrize(("length", "count"), [(128, 19), (512, 77)])
def test_every_full_row_has_the_same_number_of_places_none_of_them_special(length, count):
    tokens = _rows(200, length)
    masked = mask(tokens, _keys(200), _text(length))
    assert masked.places.shape == masked.targets.shape == (200, count)
    assert all(len(set(row.tolist())) == count for row in masked.places)
    assert (masked.places > 0).all() and (masked.places < length - 1).all()
    assert torch.equal(masked.targets, tokens.gather(1, masked.places))
    elsewhere = torch.ones_like(tokens, dtype=torch.bool).scatter(1, masked.places, False)
    assert torch.equal(masked.inputs[elsewhere], tokens[elsewhere])


def test_eight_of_ten_become_the_mask_one_another_token_and_one_stays():
    rows = 5300  # 100,700 places
    tokens = _rows(rows, 128)
    masked = mask(tokens, _keys(rows), _text(128))
    shown, n = masked.inputs.gather(1, masked.places), masked.targets.numel()
    became_mask = int((shown == SPECIAL["mask"]).sum())
    stayed = int((shown == masked.targets).sum())
    for counted, share in ((became_mask, 0.8), (stayed, 0.1), (n - became_mask - stayed, 0.1)):
        assert abs(counted - share * n) < 4 * (n * share * (1 - share)) ** 0.5
    random = shown[(shown != SPECIAL["mask"]) & (shown != masked.targets)]
    assert random.min() < 20 and random.max() > VOCABULARY - 20  # of the whole vocabulary, special tokens too
    assert abs(float(random.double().mean()) / VOCABULARY - 0.5) < 4 * (1 / 12 / len(random)) ** 0.5


def test_all_places_of_a_row_are_as_likely():
    rows, length = 4000, 128
    places = mask(_rows(rows, length), _keys(rows), _text(length)).places
    counts = torch.bincount(places.flatten(), minlength=length)[1:-1].double()
    expected = rows * 19 / 126
    assert ((counts - expected).abs() < 4.5 * expected**0.5).all()


def test_a_row_is_masked_the_same_way_in_any_batch():
    tokens, keys = _rows(64, 128), _keys(64)
    whole = mask(tokens, keys, _text(128))
    for size in (1, 7, 64):
        parts = [mask(t, k, _text(128)) for t, k in zip(tokens.split(size), keys.split(size), strict=True)]
        for name in ("inputs", "places", "targets"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    other = mask(tokens, _keys(64, seed=1), _text(128))
    assert not torch.equal(other.places, whole.places)


def test_held_out_rows_are_masked_by_their_number_alone():
    assert torch.equal(keys_of_held_out(torch.arange(10))[[7, 3]], keys_of_held_out(torch.tensor([7, 3])))


def test_short_rows_have_fewer_places_and_padding_is_never_one():
    tokens = _rows(3, 128)
    tokens[0, 41:], tokens[0, 40] = SPECIAL["pad"], SPECIAL["sep"]  # 41 tokens
    tokens[1, 3:], tokens[1, 2] = SPECIAL["pad"], SPECIAL["sep"]  # one token that is not special
    tokens[2, 1:] = SPECIAL["pad"]  # no such token
    masked = mask(tokens, _keys(3), _text(128))
    real = masked.targets != IGNORED
    assert real.sum(dim=1).tolist() == [round(0.15 * 41), 1, 0]
    assert (masked.places[0][real[0]] < 40).all()
    assert masked.places[1][0] == 1
    assert torch.equal(masked.inputs[2], tokens[2])
    assert (masked.inputs[:, 0] == SPECIAL["cls"]).all()
