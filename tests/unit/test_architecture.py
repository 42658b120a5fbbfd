"""Who may import whom, read from every file's source: a layer knows those below it and nothing above."""

import ast
import importlib
import importlib.util
import re
import sys
from pathlib import Path

import pytest

import sparse_mlp_ds

PACKAGE = Path(sparse_mlp_ds.__file__).parent
FILES = {
    ".".join(("sparse_mlp_ds", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
FLOORS = (
    # from the ground up: a file imports from floors below its own, or from its own folder
    ("errors",),
    ("files", "rng", "schema"),
    ("distributed", "doctor"),
    ("watchdog", "data", "moe", "checkpoints"),
    ("models", "shards"),
    ("config", "ssl", "weights"),
    ("log",),
    ("hub", "sweep", "routes"),
    ("report",),
    ("train",),
    ("api", "timm"),
    ("cli",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
NEIGHBOURS = {("doctor", "distributed")}
"""Rooms of one floor of which the first may import the second."""
FOUNDATIONS = (
    "errors",
    "rng",
    "files",
    "distributed.host",
    "distributed.network",
    "distributed.discovery",
    "distributed.rendezvous",
    "distributed.consistency",
)
"""Files that import nothing of the package but one another."""
SPEAKS_TO_DEEPSPEED = {
    "sparse_mlp_ds.moe.expert_parallel",
    "sparse_mlp_ds.train.engine",
    "sparse_mlp_ds.train.engine_state",
    "sparse_mlp_ds.train.grad_norms",
    "sparse_mlp_ds.train.param_groups",
    "sparse_mlp_ds.train.zero3",
    "sparse_mlp_ds.train.zero_launches",
}
AT_THE_TOP = {"__init__", "errors", "files", "rng", "schema", "timm"}


def imports(nodes):
    """Return the dotted names that import statements among `nodes` name."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def everywhere(path):
    """All imports of a file, those inside functions too."""
    return imports(ast.walk(ast.parse(path.read_text())))


def at_import(path):
    """The imports that run when the file is imported."""
    nodes, found = [ast.parse(path.read_text())], []
    while nodes:
        node = nodes.pop()
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            found.append(node)
            nodes += ast.iter_child_nodes(node)
    return imports(found)


def test_every_file_is_read():
    assert len(FILES) > 40
    assert "sparse_mlp_ds.models.layers" in everywhere(FILES["sparse_mlp_ds.models.mixer"])
    assert "deepspeed.runtime.zero.config" in everywhere(FILES["sparse_mlp_ds.config.deepspeed_json"])
    assert "deepspeed.runtime.zero.config" not in at_import(FILES["sparse_mlp_ds.config.deepspeed_json"])


def test_the_top_of_the_package_holds_few_files_and_every_room_has_its_floor():
    assert {path.stem for path in PACKAGE.glob("*.py")} == AT_THE_TOP
    rooms = {name.split(".")[1] for name in FILES if name.count(".") > 1}
    assert rooms == {room for room in FLOOR if room not in AT_THE_TOP}


@pytest.mark.parametrize("room", FLOOR)
def test_a_room_imports_only_from_the_floors_below_it(room):
    files = {name: path for name, path in FILES.items() if name.split(".")[1:2] == [room]}
    assert files
    broken = [
        f"{name} imports {imported}"
        for name, path in files.items()
        for imported in sorted(everywhere(path) & FILES.keys() - {"sparse_mlp_ds"})
        if (other := imported.split(".")[1]) != room and FLOOR[other] >= FLOOR[room] and (room, other) not in NEIGHBOURS
    ]
    assert broken == []


@pytest.mark.parametrize("module", FOUNDATIONS)
def test_the_foundations_stand_on_one_another_alone(module):
    modules = {name for name in FILES if FILES[name].stem != "__init__"}
    own = everywhere(FILES[f"sparse_mlp_ds.{module}"]) & modules
    assert own <= {f"sparse_mlp_ds.{foundation}" for foundation in FOUNDATIONS}


def test_a_watchdog_agent_imports_nothing_large():
    own = {f"sparse_mlp_ds.watchdog.{name}" for name in ("agent", "coordinator", "channel", "diagnosis")}
    imported = {i.split(".")[0] for name in own for i in everywhere(FILES[name])}
    assert imported <= {"sparse_mlp_ds", "psutil"} | set(sys.stdlib_module_names)


def test_a_host_that_looks_at_itself_imports_torch_only_for_its_devices():
    looking = (
        "doctor.__main__",
        "doctor.facts",
        "distributed.consistency",
        "distributed.network",
        "distributed.host",
        "errors",
    )
    imported = {i.split(".")[0] for name in looking for i in at_import(FILES[f"sparse_mlp_ds.{name}"])}
    assert imported <= {"sparse_mlp_ds"} | set(sys.stdlib_module_names)


def test_deepspeed_is_spoken_to_in_few_files():
    speaking = {name for name, path in FILES.items() if any(i.split(".")[0] == "deepspeed" for i in everywhere(path))}
    assert speaking == SPEAKS_TO_DEEPSPEED | {"sparse_mlp_ds.config.deepspeed_json"}
    importing = {name for name in speaking if any(i.split(".")[0] == "deepspeed" for i in at_import(FILES[name]))}
    assert importing == SPEAKS_TO_DEEPSPEED


@pytest.mark.parametrize("name", FILES)
def test_a_file_has_at_most_300_lines(name):
    assert len(FILES[name].read_text().splitlines()) <= 300


def test_no_import_leads_back_to_where_it_started():
    edges = {name: (everywhere(path) & FILES.keys()) - {"sparse_mlp_ds", name} for name, path in FILES.items()}
    while leaves := {name for name, imported in edges.items() if not imported & edges.keys()}:
        edges = {name: imported for name, imported in edges.items() if name not in leaves}
    assert not edges, f"a cycle among {sorted(edges)}"


@pytest.mark.parametrize("folder", ["sparse_mlp_ds", "benchmarks", "tests"])
def test_every_import_finds_its_name(folder):
    """Imports inside functions too, which nothing else looks at before they run."""
    missing = []
    for path in sorted((PACKAGE.parent / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not str(node.module).startswith(("sparse_mlp_ds", "benchmarks")):
                continue
            module = importlib.import_module(node.module)
            for name in [alias.name for alias in node.names if not hasattr(module, alias.name)]:
                if not hasattr(module, "__path__") or not importlib.util.find_spec(f"{node.module}.{name}"):
                    missing.append(f"{path}:{node.lineno}: {name}")
    assert missing == []


@pytest.mark.parametrize("name", FILES)
def test_text_is_read_and_written_as_utf8_whatever_the_locale_says(name):
    calls = [node for node in ast.walk(ast.parse(FILES[name].read_text())) if isinstance(node, ast.Call)]
    broken = []
    for call in calls:
        function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        modes = [arg.value for arg in call.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        own = ast.unparse(call.func) == "files.read_text"  # which is UTF-8 by itself
        text = (function in ("read_text", "write_text") and not own) or (
            function == "open" and any(re.fullmatch("[rwax]t?[+]?", mode) for mode in modes)
        )
        if text and not any(keyword.arg == "encoding" for keyword in call.keywords):
            broken.append(f"line {call.lineno}")
    assert broken == []
