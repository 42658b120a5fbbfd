"""The DeepSpeed JSON: every mistake is found before training, and its batch keys multiply out with the recipe's."""

import json
from pathlib import Path

import pytest

from sparse_mlp_ds import ds_config
from sparse_mlp_ds.ds_config import Batch
from sparse_mlp_ds.errors import UserError

SHIPPED = sorted(Path(__file__).parents[2].glob("ds_configs/*.json"))


def problems(path):
    with pytest.raises(UserError) as error:
        ds_config.load(None if path is None else str(path))
    return str(error.value).splitlines()


def with_clipping(**config):
    return {"gradient_clipping": 1.0, **config}


def zero(**section):
    return with_clipping(zero_optimization=section)


# content -> what is said, a key first
BAD = {
    "unknown key": (with_clipping(zero_optimisation={}), ["zero_optimisation: unknown key; did you mean 'zero_opt"]),
    "misspelt clipping": (with_clipping(gradient_cliping=0.1), ["gradient_cliping: ", "'gradient_clipping'?"]),
    "nothing near": (with_clipping(qqq=1), ["qqq: unknown key; valid: bf16, comms_logger,"]),
    "optimizer": (with_clipping(optimizer={}), ["optimizer: belongs to the recipe", "stages.<stage>.optimizer there"]),
    "scheduler": (with_clipping(scheduler={}), ["scheduler: belongs to the recipe", "stages.<stage>.optimizer there"]),
    "wandb": (with_clipping(wandb={}), ["wandb: belongs to the recipe; remove it here and set log.wandb there"]),
    "expert order": (with_clipping(use_data_before_expert_parallelism=True), ["consecutive ranks; remove it"]),
    "ZeRO-3": (zero(stage=3), ["zero_optimization.stage: 3", "experts", "set 2"]),
    "ZeRO as text": (zero(stage="1"), ["zero_optimization.stage: expected 0, 1 or 2, not '1'"]),
    "ZeRO as number": (with_clipping(zero_optimization=1), ["zero_optimization: expected an object"]),
    "ZeRO key": (zero(reduce_buckt_size=5), ["zero_optimization.reduce_buckt_size: ", "'reduce_bucket_size'?"]),
    "ZeRO value": (zero(stage=1, reduce_bucket_size=-5), ["zero_optimization.reduce_bucket_size: ", "not -5"]),
    "ZeRO nested": (zero(offload_optimizer={"device": "gpu"}), ["zero_optimization.offload_optimizer.device: ", "gpu"]),
    "bf16 key": (with_clipping(bf16={"enable": True}), ["bf16.enable: unknown key; did you mean 'enabled'?"]),
    "bf16 as flag": (with_clipping(bf16=True), ['bf16: expected an object such as {"enabled": true}']),
    "bf16 without ZeRO": (
        with_clipping(bf16={"enabled": True}),
        ["bf16 needs zero_optimization.stage 1", "set 1"],
    ),
    "fp16 key": (with_clipping(fp16={"enabled": False, "loss_scael": 1}), ["fp16.loss_scael: ", "'loss_scale'?"]),
    "no clipping": ({}, ["gradient_clipping: must be given", "set 1.0, or 0.0 for none"]),
    "negative clipping": ({"gradient_clipping": -1}, ["gradient_clipping: expected a number >= 0, not -1"]),
    "auto clipping": ({"gradient_clipping": "auto"}, ["gradient_clipping: expected a number >= 0, not 'auto'"]),
    "clipping as flag": ({"gradient_clipping": True}, ["gradient_clipping: expected a number >= 0, not True"]),
    "batch auto": (with_clipping(train_batch_size="auto"), ["train_batch_size: ", "not 'auto'", "remove it"]),
    "batch 0": (with_clipping(gradient_accumulation_steps=0), ["gradient_accumulation_steps: ", "not 0"]),
    "batch fraction": (with_clipping(train_micro_batch_size_per_gpu=8.0), ["train_micro_batch_size_per_gpu: ", "8.0"]),
    "batch flag": (with_clipping(train_batch_size=True), ["train_batch_size: expected a positive integer, not True"]),
}


@pytest.mark.parametrize("content, said", BAD.values(), ids=BAD.keys())
def test_a_mistake_is_one_line_with_file_key_and_fix(tmp_path, content, said):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(content))
    lines = problems(path)
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"{path}: ")
    assert all(part in lines[0] for part in said), lines[0]


UNREADABLE = {
    "syntax": ('{"gradient_clipping": 1.0,}', ["not valid JSON", "line 1 column", "python -m json.tool"]),
    "duplicate": ('{"gradient_clipping": 1.0, "gradient_clipping": 2.0}', ["key 'gradient_clipping' is given twice"]),
    "nested duplicate": ('{"bf16": {"enabled": true, "enabled": false}}', ["key 'enabled' is given twice"]),
    "empty": ("", ["not valid JSON"]),
    "list": ("[1]", ["expected a JSON object; start from ds_configs/moe.json"]),
    "binary": (b"\xff\xfe{", ["not valid JSON"]),
}


@pytest.mark.parametrize("content, said", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_an_unreadable_file_is_named(tmp_path, content, said):
    path = tmp_path / "ds.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    lines = problems(path)
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"{path}: ")
    assert all(part in lines[0] for part in said), lines[0]


def test_a_missing_file_or_flag_points_to_the_default(tmp_path):
    (missing_file,), (missing_flag,) = problems(tmp_path / "gone.json"), problems(None)
    assert missing_file.startswith(f"--ds_config {tmp_path / 'gone.json'}: No such file")
    assert missing_flag.startswith("--ds_config is missing")
    assert "ds_configs/moe.json" in missing_file and "ds_configs/moe.json" in missing_flag


def test_every_problem_gets_its_line(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"optimiser": {}, "scheduler": {}, "bf16": {"on": True}, "zero_optimization": []}))
    keys = [line.removeprefix(f"{path}: ").partition(":")[0] for line in problems(path)]
    assert sorted(keys) == ["bf16.on", "gradient_clipping", "optimiser", "scheduler", "zero_optimization"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_file_loads_unchanged(path):
    assert ds_config.load(str(path)) == json.loads(path.read_text())


def test_a_full_file_loads(tmp_path):
    content = zero(stage=1, reduce_bucket_size=1000, overlap_comm=False) | {"steps_per_print": 10}
    content |= {"bf16": {"enabled": True}, "fp16": {"enabled": False}, "train_micro_batch_size_per_gpu": 8}
    (tmp_path / "ds.json").write_text(json.dumps(content))
    assert ds_config.load(str(tmp_path / "ds.json")) == content


def test_the_file_that_messages_point_to_is_shipped():
    assert "moe.json" in [path.name for path in SHIPPED]


def fixed(batch=None, micro=None, accumulation=None):
    keys = dict(zip(ds_config.BATCH_KEYS, (batch, micro, accumulation), strict=True))
    return {key: value for key, value in keys.items() if value is not None}


BATCHES = [
    # what the JSON fixes, the recipe's batch size, ranks -> micro, accumulation
    (fixed(), 128, 1, 128, 1),
    (fixed(), 128, 4, 32, 1),
    (fixed(batch=128), 128, 4, 32, 1),
    (fixed(micro=8), 128, 4, 8, 4),
    (fixed(micro=8), 128, 1, 8, 16),
    (fixed(accumulation=2), 128, 4, 16, 2),
    (fixed(micro=16, accumulation=2), 128, 4, 16, 2),
    (fixed(128, 16, 2), 128, 4, 16, 2),
]


@pytest.mark.parametrize("config, total, world, micro, accumulation", BATCHES)
def test_batch(config, total, world, micro, accumulation):
    made = ds_config.batch(config, "ds.json", "r.yaml", "s", total, world)
    assert made == Batch(total, micro, accumulation)
    assert made.micro * made.accumulation * world == total
    assert {made.weight(rank, world) for rank in range(world)} == {1.0}


UNEVEN = [
    # what the JSON fixes, the recipe's batch size, ranks, images that stay together -> images of each rank's turn
    (fixed(), 100, 3, 1, [33, 33, 34]),
    (fixed(), 4096, 24, 8, [168, 168, 176] * 8),
    (fixed(accumulation=2), 128, 3, 8, [16, 24, 24]),
]


@pytest.mark.parametrize("config, total, world, unit, images", UNEVEN)
def test_ranks_share_a_batch_that_does_not_divide(config, total, world, unit, images):
    made = ds_config.batch(config, "ds.json", "r.yaml", "s", total, world, unit)
    shares = [made.share(rank, world) for rank in range(world)]
    assert [len(share) for share in shares] == images and max(images) == made.micro
    assert [place for share in shares for place in share] == list(range(total // made.accumulation))
    weights = [made.weight(rank, world) for rank in range(world)]
    assert sum(weights) == pytest.approx(world)
    assert all(w / n == pytest.approx(weights[0] / images[0]) for w, n in zip(weights, images, strict=True))


def test_images_that_stay_together_are_not_parted_by_the_json():
    assert ds_config.batch(fixed(micro=16), "ds.json", "r.yaml", "s", 64, 2, unit=8) == Batch(64, 16, 2, 8)
    with pytest.raises(UserError, match="gpu 12 in ds.json would part 8 .* a multiple of 8"):
        ds_config.batch(fixed(micro=12), "ds.json", "r.yaml", "s", 48, 2, unit=8)


CONFLICTS = [
    # what the JSON fixes, the recipe's batch size, ranks -> what is said
    (fixed(batch=100), 128, 1, ["conflicts with train_batch_size 100", "remove train_batch_size there"]),
    (fixed(accumulation=3), 100, 3, ["does not divide over 3 ranks", "the nearest that does is 99"]),
    (fixed(), 2, 4, ["does not divide over 4 ranks", "the nearest that does is 4"]),
    (fixed(micro=48), 128, 1, ["train_micro_batch_size_per_gpu 48", "the nearest that does is 144"]),
    (fixed(micro=64), 128, 4, ["train_micro_batch_size_per_gpu 64", "the nearest that does is 256"]),
    (fixed(accumulation=3), 128, 2, ["gradient_accumulation_steps 3", "the nearest that does is 129"]),
]


@pytest.mark.parametrize("config, total, world, said", CONFLICTS)
def test_a_batch_that_does_not_multiply_out_names_both_files_and_the_nearest_that_does(config, total, world, said):
    with pytest.raises(UserError) as error:
        ds_config.batch(config, "my/ds.json", "my/r.yaml", "tune", total, world)
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"my/r.yaml: stages.tune.batch_size {total} ")
    assert "my/ds.json" in line
    assert all(part in line for part in said), line
    if "nearest" in line:
        nearest = int(line.rsplit(" ", 1)[1])
        assert ds_config.batch(config, "my/ds.json", "my/r.yaml", "tune", nearest, world).total == nearest
