"""Bad input ends train.py with code 2 and one line naming the file, the key and the fix, before any process group."""

import json
import shutil
from pathlib import Path

import pytest
import torch.distributed

from sparse_mlp_ds.shards import digits
from sparse_mlp_ds.train import main as train

REPOSITORY = Path(train.__file__).parents[2]
MOE = str(REPOSITORY / "ds_configs/moe.json")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Relative paths of the recipe lead into an empty folder."""
    monkeypatch.chdir(tmp_path)


def _refused(capsys, *arguments: str) -> str:
    assert train.main(list(arguments)) == 2
    assert not torch.distributed.is_initialized()
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert not Path("runs").exists(), "something was written"
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["--ds_config", "missing", "such as --ds_config moe"]),
        (["--ds_config", "nowhere.json"], ["nowhere.json", "No such file"]),
        (["--ds_config", MOE, "--recipe", "digitz"], ["--recipe digitz", "did you mean 'digits'"]),
        (["--ds_config", MOE, "--recipe", "mine.yaml"], ["mine.yaml", "No such file"]),
        (["--ds_config", MOE, "--set", "train.sed=1"], ["train.sed", "did you mean 'seed'"]),
        (["--ds_config", MOE, "--set", "moe.ep_size=3"], ["moe.ep_size 3", "4 experts", "moe_s", "set 1, or auto"]),
        (["--ds_config", MOE, "--set", "moe.ep_size=2"], ["moe.ep_size 2", "1 ranks", "set 1, or auto"]),
        (
            ["--ds_config", MOE, "--set", "moe.group_images=7"],
            ["batch_size 128", "7 images", "moe.group_images", "nearest that does is 126"],
        ),
        (["--ds_config", MOE, "--set", "stages.pretrain.batch_size=1600"], ["batch_size 1600", "1437 images"]),
        (["--ds_config", MOE, "--set", "data.train=empty"], ["empty: no shards", "sparse-mlp-ds shards make"]),
        (
            ["--ds_config", MOE, "--set", "data.classes=7"],
            ["outside the 7 classes", "worst is", "data.bad_limit"],
        ),
        (["--ds_config", MOE, "--resume", "gone/step_5"], ["gone/step_5", "not a checkpoint"]),
    ],
)
def test_refusal(capsys, arguments, parts):
    line = _refused(capsys, *arguments)
    assert all(part in line for part in parts), line


def test_refusal_of_compilation_without_a_compiler(capsys, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    line = _refused(capsys, "--ds_config", MOE, "--set", "train.compile=on")
    assert all(part in line for part in ["train.compile: on", "no C++ compiler", "install one", "train.compile: off"])


@pytest.mark.parametrize(
    ("ds_config", "parts"),
    [
        (
            {"gradient_clipping": 1.0, "zero_optimization": {"stage": 3}},
            ["zero_optimization.stage", "experts", "set 2"],
        ),
        ({"gradient_clipping": 1.0, "train_batch_size": 100}, ["digits.yaml", "bad.json", "conflicts", "remove"]),
        ({"gradient_clipping": 1.0, "train_micro_batch_size_per_gpu": 48}, ["batch_size 128", "48", "nearest", "144"]),
        ({"gradient_cliping": 1.0, "gradient_clipping": 1.0}, ["gradient_cliping", "did you mean 'gradient_clipping'"]),
    ],
)
def test_refusal_of_a_ds_config(capsys, ds_config, parts):
    Path("bad.json").write_text(json.dumps(ds_config))
    line = _refused(capsys, "--ds_config", "bad.json")
    assert all(part in line for part in parts), line


def test_refusal_of_heads_that_are_passed_twice_under_zero_3(capsys):
    ds = {"gradient_clipping": 1.0, "zero_optimization": {"stage": 3}, "gradient_accumulation_steps": 2}
    Path("three.json").write_text(json.dumps(ds))
    model = "model={name: vit_s16, image_size: 16, patch_size: 4, width: 16, depth: 2, heads: 2}"
    line = _refused(capsys, "--ds_config", "three.json", "--set", model)
    assert all(part in line for part in ("stages.pretrain.contrast", "ZeRO-3", "micro_batch", "three.json")), line


def test_another_run_in_the_folder_is_not_continued(capsys):
    digits.make(Path("data/digits"))
    assert train.main(["--ds_config", MOE, "--check"]) == 0
    plan = capsys.readouterr().out
    assert "128 images = 128 x 1 accumulated x 1 ranks" in plan and "memory per rank" in plan
    assert not Path("runs").exists(), "--check wrote something"

    other = Path("other")
    (other / "checkpoints/step_3").mkdir(parents=True)
    shutil.copy(REPOSITORY / "sparse_mlp_ds/recipes/digits.yaml", other / "config.yaml")
    line = _refused(capsys, "--ds_config", MOE, "--out", "other", "--set", "train.seed=5")
    assert "other/config.yaml" in line and "--resume never" in line


def test_tars_beside_an_index_that_does_not_list_them_are_said(capsys):
    digits.make(Path("data/digits"))
    for split in ("train", "val"):
        shutil.copy(f"data/digits/{split}/digits-000000.tar", f"data/digits/{split}/more.tar")
    assert train.main(["--ds_config", MOE, "--check"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WARNING: ")]
    assert len(lines) == 2
    for split, line in zip(("train", "val"), lines, strict=True):
        assert f"data/digits/{split}: not read, because the index does not list them: 1 tars (more.tar)" in line


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stages.pretrain.epochs=1", "warmup_epochs 4 exceeds its 1 epochs"),
        ("stages.pretrain.optimizer.final_lr=0.01", "final_lr 0.01 exceeds the peak learning rate 0.001"),
    ],
)
def test_what_a_schedule_hardly_means_is_said(override, said, capsys):
    digits.make(Path("data/digits"))
    assert train.main(["--ds_config", MOE, "--check", "--set", override]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "WARNING" in line]
    assert "stage pretrain" in line and said in line


# ---- memory


def _checked(capsys, *arguments: str) -> tuple[int, str]:
    """Return the exit code of `--check` and the last line that it printed."""
    code = train.main(["--check", *arguments])
    streams = capsys.readouterr()
    return code, (streams.err if code else streams.out).strip().splitlines()[-1]


def test_what_does_not_fit_is_refused_with_the_largest_micro_batch_that_does(capsys):
    digits.make(Path("data/digits"))

    def with_micro(micro: int | None) -> tuple[int, str]:
        zero = {"zero_optimization": {"stage": 2, "reduce_bucket_size": 100_000}, "gradient_clipping": 1.0}
        Path("ds.json").write_text(json.dumps(zero | ({"train_micro_batch_size_per_gpu": micro} if micro else {})))
        return _checked(capsys, "--ds_config", "ds.json", "--device-memory", "128MiB")

    code, line = with_micro(None)
    assert code == 2 and "stage pretrain needs" in line and "the device has 128.0 MiB" in line
    micro = int(line.partition('set "train_micro_batch_size_per_gpu": ')[2].split()[0])
    assert line.endswith(f"{micro} in ds.json, the largest that fits")
    code, line = with_micro(micro)
    assert code == 0 and line.startswith("memory per rank: ") and "of 128.0 MiB at most" in line
    assert with_micro(2 * micro)[1].startswith(("WARNING", "error")), "twice as many would fit as well"


def test_where_no_micro_batch_fits_it_is_said(capsys):
    digits.make(Path("data/digits"))
    code, line = _checked(capsys, "--ds_config", MOE, "--device-memory", "100MB")  # less than ZeRO's bucket
    assert code == 2 and "no micro-batch fits" in line


def test_a_check_for_a_gpu_says_its_precision(capsys):
    digits.make(Path("data/digits"))
    for arguments, said in ([], "float32 (auto: on CPUs)"), (["--device-memory", "80GB"], "bf16 (auto: on GPUs)"):
        assert train.main(["--check", "--ds_config", MOE, *arguments]) == 0
        assert said in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--check", "--device-memory", "80"], ["--device-memory", "80GB"]])
def test_a_size_of_memory_that_means_nothing_is_refused(capsys, arguments):
    with pytest.raises(SystemExit) as left:
        train.main(["--ds_config", MOE, *arguments])
    assert left.value.code == 2 and "--device-memory" in capsys.readouterr().err.splitlines()[-1]
