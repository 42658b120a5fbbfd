"""Every command with every path that it takes, spoiled in every way: one line, exit code 2, and nothing is left."""

import json
import os
import shutil
from pathlib import Path
from typing import get_args, get_type_hints

import fsspec
import pytest
from PIL import Image

import sparse_mlp_ds.config.stages
import sparse_mlp_ds.data.config
from sparse_mlp_ds.cli import main as cli
from sparse_mlp_ds.config.arguments import as_location, as_path
from sparse_mlp_ds.data.config import LocalOrRemote, LocalPath, WeightsPlace
from sparse_mlp_ds.data.tokenizer import Tokenizer
from sparse_mlp_ds.schema import Section
from sparse_mlp_ds.shards import sentence_pieces
from sparse_mlp_ds.train import flags
from tests.helpers import bad_paths, permissions, text_checkpoints, text_sets, version_0_1_0
from tests.helpers.tars import sample, write_tar
from tests.unit.test_cli_main import PARSERS

pytestmark = pytest.mark.skipif(bool(permissions.why_not()), reason=permissions.why_not())

_SPEC = " ".join(
    f"--set model.{key}={json.dumps(value, separators=(',', ':'))}"
    for key, value in json.loads((version_0_1_0.EXPORT / "config.json").read_text())["spec"].items()
    if key != "family"
)
_TEXT_SPEC = " ".join(
    f"--set model.{key}={json.dumps(value, separators=(',', ':'))}"
    for key, value in text_checkpoints.spec().model_dump().items()
    if key != "family"
)
_DISTILS = "--set model.name=vit_s16 --set model.image_size=16 --set model.distillation_token=true"
TRAIN = "train --check --recipe tiny.yaml --ds_config ds.json"
COMMANDS = {
    # a command that works, with what each of its paths is
    "shards make imagefolder photos OUT": {"photos": "folder", "OUT": "new folder"},
    "shards make wds tars/a.tar OUT": {"tars/a.tar": "file", "OUT": "new folder"},
    "shards make digits OUT": {"OUT": "new folder"},
    "shards make cifar10 junk.tar.gz OUT": {"junk.tar.gz": "file", "OUT": "new folder"},
    "shards make imagenet photos OUT": {"photos": "folder", "OUT": "new folder"},
    "shards make text texts OUT --length 8 --tokenizer t.model": {
        "texts": "folder", "OUT": "new folder", "t.model": "file"
    },
    "shards make squad dev.json OUT --length 24 --stride 4 --tokenizer t.model": {
        "dev.json": "file", "OUT": "new folder"
    },
    "shards verify tars": {"tars": "folder"},
    "shards index tars --classes classes.txt": {"tars": "folder", "classes.txt": "file"},
    "shards index memory://tars --out index.json": {"index.json": "new file"},
    "shards show tiny.yaml --out views.png": {"tiny.yaml": "file", "views.png": "new file"},
    "recipe show tiny.yaml": {"tiny.yaml": "file"},
    "recipe diff tiny.yaml tiny2.yaml": {"tiny.yaml": "file", "tiny2.yaml": "file"},
    "recipe new both --model sparse_mlp_digits --out new.yaml": {"both": "folder", "new.yaml": "new file"},
    "sweep sweep.yaml --recipe tiny.yaml --ds_config ds.json --out OUT": {
        "sweep.yaml": "file", "tiny.yaml": "file", "ds.json": "file", "OUT": "new folder"
    },
    "sweep sweep.yaml --table --out OUT": {"OUT": "new folder"},
    "sweep --table results.jsonl --out OUT": {"results.jsonl": "file", "OUT": "new folder"},
    "sweep sweep.yaml --results results.jsonl --out OUT": {"results.jsonl": "file", "OUT": "new folder"},
    "checkpoint inspect run": {"run": "folder"},
    "checkpoint verify run": {"run": "folder"},
    "checkpoint diff run run2": {"run": "folder", "run2": "folder"},
    "checkpoint prune run --keep 1": {"run": "folder"},
    "checkpoint mirror run memory://mirror": {"run": "folder"},
    "export run OUT": {"run": "folder", "OUT": "new folder"},
    f"import w.safetensors OUT --classes classes.txt --model sparse_mlp_digits {_SPEC}": {
        "w.safetensors": "file", "OUT": "new folder", "classes.txt": "file"
    },
    "export text OUT --tokenizer t.model": {"text": "folder", "OUT": "new folder", "t.model": "file"},
    f"import t.safetensors OUT --tokenizer t.model --model gmlp_text_speeches {_TEXT_SPEC}": {
        "t.safetensors": "file", "OUT": "new folder", "t.model": "file"
    },
    "predict export image.png": {"export": "folder", "image.png": "file"},
    "predict text --tokenizer t.model --text union": {"text": "folder", "t.model": "file"},
    "embed export photos --out OUT.npy": {"export": "folder", "photos": "folder", "OUT.npy": "new file"},
    "evaluate export tars": {"export": "folder", "tars": "folder"},
    "report reported": {"reported": "folder"},
    "report reported reported2 --out new.html": {"reported": "folder", "reported2": "folder", "new.html": "new file"},
    "routes export tars --out OUT": {"export": "folder", "tars": "folder", "OUT": "new folder"},
    "doctor --hostfile hosts --recipe tiny.yaml --ds_config ds.json": {"hosts": "file", "tiny.yaml": "file"},
    f"{TRAIN} --out OUT": {"tiny.yaml": "file", "ds.json": "file", "OUT": "new folder"},
    f"{TRAIN} --out OUT --resume run/checkpoints/step_3": {"run/checkpoints/step_3": "folder"},
    f"{TRAIN} --out OUT --set data.train.0.path=tars": {"tars": "folder"},
    f"{TRAIN} --out OUT --set data.val.0.index=tars/index.json": {"tars/index.json": "file"},
    f"{TRAIN} --out OUT --set stages.train.init_from.path=export": {"export": "folder"},
    f"{TRAIN} --out OUT --set stages.train.init_from.path=w.safetensors": {"w.safetensors": "file"},
    f"{TRAIN} --out OUT {_DISTILS} --set stages.train.distill.teacher=export": {"export": "folder"},
}  # fmt: skip
WRITING = [
    # "imagenet" and "junk" are refused for what they are before anything is written
    command
    for command, paths in COMMANDS.items()
    if "new" in str(paths) and not {"imagenet", "junk.tar.gz"} & {*command.split()}
]
UNREAD = {
    ("shards show", "_link_to_itself"),  # the link is replaced by the picture
    ("shards index memory", "_link_to_itself"),  # likewise
    ("--out new.html", "_link_to_itself"),  # here by the report
    ("--out OUT.npy", "_link_to_itself"),  # and here by the array
    ("doctor", "ds.json"),  # only compared between hosts
    ("stages.train.init_from.path=w.safetensors", "_no_utf8"),  # its content is read when the stage starts
    ("stages.train.init_from.path=w.safetensors", "_empty"),
}
KEYS = {"Source.path", "Source.index", "InitFrom.path", "Distill.teacher", "RemoteCache.folder"}
"""The recipe's keys that are paths; `test_cache` spoils the cache's folder, which only remote tars need."""
RESULT = {
    "sweep": "s", "variant": "run", "seed": 7, "stage": "train", "top1": 0.5, "loss": 1.0, "train_loss": 1.0,
    "params": 9, "params_active": 9, "macs": 9, "steps": 1, "images": 8, "seconds": 1.0, "commit": None
}  # fmt: skip
TINY = """
name: tiny
data: {train: [{path: tars}], val: [{path: tars}], classes: 3, workers: 0}
model: {name: sparse_mlp_digits}
stages:
  train:
    kind: supervised
    epochs: 1
    batch_size: 8
    optimizer: {name: adamw, base_lr: 1.0e-3}
    view: {}
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder in which every command of COMMANDS would do its work."""
    folder = tmp_path_factory.mktemp("workplace")
    before = Path.cwd()
    os.chdir(folder)
    try:
        for name in ("ant", "bee", "cat"):
            Path(f"photos/{name}").mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(f"photos/{name}/0.png")
        write_tar(folder / "tars/a.tar", *(part for n in range(12) for part in sample(f"{n}", n % 3)))
        cli.main(["shards", "index", "tars"])
        fsspec.filesystem("memory").pipe("/tars/a.tar", (folder / "tars/a.tar").read_bytes())
        for name in ("train", "val"):
            shutil.copytree("tars", f"both/{name}")
        shutil.copytree(version_0_1_0.FOLDER / "run", "run")
        shutil.copytree(version_0_1_0.FOLDER / "run", "run2")
        shutil.copytree(version_0_1_0.EXPORT, "export")
        shutil.copy("export/model.safetensors", "w.safetensors")
        Image.new("RGB", (8, 8)).save("image.png")
        Path("texts").mkdir()
        for number in range(9):
            Path(f"texts/{number}.txt").write_text(text_sets.sentence(number, words=30))
        sentence_pieces.train((text_sets.sentence(number) for number in range(60)), 340, Path("t.model"))
        text_checkpoints.save(folder / "text/checkpoints", "mlm", Tokenizer(Path("t.model")))
        cli.main(["export", "text", "text_export", "--tokenizer", "t.model"])
        shutil.copy("text_export/model.safetensors", "t.safetensors")
        asked = {"id": "a", "question": "Is?", "answers": []}
        paragraphs = [{"context": text_sets.sentence(0), "qas": [asked]}]
        Path("dev.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
        for name in ("reported", "reported2"):
            Path(name).mkdir()
            Path(f"{name}/metrics.jsonl").write_text('{"stage": "train", "step": 1, "loss": 2.0}\n')
        texts = {"tiny.yaml": TINY, "tiny2.yaml": TINY,
                 "ds.json": '{"gradient_clipping": 1.0}', "classes.txt": "\n".join("abcdefghij"),
                 "hosts": "localhost slots=1\n", "junk.tar.gz": "junk",
                 "sweep.yaml": "name: s\nrecipe: tiny.yaml\nmetrics: [train.top1]\n",
                 "results.jsonl": json.dumps(RESULT)}  # fmt: skip
        for name, text in texts.items():
            Path(name).write_text(text)
        yield folder
    finally:
        os.chdir(before)


def call(capsys, *arguments):
    """Run a command as a user without the superuser's rights; return its exit code and its lines of complaint."""
    with permissions.bound():
        try:
            cli.main(list(arguments))
            code = 0
        except SystemExit as end:
            code = end.code
    return code, capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    "command, path, fault",
    [
        pytest.param(command, path, fault, id=f"{command[:60]}: {path} {fault.__name__}")
        for command, paths in COMMANDS.items()
        for path, kind in paths.items()
        for fault in bad_paths.FAULTS[kind]
        if not any(part in command and word in (path, fault.__name__) for part, word in UNREAD)
    ],
)
def test_a_path_that_cannot_be_used_is_named_in_one_line(capsys, workplace, command, path, fault):
    (workplace / "bad").mkdir()
    try:
        bad = fault(Path("bad"), path)
        arguments = [bad if word == path else word.replace(f"={path}", f'="{bad}"') for word in command.split()]
        before = {one for one in workplace.rglob("*") if one.parts[-2:-1] != ("__pycache__",)}
        code, lines = call(capsys, *arguments)
        left = {one for one in workplace.rglob("*") if one not in before}
        assert code == 2, lines
        assert lines and all(line.startswith("error: ") for line in lines), lines
        assert len(set(lines)) <= 2, lines
        if fault is not bad_paths.FAULTS["folder"][-1]:  # `shards make` goes on after unreadable files were mended
            assert not left
    finally:
        bad_paths.removed(workplace / "bad")
        shutil.rmtree(workplace / "OUT", ignore_errors=True)


@pytest.mark.parametrize("disk", ["full", "read-only"])
@pytest.mark.parametrize("command", WRITING, ids=lambda command: command[:60])
def test_a_disk_that_takes_nothing_is_named_in_one_line(capsys, workplace, command, disk):
    """While a command is set up; what a run does when a disk fills later is another matter."""
    (path,) = [path for path, kind in COMMANDS[command].items() if kind.startswith("new")]
    (workplace / "disk").mkdir()
    try:
        with bad_paths.small_disk(workplace / "disk", "ro" if disk == "read-only" else "rw"):
            if disk == "full":
                (workplace / "disk/filler").write_bytes(bytes(4096))
            before = list((workplace / "disk").rglob("*"))
            code, lines = call(capsys, *(f"disk/{path}" if word == path else word for word in command.split()))
            reason = {"full": "No space left on device", "read-only": "Read-only file system"}[disk]
            assert code == 2 and len(lines) == 1 and lines[0].startswith("error: ") and reason in lines[0], lines
            left = [one for one in (workplace / "disk").rglob("*") if one not in before]
            assert not left or command.startswith("shards make"), left  # which goes on when there is room again
    finally:
        (workplace / "disk").rmdir()


@pytest.mark.parametrize("command", COMMANDS)
def test_an_empty_path_is_refused_and_not_taken_for_this_folder(capsys, workplace, command):
    """A variable that is not set: `--out "$OUT"`."""
    for path in COMMANDS[command]:
        if path in command.split():
            code, lines = call(capsys, *("" if word == path else word for word in command.split()))
            assert code == 2 and "is empty" in lines[-1], lines


def test_every_argument_that_is_a_path_is_tried():
    """A new command, or a new flag that takes a path, needs an entry above."""
    parsers = PARSERS | {"sparse-mlp-ds train": flags.flags("sparse-mlp-ds train")}
    for name, parser in parsers.items():
        words = name.split()[1:]
        commands = [command for command in COMMANDS if command.split()[: len(words)] == words]
        for action in parser._actions:
            assert action.type is not Path, f"{name} {action.dest}: as_path also expands ~ and refuses an empty path"
            if action.type not in (as_path, as_location):
                continue
            if action.option_strings:
                assert any(action.option_strings[0] in command.split() for command in commands), (name, action.dest)
            else:
                assert commands, (name, action.dest)


def test_every_key_of_a_recipe_that_is_a_path_is_known():
    found = set()
    for module in (sparse_mlp_ds.config.stages, sparse_mlp_ds.data.config):
        for section in vars(module).values():
            if isinstance(section, type) and issubclass(section, Section) and section is not Section:
                hints = get_type_hints(section, include_extras=True)
                found |= {
                    f"{section.__name__}.{name}"
                    for name, hint in hints.items()
                    if name in section.__annotations__
                    and {LocalPath, LocalOrRemote, WeightsPlace} & {hint, *get_args(hint)}
                }
    assert found == KEYS


@pytest.mark.parametrize("variable", ["~", "$HERE", "${HERE}"])
def test_home_and_variables_are_filled_in(capsys, workplace, monkeypatch, variable):
    """The shell does it for `--out ~/x`, but neither for `--out=~/x` nor inside quotes."""
    monkeypatch.setenv("HERE", str(workplace))
    monkeypatch.setenv("HOME", str(workplace))
    assert call(capsys, "checkpoint", "verify", f"{variable}/run")[0] == 0
    recipe, ds_config = f"--recipe={variable}/tiny.yaml", f"--ds_config={variable}/ds.json"
    assert call(capsys, "train", "--check", recipe, ds_config, f"--out={variable}/new")[0] == 0
    assert call(capsys, "sweep", f"{variable}/sweep.yaml", "--list", f"--out={variable}/new")[0] == 0
