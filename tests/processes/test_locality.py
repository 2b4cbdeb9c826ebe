"""Proofs of locality, each block in a process of its own: cheats are found, by block and rule."""

from __future__ import annotations

import re
from functools import partial
from tempfile import mkdtemp
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from support.cheating_rules import Hook
from support.locality import config_with, specs_of
from support.processes import launch

from launch.verify import main as verify
from pipeline.data.facts import data_facts
from pipeline.errors import StageFailedError
from pipeline.locality.proof import Verdict, ask, carry_out, judge

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.config.sections import Config
    from pipeline.network.specs import BlockSpec

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]

ALONE = "trained alone from what it received, "
BESIDES = ": it uses something besides what arrived"
FOUND = {  # by the name of the rule: which block, and what is said of it
    "Global": (1, f"{ALONE}encoder.weight differs after batch 1{BESIDES}"),
    "SharedModule": (1, f"{ALONE}encoder.weight differs after batch 1{BESIDES}"),
    "Hook": (1, f"{ALONE}encoder.weight differs after batch 1{BESIDES}"),
    "KeepsTest": (
        0,
        f"{ALONE}encoder.weight differs after batch 3, the first after a test{BESIDES}",
    ),
    "CountsCalls": (1, f"{ALONE}encoder.weight differs after batch 1{BESIDES}"),
    "MovesUpstream": (0, f"{ALONE}encoder.weight differs after batch 2{BESIDES}"),
    "Tomorrow": (0, f"{ALONE}encoder.weight differs after batch 1{BESIDES}"),
    "Clock": (0, f"{ALONE}encoder.weight differs after batch 1{BESIDES}"),
    "ProcessId": (0, f"{ALONE}encoder.weight differs after batch 1{BESIDES}"),
    "SharedDraw": (0, f"{ALONE}encoder.weight differs after batch 1{BESIDES}"),
    "File": (1, f"{ALONE}encoder.weight differs after batch 1{BESIDES}"),
    "OnTensor": (1, f"{ALONE}encoder.weight differs after batch 1{BESIDES}"),
    "Leaves": (1, f"{ALONE}what it passes on differs after batch 1{BESIDES}"),
    "Crashes": (1, "fails alone, from what it received: its process was killed by SIGKILL"),
}
FAILS = {
    "CarriesGraph": "carries 'hint' with its graph, by which a gradient would reach this block "
    "from another: detach it",
    "ChangesSent": "changes h, which is passed on, in place, which other blocks may still read: "
    "make a new tensor",
    "ChangesSentByNumpy": "changes what it has passed on, which the next block may be reading: "
    "put a new tensor in its place",
}
"""What ends with the whole network already."""


class Proofs:
    """Of all rules above, carried out by one process, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._of: dict[str, tuple[Config, tuple[BlockSpec, ...]]] = {}
        for name in (*FOUND, *FAILS, "Honest"):
            config = config_with(loss={"rule": named(name)}, model={"dropout": 0.1})
            self._of[name] = config, specs_of(config)
            facts = data_facts(config.data)
            (folder / name).mkdir()
            given = config, facts, self._of[name][1]
            ask(*given, device="cpu", steps=4, folder=folder / name, initial={})
        carry_out([folder / name for name in self._of])

    def verdict(self, name: str) -> Verdict:
        return judge(*self._of[name], self._folder / name)


@pytest.fixture(scope="module")
def proofs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proofs]:
    folder = tmp_path_factory.mktemp("proofs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEFT_IN", str(folder / "left"))
        yield Proofs(folder)
    for handle in Hook.handles:  # of this process, where the rule was made to find out shapes
        handle.remove()


def named(rule: str) -> str:
    return f"support.cheating_rules:{rule}"


@pytest.mark.parametrize("name", FOUND)
def test_a_cheat_is_found_by_block_and_rule(proofs: Proofs, name: str) -> None:
    block, what = FOUND[name]
    found = proofs.verdict(name).findings
    assert f"block {block} (rule {named(name)}): {what}" in found
    assert not any("block 2" in line for line in found)  # the output layer


@pytest.mark.parametrize("name", FAILS)
def test_what_the_engine_refuses_is_named_too(proofs: Proofs, name: str) -> None:
    says = f"block 0 (rule {named(name)}): fails in the whole network, at batch 1: {FAILS[name]}"
    with pytest.raises(StageFailedError, match=f"^{re.escape(says)}$"):
        proofs.verdict(name)


def test_an_honest_rule_is_not_accused(proofs: Proofs) -> None:
    assert proofs.verdict("Honest") == Verdict(blocks=3, batches=4, findings=())


# --- the command --------------------------------------------------------------------------


def verified(folder: Path, loss: str, *arguments: str) -> tuple[int, list[str]]:
    """Exit status of `pipeline-verify --locality`, and what it prints."""
    config = folder / "this.yaml"
    config.write_text(
        "model: {name: mlp, hidden_layers: 2, hidden: 16}\n"
        f"loss: {loss}\n"
        "data: {name: synthetic, size: 8, train_images: 36, test_images: 12, batch_size: 8}\n"
        "schedule: {epochs: 1}\n"
    )
    result = CliRunner().invoke(verify, [str(config), "--gpus", "cpu", "--locality", *arguments])
    return result.exit_code, result.output.splitlines()


def test_the_command_says_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.verify.mkdtemp", partial(mkdtemp, dir=tmp_path))
    status, (first, last) = verified(tmp_path, "{name: pred}", "--steps", "3")
    assert re.fullmatch(r"recording what arrives at 3 blocks: 8\.06 KiB in \S+", first)
    assert last == "local: 3 blocks retrained alone from 3 batches, bit for bit equal"
    assert status == 0
    assert [path.name for path in tmp_path.iterdir()] == ["this.yaml"]


def test_a_run_that_begins_from_another_is_local_and_equal(tmp_path: Path) -> None:
    """Blocks alone begin with what the others took, too; a frozen one learns nothing there."""
    begin = (
        "--steps",
        "2",
        "--set",
        f"model.init_from={tmp_path / 'run'}",
        "--set",
        "model.freeze=[0]",
    )
    status, says = verified(tmp_path, "{name: pred}", *begin)
    assert (status, len(says)) == (2, 1)
    assert says[0].startswith(f"error: model.init_from {tmp_path / 'run'}: there is no such folder")
    assert launch(tmp_path / "this.yaml", tmp_path / "run", single=True) == 0
    status, says = verified(tmp_path, "{name: pred}", *begin)
    assert (status, says[-1][:50]) == (0, "local: 3 blocks retrained alone from 2 batches, bi")
    arguments = [str(tmp_path / "this.yaml"), "--gpus", "cpu", "--stages", "2", *begin]
    result = CliRunner().invoke(verify, arguments)
    assert result.output.startswith("equal: single mode and 2 stages, ")


def test_the_command_names_who_is_not_local(tmp_path: Path) -> None:
    status, says = verified(tmp_path, f"{{rule: '{named('OnTensor')}'}}", "--steps", "2")
    assert status == 1
    assert says[1].startswith(f"block 1 (rule {named('OnTensor')}): trained alone")
    assert says[-1] == 'not local: see "Proof of locality" in docs/rules.md'


def test_a_cheat_that_every_run_refuses_is_one_line(tmp_path: Path) -> None:
    status, says = verified(tmp_path, f"{{rule: '{named('Clock')}'}}")
    assert (status, len(says)) == (2, 1)
    assert says[0].startswith(f"error: loss.rule {named('Clock')}: block 1: the same step from ")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--set", "loss.name=glob"], "loss.name glob is global backprop: "),
        (["--stages", "2"], "--locality trains each block in a process of its own: no --stages"),
        (["--steps", "1000000000000"], "what the blocks receive"),
    ],
)
def test_what_can_not_be_proved_is_one_line(
    tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    status, says = verified(tmp_path, "{name: pred}", *arguments)
    assert (status, len(says)) == (2, 1)
    assert says[0].startswith(f"error: {complaint}")
