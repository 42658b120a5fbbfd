"""Images and containers without a Docker engine: buildah builds on a base made by debootstrap and runs in a chroot.

A container here has its image's files, user and environment, and volumes; its network is that of whoever starts it, its
/dev the machine's. Every command runs in mount and process namespaces of its own: what it mounts and starts ends with
it, however it ends, and what remains is plain files below one folder.
"""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SUITE, PYTHON = "bookworm", (3, 11)
"""Debian's release for the base, and its Python, for which the wheels are."""

_ALONE = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
# Ubuntu's images come with a user of number 1000, which is the default number of the images' own.
_BASE = """
base=$("$@" from scratch)
files=$("$@" mount "$base")
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates "$0" "$files"
chroot "$files" useradd --uid 1000 --create-home ubuntu
"$@" commit --quiet --rm "$base" base
"""


def why_not() -> str:
    """Return why this machine cannot build images, or an empty text."""
    if os.geteuid():
        return "only root may build images in a chroot"
    if absent := [tool for tool in ("buildah", "debootstrap", "unshare") if not shutil.which(tool, path=_path())]:
        return f"{', '.join(absent)} not installed: apt-get install buildah debootstrap"
    if sys.version_info[:2] != PYTHON:
        return f"needs Python {PYTHON[0]}.{PYTHON[1]}, which the images' base has"
    made = subprocess.run([*_ALONE, "mount", "-t", "tmpfs", "x", "/mnt"], capture_output=True, text=True)
    return f"namespaces cannot be made here: {made.stderr.strip()}" if made.returncode else ""


class Images:
    """A store of images in `folder`, which leaving the context removes."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.command = self._buildah("overlay")
        if subprocess.run([*_ALONE, *self.command, "info"], capture_output=True, env=_env()).returncode:
            self.command = self._buildah("vfs")  # works everywhere, by copying gigabytes
        self.wheels = folder / "wheels"

    def __enter__(self):
        try:
            with ThreadPoolExecutor() as both:
                for done in [both.submit(self._make_base), both.submit(self._make_wheels)]:
                    done.result()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception):
        shutil.rmtree(self.folder)

    def _buildah(self, driver: str) -> tuple[str, ...]:
        store = ("--storage-driver", driver, "--root", f"{self.folder}/{driver}", "--runroot", f"{self.folder}/state")
        return ("env", f"TMPDIR={self.folder}", "buildah", *store)

    def _make_base(self) -> None:
        _run(*_ALONE, "sh", "-ec", _BASE, SUITE, *self.command, seconds=600)

    def _make_wheels(self) -> None:
        """Get the pinned packages as this machine's pip is set up to; a build then needs neither index nor settings."""
        wheel = (sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", self.wheels)
        _run(*wheel, "--requirement", REPOSITORY / "requirements.txt", seconds=600)

    def buildah(self, *arguments: str | Path, seconds: float = 120) -> str:
        """Run buildah; return what it printed."""
        return _run(*_ALONE, *self.command, *arguments, seconds=seconds)

    def build(self, dockerfile: str, name: str) -> None:
        """Build one of docker/'s files on the base, with the wheels for an index."""
        self.buildah(
            "build", "--isolation", "chroot", "--tag", name, "--file", REPOSITORY / "docker" / dockerfile,
            "--build-arg", "BASE_IMAGE=localhost/base", "--build-arg", "PIP_NO_INDEX=1",
            "--build-arg", "PIP_FIND_LINKS=/wheels", "--volume", f"{self.wheels}:/wheels:ro", REPOSITORY,
            seconds=900,
        )  # fmt: skip

    def config(self, name: str) -> dict:
        """Return an image's user, entrypoint, command, environment."""
        return json.loads(self.buildah("inspect", "--type", "image", name))["OCIv1"]["config"]

    def container(self, image: str) -> None:
        """Make the container of an image's name: a copy of its files, in which lines of `start` run."""
        self.buildah("from", "--pull-never", "--name", image, image)

    def start(self, container: str, *command: str, volumes: dict[Path, str] | None = None, **env: str) -> list[str]:
        """Return the command line that runs a command, by way of the images' entrypoint, in a container."""
        mounts = [f"--volume={here}:{there}" for here, there in (volumes or {}).items()]
        settings = [f"--env={key}={value}" for key, value in env.items()]
        entrypoint = "/opt/sparse_mlp_ds/docker/entrypoint.sh"
        line = (*self.command, "run", "--isolation", "chroot", *mounts, *settings, container, "--", entrypoint)
        return [*line, *command]


def inside(line: list[str], before: str = "true", seconds: float = 300) -> subprocess.CompletedProcess:
    """Run a line of `Images.start` cut off from the network; `before` prepares its mounts."""
    shell = f'{before} && ip link set lo up && exec "$@"'
    return subprocess.run(
        [*_ALONE, "--net", "sh", "-ec", shell, "sh", *line],
        capture_output=True, text=True, timeout=seconds, env=_env(), stdin=subprocess.DEVNULL,
    )  # fmt: skip


def _run(*command: str | Path, seconds: float) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds, env=_env(), stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def _env() -> dict[str, str]:
    return os.environ | {"PATH": _path()}
