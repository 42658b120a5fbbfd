"""The DeepSpeed JSON: every mistake is found before training, and a good one is read as it stands."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sparse_mlp_ds.config import deepspeed_json
from sparse_mlp_ds.config.deepspeed_json import DeepSpeedJson
from sparse_mlp_ds.errors import UserError

SHIPPED = sorted(Path(__file__).parents[2].glob("ds_configs/*.json"))


def problems(path):
    with pytest.raises(UserError) as error:
        deepspeed_json.load(None if path is None else str(path))
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
    "ZeRO-3, parameters elsewhere": (
        zero(stage=3, offload_param={"device": "cpu"}),
        ["zero_optimization.offload_param: not supported with stage 3", "remove it"],
    ),
    "ZeRO-3, hierarchy": (zero(stage=3, zero_hpz_partition_size=2), ["zero_optimization.zero_hpz_partition_size: not"]),
    "ZeRO-3, quantized": (
        zero(stage=3, zero_quantized_weights=True),
        ["zero_optimization.zero_quantized_weights: not"],
    ),
    "ZeRO-3, NVMe": (
        zero(stage=3, offload_optimizer={"device": "nvme", "nvme_path": "/tmp"}),
        ["zero_optimization.offload_optimizer.device: nvme", "set cpu"],
    ),
    "ZeRO-4": (zero(stage=4), ["zero_optimization.stage: expected 0, 1, 2 or 3, not 4"]),
    "ZeRO as text": (zero(stage="1"), ["zero_optimization.stage: expected 0, 1, 2 or 3, not '1'"]),
    "ZeRO as number with bf16": (
        with_clipping(zero_optimization=1, bf16={"enabled": True}),
        ["zero_optimization: expected an object"],
    ),
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
    "bf16 as word": (zero(stage=1) | {"bf16": {"enabled": "maybe"}}, ["bf16.enabled: expected true, false or auto"]),
    "fp16 auto": (zero(stage=1) | {"fp16": {"enabled": "auto"}}, ["fp16.enabled: expected true or false, not 'auto'"]),
    "auto without ZeRO": (with_clipping(bf16={"enabled": "auto"}), ["bf16 needs zero_optimization.stage 1"]),
    "auto beside fp16": (
        zero(stage=1) | {"bf16": {"enabled": "auto"}, "fp16": {"enabled": True}},
        ["bf16 and fp16 are both enabled; keep one"],
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
    assert "such as moe" in missing_file and "such as --ds_config moe" in missing_flag


def test_a_shipped_file_is_found_by_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert deepspeed_json.DS_CONFIGS.names() == [path.stem for path in SHIPPED]
    for path in SHIPPED:
        assert deepspeed_json.load(path.stem) == replace(deepspeed_json.load(str(path)), path=path.stem)
    (line,) = problems("moe_bf61")
    assert line == "--ds_config moe_bf61: no such DeepSpeed JSON; did you mean 'moe_bf16'?"


def test_a_file_in_the_working_folder_comes_before_a_shipped_one_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "moe").write_text('{"gradient_clipping": 7.0}')
    assert deepspeed_json.load("moe").raw == {"gradient_clipping": 7.0}


def test_every_problem_gets_its_line(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"optimiser": {}, "scheduler": {}, "bf16": {"on": True}, "zero_optimization": []}))
    keys = [line.removeprefix(f"{path}: ").partition(":")[0] for line in problems(path)]
    assert sorted(keys) == ["bf16.on", "gradient_clipping", "optimiser", "scheduler", "zero_optimization"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.parametrize("gpu", [True, False])
def test_a_shipped_file_loads_with_nothing_but_its_precision_settled(path, gpu):
    content, loaded = json.loads(path.read_text()), deepspeed_json.load(str(path), gpu)
    if content.get("bf16", {}).get("enabled") == "auto":
        content["bf16"]["enabled"] = gpu
    assert loaded.raw == content and loaded.path == str(path)


def test_the_file_of_the_readme_is_bf16_on_gpus_and_float32_on_cpus():
    assert [deepspeed_json.load("moe", gpu).precision for gpu in (True, False)] == ["bf16", "float32"]
    assert [deepspeed_json.load("moe_bf16", gpu).precision for gpu in (True, False)] == ["bf16", "bf16"]
    assert deepspeed_json.load("moe").precision == "float32", "this machine was asked"


def test_a_precision_that_a_file_states_is_not_changed():
    left_open, stated = deepspeed_json.load("moe", gpu=False), deepspeed_json.load("moe_bf16", gpu=False)
    assert left_open.settled("bf16").precision == "bf16" and stated.settled("float32").precision == "bf16"
    assert left_open.settled("fp16") == left_open


def test_a_full_file_loads(tmp_path):
    content = zero(stage=1, reduce_bucket_size=1000, overlap_comm=False) | {"steps_per_print": 10}
    content |= {"bf16": {"enabled": True}, "fp16": {"enabled": False}, "train_micro_batch_size_per_gpu": 8}
    (tmp_path / "ds.json").write_text(json.dumps(content))
    loaded = deepspeed_json.load(str(tmp_path / "ds.json"))
    assert loaded.raw == content
    assert (loaded.zero_stage, loaded.precision, loaded.clipping) == (1, "bf16", 1.0)


def test_the_file_that_messages_point_to_is_shipped():
    assert "moe.json" in [path.name for path in SHIPPED]


def test_what_is_left_out_is_deepspeeds_default():
    plain = DeepSpeedJson(with_clipping(bf16={"enabled": False}, fp16={}))
    assert (plain.zero_stage, plain.precision, plain.clipping) == (0, "float32", 1.0)
    assert DeepSpeedJson(with_clipping(fp16={"enabled": True})).precision == "fp16"


def test_clipping_is_switched_off_in_a_copy():
    loaded = DeepSpeedJson(zero(stage=1), "ds.json")
    assert loaded.without_clipping() == DeepSpeedJson(zero(stage=1) | {"gradient_clipping": 0.0}, "ds.json")
    assert loaded.clipping == 1.0


def test_single_keys_are_changed_on_the_command_line():
    changed = deepspeed_json.load("moe", False, ["zero_optimization.stage=1", "gradient_clipping=0.5"])
    assert (changed.zero_stage, changed.clipping) == (1, 0.5)
    assert deepspeed_json.load("moe", False).zero_stage == 2


@pytest.mark.parametrize(("change", "said"), [
    ("zero_optimization", "--ds zero_optimization: write it as dotted.key=value, for example --ds zero_optimization.s"),
    ("gradient_clipping.x.y=1", "--ds gradient_clipping.x.y=1: the key goes deeper than the DeepSpeed JSON; remove"),
    ("zero_optimization.stag=1", "moe: zero_optimization.stag: unknown key; did you mean 'stage'?"),
])  # fmt: skip
def test_a_bad_change_is_one_line(change, said):
    with pytest.raises(UserError) as error:
        deepspeed_json.load("moe", False, [change])
    assert len(str(error.value).splitlines()) == 1 and str(error.value).startswith(said)
