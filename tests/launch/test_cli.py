"""The command line: what is wrong is said in one line, before anything is started or written."""

from __future__ import annotations

import os
import shlex
import socket
from functools import partial
from shutil import rmtree
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from support.processes import Started, contents, python

from launch.cli import main
from launch.machine.gpus import devices
from pipeline.config.config_file import dump_config, load_config
from pipeline.config.sections import config_tree
from pipeline.data.facts import data_facts
from pipeline.network.from_config import network_specs
from pipeline.schedule.feed import Position
from pipeline.storage.checkpoint import RunState
from pipeline.storage.checkpoint_writer import CheckpointStore
from pipeline.storage.folder import Folder

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

VGG11B_3X = """\
model: {name: vgg11b, feat_mult: 3, dropout: 0.3}
loss: {name: predsim, beta: 0.99, dim_in_decoder: 4096}
optimizer: {name: adam, lr: 3.0e-4}
data: {name: cifar10}
"""


@pytest.fixture
def here(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, nothing_starts: None) -> Path:
    """A working folder with tiny.yaml, in which nothing may be started."""
    monkeypatch.setattr("launch.plan.division.devices", partial(devices, count=lambda: 0))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def starts(*arguments: str) -> bool:
    """Whether a command gets as far as starting something."""
    try:
        run(*arguments)
    except Started:
        return True
    return False


def refused(here: Path, *arguments: str) -> str:
    """The one line that a wrong command gives, having changed nothing."""
    before = contents(here)
    result = run(*arguments)
    assert result.exit_code == 2, result.exception
    assert result.stdout == ""
    assert contents(here) == before
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert result.stderr.endswith("\n")
    return result.stderr.removeprefix("error: ").rstrip()


def a_run(here: Path, name: str = "run") -> Path:
    """A run directory as after some steps; its one block file was never trained."""
    config = load_config(here / "tiny.yaml")
    path = here / name
    path.mkdir()
    (path / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    run = Folder.open(path)
    store = CheckpointStore(run, config_tree(config), 3, steps_per_epoch=4)
    blocks = len(network_specs(config, data_facts(config.data)))
    files = dict.fromkeys(range(blocks), b"block")
    store.write(RunState(Position(2, epoch_reported=False), files))
    return path


# --- wrong usage --------------------------------------------------------------------------


def test_what_is_refused_would_otherwise_start(here: Path) -> None:
    assert starts("tiny.yaml")
    assert starts("tiny.yaml", "--single")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.hiden=8", "--set model.hiden=8: unknown key; allowed here: name, layers"),
        ("modell.hidden=8", "--set modell.hidden=8: modell: unknown key; allowed here: model"),
        ("model.hidden=wide", "--set model.hidden=wide: 'wide' is not allowed: input should be"),
        ("data.flip=1", "--set data.flip=1: 1 is not allowed: input should be true or"),
        ("loss.beta=1.5", "--set loss.beta=1.5: 1.5 is not allowed: input should be less than"),
        ("loss.alpha=0.5", "--set loss.alpha=0.5: needs loss.unsupervised sim or recon"),
        ("loss.name=hebb", "--set loss.name=hebb: 'hebb' is not allowed: input should be 'pred'"),
        (
            "optimizer.blocks.4.lr=1",
            "optimizer.blocks: there is no block 4; the network has blocks 0 to 3 (3 is the output",
        ),
        ("hidden=8", "--set hidden=8: expected SECTION.KEY=VALUE"),
        ("model.hidden=[8", "--set model.hidden=[8:1:3: YAML syntax: "),
    ],
)
def test_wrong_value(here: Path, override: str, says: str) -> None:
    assert refused(here, "tiny.yaml", "--set", override).startswith(says)


def test_tensorboard_without_its_package(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.run.event_files.find_spec", lambda name: None)
    assert refused(here, "tiny.yaml", "--set", "runtime.tensorboard=true") == (
        "runtime.tensorboard true: needs the package tensorboard: "
        "pip install 'local-loss-pipeline[tensorboard]', or leave the key out"
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--stages 0", "--stages 0: at least 1 stage is needed; use 1 to 3"),
        ("--stages 99", "has 3; use --stages 3 or fewer"),
        ("--gpus 7", "--gpus 7: this machine has no CUDA device 7 (0 visible); use --gpus cpu"),
        ("--gpus 0-x", "--gpus 0-x: '0-x' is neither a number nor a range; expected cpu, or"),
        ("--trace 0", "--trace 0: records the first batches of a run, 1 to 1000; use 50"),
        ("--trace 1001", "--trace 1001: records the first batches"),
        ("--ray-address 10.0.0.1:6379", "--ray-address and --ray-insecure: are for --engine ray"),
        ("--run-dir ''", "--run-dir '': is empty: give a path, or . for the current folder"),
        ("--run-dir 'a\nb'", r"--run-dir 'a\nb': holds a line break, another control character"),
    ],
)
def test_wrong_option(here: Path, arguments: str, says: str) -> None:
    assert says in refused(here, "tiny.yaml", *shlex.split(arguments))


@pytest.mark.parametrize(
    "address",
    [
        "255.255.255.255", "224.0.0.1", "ff02::1", "::ffff:0.0.0.0", "::ffff:224.0.0.1",
        "::ffff:127.0.0.1", "0.0.0.0", "::", "127.1", "0177.0.0.1", "localhost", "127.0.0.1:80",
        "198.51.100.0/24", "", "127.255.255.255", "198.51.100.1", "2001:db8::1", "fe80::1",
        "fe80::1%nowhere", "127.0.0.1/8", "127.0.0.0/33", "127.0.0.0/", "lo/8", "::1/x", "auto/8",
        10, 10.8, None,
    ],
)  # fmt: skip
def test_an_address_at_which_nobody_can_connect(here: Path, address: object) -> None:
    written = "null" if address is None else repr(address)
    over = ("--set", "runtime.transport=tcp", "--set", f"runtime.bind_address={written}")
    assert "runtime.bind_address" in refused(here, "tiny.yaml", *over)


@pytest.mark.parametrize(
    "ports",
    [
        *("'20000'", "'20100-20000'", "'0-10'", "'1-70000'", "'-'", "''", "'a-b'", "'1-2-3'"),
        *("20000", "20000.5", "true", "[20000, 20100]"),
    ],
)
def test_ports_that_are_no_range(here: Path, ports: str) -> None:
    said = refused(here, "tiny.yaml", "--set", f"runtime.ports={ports}")
    assert said.endswith(f"{ports}: give the first and the last of some ports, as 20000-20100")


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        (("--stages", "3"), "7 for stages 0, 1, 2"),
        (("--stages", "1"), "3 for stage 0"),
        (("--data-parallel", "2"), "9 for stages 0, 1"),
        (("--stages", "2", "--replicas", "1:2"), "11 for stages 0, 1, 2"),
    ],
)
def test_fewer_ports_than_a_run_needs(here: Path, options: tuple[str, ...], needed: str) -> None:
    given = ("--set", "runtime.ports=20000-20001", "--set", "runtime.transport=tcp")
    said = refused(here, "tiny.yaml", *given, *options)
    assert said == (
        f"runtime.ports 20000-20001: 2 ports, and this machine needs {needed}: two for each, two "
        "more for each other member of its team, and one for the launcher; give more of them"
    )


def test_ports_that_others_have(here: Path) -> None:
    first = 20000 + 3 * (os.getpid() % 4000)
    ports = f"{first}-{first + 2}"
    given = ("--set", f"runtime.ports={ports}", "--set", "runtime.transport=tcp")
    with socket.create_server(("127.0.0.1", first + 1)):
        said = refused(here, "tiny.yaml", *given, "--stages", "1")
    assert f"runtime.ports {ports}: no other one is free at 127.0.0.1 on host " in said


@pytest.mark.parametrize("arguments", ["--stages two", "--engine slurm", "--nonsense", "--stages"])
def test_what_click_refuses(here: Path, arguments: str) -> None:
    before = contents(here)
    result = run("tiny.yaml", *arguments.split())
    assert result.exit_code == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert errors == result.stderr.splitlines()[-1:]  # after what the usage is
    assert contents(here) == before


def test_no_config_file(here: Path) -> None:
    assert refused(here, "absent.yaml") == "absent.yaml: there is no such file"
    assert refused(here) == "which config? give CONFIG.yaml, or --resume with --run-dir DIR"
    (here / "folder").mkdir()
    assert refused(here, "folder") == "folder: is a folder: name a file in it"
    (here / "broken.yaml").write_text("model: {name: mlp}\nloss: {name: pred]\n", encoding="utf-8")
    assert refused(here, "broken.yaml").startswith("broken.yaml:2:18: YAML syntax: ")


def test_help_knows_of_layers_that_stay_together() -> None:
    words = " ".join(run("--help").output.split())
    assert "[default: one per hidden layer, or per group that can't be divided]" in words


def test_global_backprop_needs_single_mode(here: Path) -> None:
    says = refused(here, "tiny.yaml", "--set", "loss.name=glob")
    assert "its gradient flows through all blocks" in says
    assert says.endswith("train it with --single")
    assert starts("tiny.yaml", "--set", "loss.name=glob", "--single")
    stages = refused(here, "tiny.yaml", "--set", "loss.name=glob", "--single", "--stages", "2")
    assert "--stages 2" in stages


# --- run directories ----------------------------------------------------------------------


@pytest.mark.parametrize("held", ["config.yaml", "metrics.jsonl", "checkpoints"])
def test_a_run_is_not_overwritten(here: Path, held: str) -> None:
    (here / "run").mkdir()
    (here / "run" / held).write_text("precious", encoding="utf-8")
    says = refused(here, "tiny.yaml", "--run-dir", "run")
    assert says.startswith(f"--run-dir run: already holds a run ({held}); add --resume")


@pytest.mark.parametrize("mode", [(), ("--single",)])
def test_nothing_to_resume(here: Path, mode: tuple[str, ...]) -> None:
    says = refused(here, "tiny.yaml", "--resume", "--run-dir", "absent", *mode)
    assert says.startswith("--resume: there is no folder absent; name the run's folder")
    (here / "empty").mkdir()
    refused(here, "tiny.yaml", "--resume", "--run-dir", "empty", *mode)
    assert refused(here, "--resume", "--run-dir", "empty", *mode).startswith("empty/config.yaml")


def test_a_checkpoint_without_manifest_is_none(here: Path) -> None:
    (a_run(here) / "checkpoints" / "step-00000002" / "manifest.json").unlink()
    says = refused(here, "--resume", "--run-dir", "run")
    assert says.startswith("--resume: run holds no complete checkpoint")


def test_what_is_left_of_a_run_without_checkpoints_is_not_replaced(here: Path) -> None:
    rmtree(a_run(here) / "checkpoints")
    metrics = here / "run" / "metrics.jsonl"
    metrics.write_text('{"event": "epoch", "epoch": 1, "step": 2}\n', encoding="utf-8")
    says = refused(here, "--resume", "--run-dir", "run")
    assert says.startswith(
        "--resume: the checkpoints of run are gone, and to begin anew would repl"
    )
    metrics.unlink()
    assert starts("--resume", "--run-dir", "run")


@pytest.mark.parametrize(
    ("change", "before"),
    [
        ("model.hidden=8", 16), ("model.dropout=0.5", 0.2), ("loss.beta=0.5", 0.99),
        ("data.batch_size=16", 32), ("runtime.seed=2", 1), ("runtime.precision=bf16", "fp32"),
        ("schedule.greedy=true", "false"), ("runtime.wire_dtype=bf16", "as_computed"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", [(), ("--single",)])
def test_a_resumed_run_stays_what_it_was(
    here: Path, change: str, before: Any, mode: tuple[str, ...]
) -> None:
    a_run(here)
    says = refused(here, "tiny.yaml", "--resume", "--run-dir", "run", "--set", change, *mode)
    key, _, now = change.partition("=")
    assert says == (
        f"--resume: {key} is {now}, but the run in run began with {before}; "
        f"use --set {key}={before}, or start a new run"
    )


def test_a_cure_is_asked_for_as_it_would_have_to_be(here: Path) -> None:
    """Options go before what `--set` says."""
    a_run(here)
    for option, key, now, before, cure in (
        (("--data-parallel", "2"), "parallel.members", "2", "1", "--data-parallel 1"),
        (
            ("--stages", "2", "--replicas", "1:2"),
            *("parallel.replicas", "{1: 2, 2: 2, 3: 2}", "{}"),
            "--set 'parallel.replicas={}' without --replicas",
        ),
    ):
        says = refused(here, "tiny.yaml", "--resume", "--run-dir", "run", *option)
        assert says == (
            f"--resume: {key} is {now}, but the run in run began with {before}; use {cure}, or "
            "start a new run"
        )


NETWORK_OF_LISTS = """\
model: {name: vgg, layers: [32, M, 16], hidden_layers: 0}
loss: {name: pred, pred_hidden: [8, 4]}
data: {name: digits}
"""


@pytest.mark.parametrize(
    ("change", "advised"),
    [
        ("model.layers=[32]", "--set 'model.layers=[32, M, 16]'"),
        ("loss.pred_hidden=8", "--set 'loss.pred_hidden=[8, 4]'"),
        ("data.train_limit=150", "--set data.train_limit=null"),
        ("data.flip=true", "--set data.flip=false"),
    ],
)
def test_what_is_advised_to_resume_can_be_pasted(here: Path, change: str, advised: str) -> None:
    (here / "tiny.yaml").write_text(NETWORK_OF_LISTS, encoding="utf-8")
    a_run(here)
    resumed = ("tiny.yaml", "--resume", "--run-dir", "run", "--set", change)
    assert f"use {advised}, or start a new run" in refused(here, *resumed)
    assert starts(*resumed, *shlex.split(advised))


@pytest.mark.parametrize("change", ["schedule.epochs=5", "optimizer.lr=0.1", "runtime.seed=1"])
def test_a_resumed_run_may_go_on_differently(here: Path, change: str) -> None:
    a_run(here)
    assert starts("tiny.yaml", "--resume", "--run-dir", "run", "--set", change)


# --- nothing heavy is imported ------------------------------------------------------------

HEAVY = ("torch", "torchvision", "numpy", "sklearn", "zmq", "safetensors", "matplotlib")
RUN_AND_LIST = f"""
import os, sys
def heavy():
    print("heavy:", *sorted({set(HEAVY)!r} & set(sys.modules)), file=sys.stderr, flush=True)
leave = os._exit
os._exit = lambda status: (heavy(), leave(status))
from launch.cli import main
try:
    main(prog_name="pipeline-launch")
finally:
    heavy()
"""


REPRODUCE = RUN_AND_LIST.replace("launch.cli", "launch.reproduce")


@pytest.mark.parametrize(
    ("program", "arguments", "status", "says"),
    [
        (RUN_AND_LIST, "--help", 0, "Usage: pipeline-launch [OPTIONS] CONFIG.yaml"),
        (RUN_AND_LIST, "--version", 0, "pipeline-launch, version "),
        (RUN_AND_LIST, "", 0, "complete -o nosort -F"),
        (RUN_AND_LIST, "tiny.yaml --set loss.beta=1.5", 2, "error: --set loss.beta=1.5: 1.5"),
        (RUN_AND_LIST, "tiny.yaml --stages 99", 2, "error: --stages 99: "),
        (RUN_AND_LIST, "tiny.yaml --gpus 0-x", 2, "error: --gpus 0-x: "),
        (RUN_AND_LIST, "tiny.yaml --resume --run-dir empty --single", 2, "error: --resume: "),
        (RUN_AND_LIST, "tiny.yaml --dry-run --gpus 0-3", 0, "cuda:1"),
        (REPRODUCE, "--help", 0, "Usage: "),
        (REPRODUCE, "--list", 0, "1/mlp/pred "),
        (REPRODUCE, "1/nothing", 2, "error: 1/nothing: "),
        (f"import numpy\n{RUN_AND_LIST}", "--help", 0, "heavy: numpy"),  # the list sees them
    ],
)
@pytest.mark.usefixtures("tiny")
def test_answers_import_nothing_heavy(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    arguments: str,
    status: int,
    says: str,
) -> None:
    if not arguments:
        monkeypatch.setenv("_PIPELINE_LAUNCH_COMPLETE", "bash_source")
    done = python("-c", program, *arguments.split(), cwd=tmp_path)
    assert done.returncode == status
    assert says in done.stdout + done.stderr
    assert done.stderr.splitlines()[-1].strip() == (says if "numpy" in says else "heavy:")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


# --- the plan -----------------------------------------------------------------------------


def test_dry_run_shows_the_plan_and_starts_nothing(here: Path) -> None:
    (here / "vgg11b_3x.yaml").write_text(VGG11B_3X, encoding="utf-8")
    before = contents(here)
    result = CliRunner(env={"COLUMNS": "110"}).invoke(
        main, ["vgg11b_3x.yaml", "--dry-run", "--stages", "10", "--gpus", "0-3"]
    )
    assert (result.exit_code, result.stderr) == (0, "")
    assert contents(here) == before
    rows = [" ".join(line.split()) for line in result.stdout.splitlines()]
    for stage, macs in enumerate([4098, 6795, 6795, 21743, 6795, 21743, 6795, 6795, 1699, 16]):
        row = next(row for row in rows if row.startswith(f"{stage} cuda:"))
        assert f" {macs} M " in row


def test_dry_run_of_single_mode_shows_one_process(here: Path) -> None:
    tables = [run("tiny.yaml", "--dry-run", *mode).stdout for mode in ((), ("--single",))]
    assert ["every link" in table for table in tables] == [True, False]


def test_batches_of_one_image_need_pixels_to_normalise_by(here: Path) -> None:
    layers = ", ".join(["4, M"] * 3)
    text = f"""
        model: {{name: vgg, layers: [{layers}, 4], hidden_layers: 0}}
        loss: {{name: pred}}
        data: {{name: digits, batch_size: 1}}
    """
    (here / "deep.yaml").write_text(text, encoding="utf-8")
    complaint = refused(here, "deep.yaml", "--single")
    assert "data.batch_size 1: block 3 (conv 4→4) gives a number per feature" in complaint
    assert "use data.batch_size 2 or more, or model.batch_norm false" in complaint
    done = run("deep.yaml", "--dry-run", "--set", f"model.layers=[{layers}]")
    assert done.exit_code == 0, done.stderr


def test_dry_run_checks_as_a_run_does(here: Path) -> None:
    refused(here, "tiny.yaml", "--dry-run", "--stages", "4")
    refused(here, "tiny.yaml", "--dry-run", "--set", "loss.beta=2")


def test_dry_run_checks_what_is_to_be_resumed(here: Path) -> None:
    again = ("tiny.yaml", "--resume", "--dry-run")
    assert refused(here, *again).startswith("--resume: which run? name its folder")
    says = refused(here, *again, "--run-dir", "absent")
    assert says.startswith("--resume: there is no folder absent; ")
    a_run(here)
    assert run(*again, "--run-dir", "run").exit_code == 0
    says = refused(here, *again, "--run-dir", "run", "--set", "model.hidden=8")
    assert says.startswith("--resume: model.hidden is 8, but the run in run began with 16")
