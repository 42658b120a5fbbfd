"""Two lists of class names: every kind of difference, at every place where two lists meet."""

import pytest

from sparse_mlp_ds.config.loading import load_recipe
from sparse_mlp_ds.data import class_names
from sparse_mlp_ds.data.class_names import ClassList
from sparse_mlp_ds.hub.load import class_list, load_model
from sparse_mlp_ds.shards.scan import make_index
from tests.helpers.made_checkpoints import call, edit, finished, save
from tests.helpers.named_shards import NAMES, check, shards
from tests.helpers.tars import refusal, sample, write_tar

NUMBERS = ["0", "1", "2", "3", "4"]
DIFFERENT = {
    # first list, second list, and the first pair that differs, as it is shown
    "other classes": (NAMES, ["bee", "cat", "dog", "elk", "fox"], ("class 0", "'ant'", "'bee'")),
    "one other class": (NAMES, ["ant", "bee", "cow", "dog", "elk"], ("class 2", "'cat'", "'cow'")),
    "a permutation of names": (NAMES, ["ant", "cat", "bee", "dog", "elk"], ("class 1", "'bee'", "'cat'")),
    "a permutation of numbers": (NUMBERS, ["0", "1", "10", "11", "2"], ("class 2", "'2'", "'10'")),
    "numbers from 1 on": (NUMBERS, ["1", "2", "3", "4", "5"], ("class 0", "'0'", "'1'")),
    "numbers that are no labels, and names": (NAMES, ["ant", "7", "cat", "dog", "elk"], ("class 1", "'bee'", "'7'")),
    "numbers sorted as text, and names": (["0", "1", "10", "11", "2"], NAMES, ("class 2", "'10'", "'cat'")),
    "a name that hides a line break": (NAMES, ["ant\nerror: x", *NAMES[1:]], ("class 0", "'ant'", r"'ant\nerror: x'")),
    "another case": (NAMES, ["Ant", *NAMES[1:]], ("class 0", "'ant'", "'Ant'")),
    "more names than classes": (NAMES, [*NAMES, "fox"], ("class 5", "'fox'", "5")),
}
ALIKE = {
    "the same": (NAMES, NAMES),
    "the same numbers": (NUMBERS, NUMBERS),
    "one has no images of the last classes": (NAMES, NAMES[:3]),
    "numbers, of which one has fewer": (NUMBERS, NUMBERS[:3]),
    "numbers with zeros in front": (NUMBERS, ["00", "01", "02", "03", "04"]),
    "numbers that version 0.1.0 sorted as text": (["0", "1", "10", "11", "2"], ["0", "1", "10", "11", "2"]),
    "accents coded in two ways": (["caf\u00e9", *NAMES[1:]], ["cafe\u0301", *NAMES[1:]]),
}
UNNAMED = {
    "one has names": (NAMES, NUMBERS),
    "one has names and more images": (NAMES, NUMBERS[:3]),
    "one names some": (NAMES, ["ant", "bee", "cat", "3", "4"]),  # as version 0.1.0 filled up names
}
"""Where nobody can tell: it is said, and goes on."""


def compare(first, second, classes=5):
    return class_names.agree([ClassList("one", first), ClassList("two", second)], classes, f"there are {classes}")


@pytest.mark.parametrize("first, second, shown", DIFFERENT.values(), ids=DIFFERENT)
def test_the_first_pair_that_differs_is_named(first, second, shown):
    for one, two in ((first, second), (second, first)):
        line = refusal(compare, one, two)
        assert all(part in line for part in shown), line
        assert "two" in line or len(one) > 5, "whose name it is"


@pytest.mark.parametrize("first, second", ALIKE.values(), ids=ALIKE)
def test_lists_that_mean_the_same_agree_in_silence(first, second):
    assert compare(first, second) == (first, [])
    assert compare(second, first) == (second + first[len(second) :], [])


@pytest.mark.parametrize("first, second", UNNAMED.values(), ids=UNNAMED)
def test_a_lack_of_names_is_said_and_the_names_count(first, second):
    for one, two in ((first, second), (second, first)):
        names, (remark,) = compare(one, two)
        assert names == NAMES
        assert remark.startswith("two: has no name" if two is second else "one: has no name") and "--classes" in remark


def test_names_of_one_source_are_held_against_every_other():
    """A first list without names does not hide that the second and the third differ."""
    lists = [ClassList("a", NUMBERS), ClassList("b", NAMES), ClassList("c", ["bee", *NAMES[1:]])]
    line = refusal(class_names.agree, lists, 5, "there are 5")
    assert line.startswith("c: class 0 is 'bee', but 'ant' in b")


def test_fewer_names_than_classes_are_refused_and_missing_numbers_filled_in():
    line = refusal(compare, NAMES[:3], NAMES[:2])
    assert "there are 5, but 3 classes are named" in line and "'cat'" in line
    assert compare(NUMBERS[:2], NUMBERS[:3]) == (NUMBERS, [])
    assert class_names.agree([], 2, "") == (["0", "1"], [])
    assert compare(NUMBERS, NUMBERS, 3)[0] == NUMBERS[:3], "images of further classes count as bad, one by one"


def test_a_hostile_name_does_not_fill_the_screen():
    line = refusal(compare, ["9" * 9999], ["x" * 9999], 1)
    assert len(line) < 600


# Every place where two lists meet, as a function of (folder, first list, second list) that returns the exit code, what
# was said, and the complaints.


def val_data(capsys, folder, first, second):
    shards(folder / "train", first), shards(folder / "val", second)
    return check(capsys, folder)


def training_mixture(capsys, folder, first, second):
    shards(folder / "train", first), shards(folder / "more", second), shards(folder / "val", first)
    return check(capsys, folder, "data.train=[train,more]")


def val_mixture(capsys, folder, first, second):
    shards(folder / "train", first), shards(folder / "val", first), shards(folder / "more", second)
    return check(capsys, folder, "data.val=[val,more]")


def evaluated_model(capsys, folder, first, second):
    return call(capsys, "evaluate", save(folder, classes=first), shards(folder / "val", second), "--workers=0")


def evaluated_export(capsys, folder, first, second):
    call(capsys, "export", save(folder, classes=first), folder / "out")
    return call(capsys, "evaluate", folder / "out", shards(folder / "val", second), "--workers=0")


def head_of_a_checkpoint(capsys, folder, first, second):
    shards(folder / "train", second), shards(folder / "val", second)
    return check(capsys, folder, f"stages.train.init_from.path={save(folder, classes=first)}")


def head_of_a_run(capsys, folder, first, second):
    shards(folder / "train", second), shards(folder / "val", second)
    save(folder / "run/checkpoints", classes=first)
    return check(capsys, folder, "stages.train.init_from.path=run")


def head_of_an_export(capsys, folder, first, second):
    shards(folder / "train", second), shards(folder / "val", second)
    call(capsys, "export", save(folder, classes=first), folder / "out")
    return check(capsys, folder, "stages.train.init_from.path=out")


def continued_checkpoint(capsys, folder, first, second):
    shards(folder / "train", second), shards(folder / "val", second)
    check(capsys, folder)
    resolved = load_recipe(str(folder / "recipe.yaml"), []).model_dump(mode="json")
    path = save(folder, progress=finished("train"), classes=first, recipe=resolved)
    return check(capsys, folder, resume=path)


def remade_tars(capsys, folder, first, second):
    tars = [shards(folder / "a", first), shards(folder / "b", second)]
    return call(capsys, "shards", "make", "wds", *tars, folder / "out", "--workers=1")


def verified_splits(capsys, folder, first, second):
    shards(folder / "train", first), shards(folder / "val", second)
    return call(capsys, "shards", "verify", folder, "--workers=1")


PLACES = (
    verified_splits, val_data, training_mixture, val_mixture, evaluated_model, evaluated_export, head_of_a_checkpoint,
    head_of_a_run, head_of_an_export, continued_checkpoint, remade_tars,
)  # fmt: skip
KINDS_FOR_PLACES = ("other classes", "a permutation of names", "a permutation of numbers")
"""The kinds that every place is tried with; `agree` itself is tried with all."""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("kind", KINDS_FOR_PLACES)
@pytest.mark.parametrize("place", PLACES)
def test_every_place_refuses_lists_that_differ(capsys, tmp_path, place, kind):
    first, second, shown = DIFFERENT[kind]
    code, _, lines = place(capsys, tmp_path, first, second)
    (line,) = lines
    assert code == 2 and line.startswith("error: ") and all(part in line for part in shown), line


@pytest.mark.parametrize("kind", ["the same", "numbers with zeros in front"])
@pytest.mark.parametrize("place", PLACES)
def test_every_place_takes_lists_that_agree(capsys, tmp_path, place, kind):
    code, said, lines = place(capsys, tmp_path, *ALIKE[kind])
    assert (code, lines) == (0, []) and "has no name" not in said


@pytest.mark.parametrize("place", [place for place in PLACES if place not in (continued_checkpoint, verified_splits)])
def test_every_place_says_that_names_are_lacking(capsys, tmp_path, place):
    """But for a checkpoint that goes on, because to name its classes is what the remark asks for, and for `verify`."""
    code, said, lines = place(capsys, tmp_path, NUMBERS, NAMES)
    text = "\n".join([said, *lines])
    assert code == 0 and "has no name for class 0, which is 'ant'" in text, text


@pytest.mark.parametrize("place", [val_data, training_mixture, evaluated_model, evaluated_export])
def test_a_class_too_many_is_named(capsys, tmp_path, place):
    code, _, (line,) = place(capsys, tmp_path, NAMES, [*NAMES, "fox"])
    assert code == 2 and "class 5" in line and "'fox'" in line


def test_images_of_a_class_too_many_are_named_with_it(capsys, tmp_path):
    shards(tmp_path / "train", NAMES)
    write_tar(tmp_path / "val/a.tar", *sample("a", 5), *sample("b", 0))
    make_index(tmp_path / "val", [*NAMES, "fox"])
    code, _, (line,) = check(capsys, tmp_path)
    assert code == 2 and "has label 5 ('fox'), outside the 5 classes of data.classes" in line


def test_data_classes_is_compared(capsys, tmp_path):
    for part in ("train", "val"):
        shards(tmp_path / part, NAMES)
    code, said, complaints = check(capsys, tmp_path, "data.classes=8")
    assert code == 0 and not complaints, "more may come"
    (line,) = [line for line in said.splitlines() if line.startswith("WARNING")]
    assert "data.train train: has 5 classes, but data.classes is 8: the last 3 would be learnt from no images" in line
    code, _, (line,) = check(capsys, tmp_path, "data.classes=4")
    assert code == 2 and "has label 4 ('elk'), outside the 4 classes of data.classes" in line
    code, _, (line,) = check(capsys, tmp_path, "data.classes=4", "data.bad_limit=0.5")
    assert code == 2 and "data.train train: class 4 is 'elk', but data.classes is 4" in line


def test_pretraining_alone_mixes_what_it_likes(capsys, tmp_path):
    """It needs no labels; only its k-NN figures do, and that is said."""
    shards(tmp_path / "train", NAMES), shards(tmp_path / "val", ["bee", *NAMES[1:]])
    optimizer = {"name": "adamw", "base_lr": 0.001}
    pretrain = {"kind": "pretrain", "epochs": 1, "batch_size": 4, "views": [{}, {}], "optimizer": optimizer}
    code, said, lines = check(capsys, tmp_path, stages={"pretrain": pretrain})
    assert (code, lines) == (0, [])
    assert "WARNING: data.val val: class 0 is 'bee', but 'ant' in data.train train" in said and "k-NN" in said


def test_a_checkpoint_of_pretraining_goes_on_with_other_classes(capsys, tmp_path):
    code, _, lines = continued_checkpoint(capsys, tmp_path, NAMES, NAMES)
    assert (code, lines) == (0, [])
    edit(tmp_path / "step_4", lambda tree: tree.update(classes=["x", "y"], progress={"step": 4, "stage": None}))
    assert check(capsys, tmp_path, resume=tmp_path / "step_4")[0] == 0, "nothing was trained on labels yet"


def test_a_head_can_be_left_out(capsys, tmp_path):
    code, _, (line,) = head_of_an_export(capsys, tmp_path, NAMES, ["bee", *NAMES[1:]])
    assert code == 2 and "recipe.yaml: stages.train.init_from.head: false" in line
    fresh = ("stages.train.init_from.path=out", "stages.train.init_from.head=false")
    assert check(capsys, tmp_path, *fresh)[0] == 0


def test_a_head_that_does_not_fit_is_not_compared(capsys, tmp_path):
    for part in ("train", "val"):
        shards(tmp_path / part, ["bee", "cat"])
    path = save(tmp_path, classes=NAMES)
    assert check(capsys, tmp_path, f"stages.train.init_from.path={path}", "data.classes=2")[0] == 0


def test_a_file_of_weights_has_no_names(tmp_path):
    (tmp_path / "weights.npz").write_bytes(b"")
    assert class_list(tmp_path / "weights.npz").names == ()


def test_names_that_version_0_1_0_wrote_are_doubted_once(tmp_path):
    path = save(tmp_path, classes=NAMES)
    assert load_model(path).remarks == ()
    edit(path, lambda tree: tree.update(version="0.1.0"))
    (remark,) = load_model(path).remarks
    assert "data.val" in remark and "'ant'" in remark
    edit(path, lambda tree: tree.update(classes=NUMBERS))
    assert load_model(path).remarks == ()
