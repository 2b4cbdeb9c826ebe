"""A checkpoint exists if and only if its manifest does, and what is damaged is named."""

from __future__ import annotations

import json
import os
import shlex
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.errors import CheckpointError
from pipeline.learning.block_file import decode_block
from pipeline.schedule.best import BestSoFar
from pipeline.schedule.feed import Position
from pipeline.schedule.reports import Tally
from pipeline.storage.checkpoint import (
    FORMAT,
    Checkpoint,
    RunState,
    best_name,
    checkpoint_in,
    complete_checkpoints,
    way_back,
)
from pipeline.storage.checkpoint_writer import CheckpointStore
from pipeline.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Callable

CONFIG = {"runtime": {"seed": 7}, "model": {"name": "mlp"}}
FILES: dict[int, bytes | memoryview] = {0: b"first block", 1: memoryview(b"second"), 2: b"last"}
TALLIES = (Tally(0, 64, 1.5, None, None, 2.5), Tally(1, 64, 2.25, 3, 4.5))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def store_in(folder: Path, keep: int = 3) -> CheckpointStore:
    return CheckpointStore(Folder.open(folder.parent), CONFIG, keep, steps_per_epoch=4)


def opened(path: Path) -> Checkpoint:
    return checkpoint_in(Folder.open(path.parent), path.name)


def newest(folder: Path) -> Checkpoint:
    return opened(complete_checkpoints(folder)[-1])


def write(
    folder: Path, step: int = 5, *, keep: int = 3, reported: bool = False, **changes: Any
) -> Path:
    given = {"position": Position(step, reported), "files": FILES, "tallies": TALLIES}
    return store_in(folder, keep).write(RunState(**{**given, **changes}))


def names(folder: Path) -> list[str]:
    return [path.name for path in complete_checkpoints(folder)]


def refusal(look: Callable[[], object]) -> str:
    with pytest.raises(CheckpointError) as caught:
        look()
    return str(caught.value)


# --- written and read ---------------------------------------------------------------------


def test_what_is_written_is_read(folder: Path) -> None:
    path = write(folder)
    assert path == folder / "step-00000005"
    assert sorted(file.name for file in path.iterdir()) == [
        "block-00.safetensors",
        "block-01.safetensors",
        "block-02.safetensors",
        "manifest.json",
    ]
    found = newest(folder)
    assert (found.path, found.state.position.step) == (path, 5)
    assert found.read() == {block: bytes(data) for block, data in FILES.items()}
    start = found.start()
    assert start.position == Position(5, epoch_reported=False)
    assert (start.files, start.tallies) == (found.read(), TALLIES)


@pytest.mark.parametrize("best", [BestSoFar(), BestSoFar(3, 0.1 + 0.2, 5), BestSoFar(1, 2.0, 1)])
def test_what_tests_have_shown_is_kept(folder: Path, best: BestSoFar) -> None:
    path = write(folder, best=BestSoFar(1, 0.5, 7), kept=best)
    found = opened(path).start()
    assert (found.best, found.kept) == (BestSoFar(1, 0.5, 7), best)
    json.loads((path / "manifest.json").read_text(), parse_constant=pytest.fail)


def test_manifests_of_earlier_versions_say_nothing_of_tests(folder: Path) -> None:
    path = write(folder, best=BestSoFar(3, 1.5, 5))
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["kept"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert opened(path).start().kept == BestSoFar(3, 1.5, 5)  # a worse one is never kept as best
    del manifest["best"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert opened(path).start().best == opened(path).start().kept == BestSoFar()


def test_the_best_is_none_of_those_by_step(folder: Path) -> None:
    for step in (5, 10):
        write(folder, position=Position(step, epoch_reported=True), is_best=step == 5, keep=1)
    assert names(folder) == ["step-00000010"]
    best = opened(folder / "best")
    assert (best.state.position.step, best.read()) == (5, newest(folder).read())
    with Folder.open(folder) as held:
        assert best_name(held) == "best"
        (folder / "best").rename(folder / ".replaced-best")  # and its successor never appeared
        assert best_name(held) == ".replaced-best"
        (folder / ".replaced-best" / "manifest.json").unlink()
        assert best_name(held) is None


def test_manifest_names_everything(folder: Path) -> None:
    manifest = json.loads((write(folder) / "manifest.json").read_text())
    assert manifest == {
        "format": FORMAT,
        "step": 5,
        "epoch": 2,
        "epoch_reported": False,
        "steps_per_epoch": 4,
        "batch_in_epoch": 1,
        "seed": 7,
        "blocks": [
            {
                "block": block,
                "file": f"block-{block:02d}.safetensors",
                "bytes": len(data),
                "sha256": sha256(data).hexdigest(),
            }
            for block, data in FILES.items()
        ],
        "tallies": [
            {
                "block": 0,
                "images": 64,
                "loss_sum": 1.5,
                "errors": None,
                "cross_entropy_sum": None,
                "similarity_sum": 2.5,
            },
            {
                "block": 1,
                "images": 64,
                "loss_sum": 2.25,
                "errors": 3,
                "cross_entropy_sum": 4.5,
                "similarity_sum": None,
            },
        ],
        "best": {"epoch": 0, "error": None, "tested": 0},
        "kept": {"epoch": 0, "error": None, "tested": 0},
        "config": CONFIG,
    }


def test_no_checkpoint(folder: Path) -> None:
    assert complete_checkpoints(folder) == []
    folder.mkdir()
    assert complete_checkpoints(folder) == []


def test_newest_is_that_of_the_last_step(folder: Path) -> None:
    for step in (99_999_999, 100_000_001, 5):
        write(folder, step)
    assert names(folder) == ["step-00000005", "step-99999999", "step-100000001"]
    assert newest(folder).state.position.step == 100_000_001


def test_what_is_no_checkpoint_is_neither_counted_nor_dropped(folder: Path) -> None:
    write(folder, 1)
    for name in ("damaged-step-00000009", ".writing-step-00000008", "step-1", "notes"):
        (folder / name).mkdir()
        (folder / name / "manifest.json").write_text("{}")
    (folder / "step-00000007").mkdir()  # no manifest
    (folder / "step-00000006").write_text("a file")
    assert names(folder) == ["step-00000001"]
    write(folder, 2, keep=1)
    assert names(folder) == ["step-00000002"]
    assert (folder / "damaged-step-00000009" / "manifest.json").exists()


# --- the same step again ------------------------------------------------------------------


@pytest.mark.parametrize(
    "files", [FILES, {0: b"other"}, {**FILES, 1: b"other"}, {**FILES, 3: b"more"}]
)
def test_it_takes_the_place_of_the_other(folder: Path, files: dict[int, bytes]) -> None:
    path = write(folder)
    write(folder, reported=True, files=files)
    found = opened(path)
    assert found.read() == {block: bytes(data) for block, data in files.items()}
    assert found.state.position.epoch_reported
    assert len(list(path.iterdir())) == len(files) + 1
    assert [entry.name for entry in folder.iterdir()] == [path.name]


def test_a_damaged_one_is_replaced(folder: Path) -> None:
    manifest = write(folder) / "manifest.json"
    for damage in (lambda: manifest.write_text("{"), manifest.unlink):
        damage()
        write(folder)
        assert newest(folder).read()


# --- safe on the disk (interrupted: test_checkpoint_writer.py) ---------------------------------


def test_the_manifest_is_written_last_and_everything_synced(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    write(folder)
    blocks = [f"block-{block:02d}.safetensors" for block in FILES]
    assert synced[:4] == [*blocks, "manifest.json"]
    assert synced[4:] == [".writing-step-00000005", "checkpoints"]


# --- damaged ------------------------------------------------------------------------------


@pytest.mark.parametrize("block", FILES)
def test_flipped_byte_truncated_and_missing_file_are_named(folder: Path, block: int) -> None:
    path = write(folder)
    file = path / f"block-{block:02d}.safetensors"
    data = file.read_bytes()
    flipped = bytes([data[0], data[1] ^ 1, *data[2:]])
    for damaged in (flipped, data[:-1], data + b"\0", b""):
        file.write_bytes(damaged)
        says = f"{file}: is damaged: its SHA-256 is not the manifest's"
        assert refusal(opened(path).read) == says
    file.unlink()
    assert refusal(opened(path).start) == f"{file}: can't be read: No such file or directory"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        '"text"',
        "{}",
        "\udcff",
        '{"step": 1}',
        "Infinity",
    ],
)
def test_damaged_manifest_is_named(folder: Path, text: str) -> None:
    path = write(folder)
    (path / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert refusal(lambda: newest(folder)).startswith(f"{path / 'manifest.json'}: is damaged: ")


@pytest.mark.parametrize("key", ["step", "epoch_reported", "blocks", "tallies", "config"])
def test_manifest_without_a_key(folder: Path, key: str) -> None:
    with pytest.raises(CheckpointError, match=f"manifest.json: is damaged: KeyError\\('{key}'\\)"):
        opened(_edited(write(folder), key))


def test_manifest_of_another_format(folder: Path) -> None:
    for found in (99, None, "1"):
        edited = _edited(write(folder), format=found)
        says = f"manifest.json: format {found!r}, this version reads {FORMAT}"
        assert says in refusal(partial(opened, edited))


_TALLY = {"block": 0, "images": 1, "loss_sum": 3, "errors": None}


@pytest.mark.parametrize(
    "changes",
    [
        {"step": None},
        {"step": "many"},
        {"step": float("inf")},
        {"blocks": 3},
        {"blocks": [3]},
        {"blocks": [{}]},
        {"blocks": [{"block": "../../etc/passwd", "sha256": ""}]},
        {"tallies": [{}]},
        {"tallies": [{"block": 0, "images": 1, "loss_sum": 1, "errors": 0, "more": 1}]},
        {"tallies": None},
        # with these, what is wrong was found too late, or by others, or never
        {"step": "5"},
        {"step": 5.5},
        {"steps_per_epoch": True},
        {"steps_per_epoch": -1},
        {"steps_per_epoch": 2**63},
        {"epoch_reported": "false"},
        {"blocks": [{"block": 0, "sha256": ["5"]}]},
        {"tallies": [{"block": "0", "images": 1, "loss_sum": 1.0, "errors": 0}]},
        {"tallies": [{"block": 0, "images": 2**64, "loss_sum": 1.0, "errors": 0}]},
        {"tallies": [{"block": 0, "images": 1, "loss_sum": None, "errors": 0}]},
        {"tallies": [{"block": 0, "images": 1, "loss_sum": 10**400, "errors": 0}]},
        {"tallies": [{"block": 0, "images": 1, "loss_sum": 1.0, "errors": {}}]},
        {"tallies": [{**_TALLY, "similarity_sum": "1.0"}]},
        {"best": None},
        {"best": {"epoch": -1, "error": 1.0, "tested": 1}},
        {"best": {"epoch": 1, "error": "1.0", "tested": 1}},
        {"best": {"epoch": 1, "error": 1.0}},
        {"form": "half"},
        {"form": None},
        {"form": ["weights"]},
    ],
)
def test_manifest_with_odd_values(folder: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"manifest\.json: is damaged: "):
        opened(_edited(write(folder), **changes))


@pytest.mark.parametrize("text", ["[" * 5000, '{"step":' * 5000])
def test_manifest_nested_too_deep(folder: Path, text: str) -> None:
    """Python's own limit is met, wherever it lies."""
    path = write(folder)
    (path / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"manifest\.json: is damaged: RecursionError"):
        opened(path)


def test_a_digest_that_is_a_tree_is_found_at_once(folder: Path) -> None:
    """It was turned into text with every look, and that fails if the look is deep enough."""
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    path = _edited(write(folder), blocks=[{"block": 0, "sha256": deep}])
    with pytest.raises(CheckpointError, match=r"\[\[\[ is no str"):
        opened(path)


@pytest.mark.parametrize(
    "manifest",
    [
        b"\xff" * 100_000,
        b'{"format": "\\ud800", ',
        b'{"format": %s, ' % (b"9" * 4000),
        b'{"format": "%s", ' % (b"x" * 100_000),
    ],
    ids=["no text", "half a character", "long number", "long format"],
)
def test_complaints_are_short_and_can_be_shown(folder: Path, manifest: bytes) -> None:
    path = write(folder)
    rest = (path / "manifest.json").read_bytes().replace(b'"format": 1,', b"").lstrip(b"{ \n")
    (path / "manifest.json").write_bytes(manifest + rest)
    said = refusal(lambda: opened(path))
    assert len(said) < len(str(path)) + 400
    said.encode()


def test_whole_numbers_of_a_loss_are_read(folder: Path) -> None:
    """JSON need not tell 3 from 3.0, a message does. Early versions wrote no parts of a loss."""
    found = opened(_edited(write(folder), tallies=[_TALLY, {**_TALLY, "cross_entropy_sum": 2}]))
    assert repr(found.state.tallies) == repr((Tally(0, 1, 3.0, None), Tally(0, 1, 3.0, None, 2.0)))


def _edited(path: Path, removed: str | None = None, **changes: Any) -> Path:
    manifest = {**json.loads((path / "manifest.json").read_text()), **changes}
    manifest.pop(removed or "", None)
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def test_names_of_files_are_never_taken_from_the_manifest(folder: Path, tmp_path: Path) -> None:
    path = write(folder)
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    entry = {
        "block": 0,
        "file": "../../secret",
        "sha256": sha256(b"secret").hexdigest(),
        "bytes": 6,
    }
    with pytest.raises(CheckpointError, match=r"block-00\.safetensors: is damaged"):
        opened(_edited(path, blocks=[entry])).read()
    right = {**entry, "sha256": sha256(b"first block").hexdigest()}
    assert opened(_edited(path, blocks=[right])).read() == {0: b"first block"}


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"dtype": "F8_E8M0", "shape": [1], "data_offsets": [0, 1]}, "KeyError: 'F8_E8M0'"),
        ({"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}, "KeyError: 'F4'"),
        ({"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}, "TypeError: "),
        ({"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}, "RuntimeError: "),
        ({"dtype": "x" * 9000, "shape": [], "data_offsets": [0, 1]}, "SafetensorError: "),
    ],
    ids=["a type of scales", "half bytes", "a vast side", "vast strides", "a long name"],
)
def test_block_files_of_which_torch_makes_no_tensors(entry: dict[str, Any], says: str) -> None:
    """They are right as far as safetensors knows, or their fault takes pages to tell."""
    header = json.dumps({"weight": entry}).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(entry["data_offsets"][1])
    said = refusal(lambda: decode_block(data))
    assert said.startswith(f"not a block file: {says}")
    assert len(said) < 600


# --- what a person can do -----------------------------------------------------------------


def test_way_back_without_an_earlier_checkpoint(folder: Path) -> None:
    path = write(folder, 5)
    write(folder, 9)
    assert way_back(folder, path) == "there is no earlier checkpoint in this run directory"


def test_way_back_is_a_command_that_works(tmp_path: Path) -> None:
    folder = tmp_path / "my run" / "checkpoints"
    folder.parent.mkdir()
    for step in (3, 5, 9):
        write(folder, step)
    damaged = folder / "step-00000009"
    said = way_back(folder, damaged)
    command = shlex.join(["mv", str(damaged), str(folder / "damaged-step-00000009")])
    assert said == (
        "the previous complete checkpoint is step-00000005: to go on from it, "
        f"set the damaged one aside ({command}) and repeat the command"
    )
    _, source, target = shlex.split(command)
    Path(source).rename(target)
    assert newest(folder).state.position.step == 5
