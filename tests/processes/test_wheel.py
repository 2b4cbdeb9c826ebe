"""What is installed is whole: a wheel, in an environment of its own, trains a network."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest
from support import REPOSITORY

pytestmark = pytest.mark.processes
PACKAGES = ("pipeline", "launch")
NO_MODULES = {"pipeline/README.md", "pipeline/py.typed", "launch/py.typed"}
DATA = {
    *NO_MODULES,
    "launch/paper/paper.yaml",
    "launch/referee/referee.yaml",
    "launch/report/page.css",
    "launch/report/page.html",
}


def run(command: list[str | Path], folder: Path) -> str:
    """What a command prints, started where nothing of the repository is found."""
    quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, command)],
        cwd=folder,
        env={**environment, **quiet},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the files that make it up; the repository's own folder stays as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for path in sources():
        target = source / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((REPOSITORY / path).read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    run([*pip, "--wheel-dir", folder, source], folder)
    return next(folder.glob("*.whl"))


def sources() -> list[str]:
    found = (path for name in PACKAGES for path in (REPOSITORY / name).rglob("*"))
    names = [path.relative_to(REPOSITORY) for path in found if path.is_file()]
    own = [name.as_posix() for name in names if "__pycache__" not in name.parts]
    return ["pyproject.toml", "README.md", "LICENSE", *own]


def test_every_module_and_its_data_are_in_the_wheel(wheel: Path) -> None:
    with ZipFile(wheel) as files:
        inside = {name for name in files.namelist() if name.partition("/")[0] in PACKAGES}
    modules = {name for name in sources() if name.endswith(".py") and "/" in name}
    assert inside == modules | DATA


def test_it_trains_from_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    """With nothing in it but the wheel; what it depends on is read where the tests have it."""
    home = tmp_path / "env"
    venv.create(home, symlinks=True)
    packages = home / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    pip = [sys.executable, "-m", "pip", "--python", home / "bin/python", "install", "-q"]
    run([*pip, "--no-deps", "--no-index", wheel], tmp_path)
    installed = [entry for entry in sys.path if Path(entry).name.endswith("-packages")]
    (packages / "dependencies.pth").write_text("\n".join(installed))  # looked at after its own
    asked = "import pipeline, launch; print(pipeline.__file__, launch.__file__)"
    for file in run([home / "bin/python", "-c", asked], tmp_path).split():
        assert file.startswith(str(packages))
    config = REPOSITORY / "configs/digits.yaml"
    small = ("schedule.epochs=1", "schedule.milestones=[]", "data.train_limit=320")
    overrides = [part for value in small for part in ("--set", value)]
    command = [home / "bin/pipeline-launch", config, "--stages", "2", "--gpus", "cpu", *overrides]
    assert "checkpoint step-00000010" in run([*command, "--run-dir", "run"], tmp_path)
    assert list(tmp_path.glob("run/checkpoints/*/manifest.json"))
    assert "vgg8b" in run([home / "bin/pipeline-reproduce", "--list"], tmp_path)
