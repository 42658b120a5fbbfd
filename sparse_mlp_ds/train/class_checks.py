"""Whether all that a run brings together means the same classes: its data, weights with a head, and a teacher."""

from sparse_mlp_ds.config.recipe import Recipe
from sparse_mlp_ds.config.stages import ClassifierStage, ImageClassifierStage, MaskedLM, Pretrain, TrainingStage
from sparse_mlp_ds.data import class_names, sources
from sparse_mlp_ds.data.class_names import ClassList
from sparse_mlp_ds.data.index import Index, join
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.hub import fetch
from sparse_mlp_ds.hub.load import class_list
from sparse_mlp_ds.train import distillation
from sparse_mlp_ds.weights import locate


def names_of(recipe: Recipe, train: list[Index], val: list[Index]) -> tuple[list[str], list[str]]:
    """Return the training images' class names and remarks about them, after a comparison of all sources' names.

    Args:
        recipe: The recipe.
        train: The index of each source of training images.
        val: The index of each source of held-out images.

    Raises UserError if two sources have different names for a class, or more than there are classes.
    """
    classes = recipe.data.classes
    if classes is None:
        return [], []
    limit = f"data.classes is {classes}"
    lists = [ClassList(f"data.train {index.source}", index.classes) for index in train]
    everything = [*lists, *(ClassList(f"data.val {index.source}", index.classes) for index in val)]
    try:
        names, _ = class_names.agree(lists, min(classes, _count(lists)), limit)
        _, remarks = class_names.agree(everything, min(classes, _count(everything)), limit)
        return class_names.filled(names, classes), _unequal_counts(lists, classes) + remarks
    except UserError as error:
        if any(not isinstance(stage, Pretrain | MaskedLM) for stage in recipe.stages.values()):
            raise
        # Contrastive learning needs no labels, so data sets of different classes may well be mixed.
        unknown = class_names.filled([], classes)
        return unknown, [f"{error}. Pretraining goes on without labels, but its k-NN accuracies mean nothing"]


def open_probe(recipe: Recipe) -> Index | None:
    """Return the labelled images that `data.probe` names; None without them. Raises UserError."""
    if recipe.data.probe is None:
        return None
    index = join(sources.open_sources(recipe.data.model_copy(update={"classes": None}), recipe.data.probe))
    if any((shard.labels < 0).any() for shard in index.shards) or len(index) < 2:
        raise UserError(f"data.probe {index.source}: needs two images or more, all with labels; it measures features")
    return index


def _count(lists: list[ClassList]) -> int:
    return max(len(one.names) for one in lists)


def _unequal_counts(train: list[ClassList], classes: int) -> list[str]:
    """Return a remark if the training images have more or fewer classes than the head will have.

    More classes with names are an error elsewhere. Of numbers alone, few images may simply have wrong labels.
    """
    longest, count = max(train, key=lambda one: len(one.names)), _count(train)
    if count == classes:
        return []
    what = f"the last {classes - count} would be learnt from no images" if count < classes else "images of more are bad"
    return [f"{longest.where}: has {count} classes, but data.classes is {classes}: {what}; correct the number"]


def check_start(stage: TrainingStage, classes: list[str], where: str) -> list[str]:
    """Fetch and check the weights that a stage's `init_from` names, and that a head among them is of the run's classes.

    Args:
        stage: The stage.
        classes: The training images' class names.
        where: File and key of the stage, for messages.

    Returns remarks about the class names. Raises UserError.
    """
    start = stage.init_from
    if start is None:
        return []
    try:
        path = fetch.local(start.path)
        locate.check(path)
        takes_head = start.head and isinstance(stage, ClassifierStage)
        given = class_list(path) if takes_head else None
    except UserError as error:
        raise UserError(f"{where}.init_from.path {error}") from None
    if given is None or len(given.names) != len(classes):  # a head of a different size is not taken
        return []
    try:
        limit = f"data.classes is {len(classes)}"
        return class_names.agree([ClassList("data.train", classes), given], len(classes), limit)[1]
    except UserError as error:
        raise UserError(f"{error}. To begin with a fresh head, set {where}.init_from.head: false") from None


def check_teacher(stage: TrainingStage, classes: list[str], recipe: Recipe, where: str) -> list[str]:
    """Check the teacher that a stage's `distill` names, and that its classes are the run's.

    Args:
        stage: The stage.
        classes: The training images' class names.
        recipe: The recipe.
        where: File and key of the stage, for messages.

    Returns remarks about the class names. Raises UserError.
    """
    if not isinstance(stage, ImageClassifierStage) or stage.distill is None:
        return []
    try:
        return distillation.check(stage.distill.teacher, recipe, classes)
    except UserError as error:
        raise UserError(f"{where}.distill.teacher {error}") from None
