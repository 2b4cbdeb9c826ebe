"""What a resumed run says of a user's own code that has changed meanwhile; real runs are in
tests/whole_runs/test_resume.py."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from support.processes import launch

from launch.resume import CODE

if TYPE_CHECKING:
    from pathlib import Path

NETWORK = """
from torch import nn
from {helper} import LAYER

def net():
    return nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(64, 8), LAYER()), nn.Linear(8, 10))
"""
CONFIG = """
model: {factory: "my_net:net"}
loss: {name: pred}
schedule: {epochs: 1}
data: {name: digits, batch_size: 32, train_limit: 64, test_limit: 32}
"""


@pytest.mark.usefixtures("torch_settings")
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ((), None),
        (("my_layer",), "my_layer.py changed since the run was started"),
        (("my_net", "my_layer"), "and 1 more of your files changed since the run was started"),
    ],
)
def test_code_that_has_changed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: tuple[str, ...], said: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))  # this folder will be in it
    (tmp_path / "my_net.py").write_text(NETWORK.format(helper="my_layer"))
    (tmp_path / "my_layer.py").write_text("from torch.nn import ReLU as LAYER\n")
    (tmp_path / "run.yaml").write_text(CONFIG)
    for epochs in (1, 2, 3):
        for name in ("my_net", "my_layer"):  # each is a command of its own
            monkeypatch.setitem(sys.modules, name, None)
            del sys.modules[name]
        overrides = (f"schedule.epochs={epochs}",)
        given = {"single": True, "resume": epochs > 1, "overrides": overrides}
        assert launch(tmp_path / "run.yaml", tmp_path / "run", **given) == 0
        if epochs == 1:
            for name in changed:
                path = tmp_path / f"{name}.py"
                path.write_text(f"# other words\n{path.read_text()}")
    log = (tmp_path / "run" / "run.log").read_text()
    assert log.count("changed since") == log.count(str(said)) == bool(changed), "once"
    files = [line.rpartition(" ")[0] for line in (tmp_path / "run" / CODE).read_text().splitlines()]
    assert files == [str(tmp_path / name) for name in ("my_layer.py", "my_net.py")]
