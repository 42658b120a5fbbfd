"""Files are written whole or not at all, locks hold between processes, and a file's hash is the usual one."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from sparse_mlp_ds import files

TRY = (
    "import sys, pathlib; from sparse_mlp_ds import files; print(files.try_lock(pathlib.Path(sys.argv[1])) is not None)"
)


def elsewhere(code, path):
    """What a different process prints."""
    return subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("durable", [False, True])
def test_a_text_is_replaced_whole(tmp_path, durable):
    path = tmp_path / "a.json"
    files.replace(path, "old", durable)
    files.replace(path, "new", durable)
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_text_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.replace(path, "old")

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        files.replace(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_lock_is_held_until_the_file_is_closed(tmp_path):
    path = tmp_path / "lock"
    with files.lock(path):
        assert elsewhere(TRY, path) == "False"
    assert elsewhere(TRY, path) == "True"


def test_a_child_that_inherits_the_file_holds_the_lock(tmp_path):
    path = tmp_path / "lock"
    held = files.try_lock(path)
    wait = [sys.executable, "-c", "input()"]
    with subprocess.Popen(wait, stdin=subprocess.PIPE, pass_fds=[held.fileno()]) as child:
        held.close()
        assert elsewhere(TRY, path) == "False"
        child.communicate(b"\n")
    assert elsewhere(TRY, path) == "True"


@pytest.mark.parametrize("size", [0, 5, files.BLOCK, 2 * files.BLOCK + 1])
def test_the_hash_of_a_file_is_that_of_its_content(tmp_path, size):
    content = bytes(number % 251 for number in range(size))
    path = tmp_path / "file"
    path.write_bytes(content)
    expected = hashlib.sha256(content).hexdigest()
    assert files.sha256(path) == expected
    assert files.sha256_of([content[:3], memoryview(content)[3:]]) == expected
