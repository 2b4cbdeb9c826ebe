"""What happens to bytes from a socket or a disk, and the rules that hold whatever they are.

A target takes bytes and returns if the rules were kept: only `ProtocolError` comes out of what
reads sockets, only `CheckpointError` out of what reads checkpoints; an error can be shown to a
person; no file is opened but those that belong to it. Any other exception breaks a rule.
"""

from __future__ import annotations

import atexit
import codecs
import os
import re
import shutil
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from pipeline.errors import CheckpointError, ProtocolError
from pipeline.protocol.codec import MAX_HEADER_BYTES, decode, encode
from pipeline.protocol.messages import CloseLink, Connect, Credit, Header, Ready
from pipeline.schedule.reports import StageState
from pipeline.storage.checkpoint import MANIFEST, block_file_name, checkpoint_in
from pipeline.storage.folder import Folder
from pipeline.transport.payloads import ArrayPayload
from pipeline.transport.rejections import Rejections
from pipeline.transport.shared_memory import Ring, RingWriter
from pipeline.transport.zmq_link import ZmqReceiver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.protocol.addresses import RingHandle
    from pipeline.protocol.messages import Message
    from pipeline.storage.checkpoint import RunState
    from pipeline.transport.sockets import Envelope, Sockets

SEPARATOR = b"\n--\n"
"""Between the files of a checkpoint: the manifest, then block files."""
STEP = 5
LONGEST_COMPLAINT = 1200
_BLOCKS = 4
_SLOT_BYTES = 4096
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


# --- what a peer sends --------------------------------------------------------------------


def codec(data: bytes) -> None:
    """A header frame: decoded, encoded again, and taken by the receiver of a link."""
    try:
        message = decode(data)
    except ProtocolError as error:
        _can_be_shown(error)
        return
    _survives(message)
    _is_taken_or_refused(message, data)
    handle = _ring_of(message)
    if handle:
        _no_other_memory_is_opened(handle)


def _survives(message: Message) -> None:
    data = encode(message)
    if len(data) <= MAX_HEADER_BYTES:  # a float is longer than the small number that it came as
        assert repr(decode(data)) == repr(message)  # not ==: a number may be none


def _is_taken_or_refused(message: Message, data: bytes) -> None:
    specs = message.tensors if isinstance(message, Header) else ()
    small = sum(spec.nbytes for spec in specs) <= 1 << 20
    promised = [bytes(spec.nbytes) for spec in specs] if small else []
    for frames in ([], promised) if promised else ([],):
        socket = _Socket()
        receiver = socket.receiver()
        socket.bring(b"a stranger", data, *frames)
        assert receiver.queued == 0
        assert socket.rejections.count == 1
        socket.bring(receiver.address.word.encode(), data, *frames)
        try:
            _is_delivered(receiver, message)
        except ProtocolError as error:
            _can_be_shown(error)
        finally:
            receiver.close()


def _is_delivered(receiver: ZmqReceiver, message: Message) -> None:
    for _ in range(receiver.queued):
        delivery = receiver.receive(0.0)
        assert isinstance(message, Header)
        assert repr(delivery.item) == repr(message.item)
        sizes = [spec.nbytes for spec in message.tensors]
        assert [tensor.data.nbytes for tensor in delivery.tensors] == sizes
        delivery.release()


class _Socket:
    """In place of a process's sockets and of the one that listens: holds what a test brings."""

    def __init__(self) -> None:
        self.rejections, self.key, self.endpoint = Rejections("here"), None, "here"
        self.where = None  # no stream can come here
        self._waiting: list[Envelope] = []

    def receiver(self) -> ZmqReceiver:
        """That of a link, which listens here. (It is not kept: its memory goes with it.)"""
        return ZmqReceiver(
            cast("Sockets", self),
            "here",
            "run",
            names=("stage 1", "stage 0"),
            slots=2,
            slot_bytes=_SLOT_BYTES,
        )

    def bring(self, name: bytes, *frames: bytes) -> None:
        """What the next `take` gives."""
        self._waiting.append(cast("Envelope", _Envelope(name, frames)))

    def listen(self, endpoint: str, most_bytes: int) -> _Socket:
        return self

    def open(self) -> None:
        """Whoever is to come is in already."""

    def shut(self) -> None:
        """There are no others."""

    def poll(self, timeout_s: float) -> bool:
        return bool(self._waiting)

    def take(self) -> Envelope:
        return self._waiting.pop()

    def send(self, name: bytes, frames: list[bytes]) -> None:
        assert all(isinstance(decode(frame), Credit | CloseLink) for frame in frames)

    def close(self) -> None:
        self._waiting.clear()


class _Envelope:
    def __init__(self, name: bytes, frames: tuple[bytes, ...]) -> None:
        self.name, self.peer = name, "somebody"
        self.frames = [memoryview(frame) for frame in frames]


def _ring_of(message: Message) -> RingHandle | None:
    address = message.address if isinstance(message, Ready | Connect) else None
    return address.ring if address else None


def _no_other_memory_is_opened(handle: RingHandle) -> None:
    """What claims to be a ring of this process, and its own ring with a claimed layout."""
    ring = Ring(2, _SLOT_BYTES)
    own = ring.handle()
    named = replace(handle, host=own.host, pid=own.pid)
    shaped = replace(own, slots=handle.slots, slot_bytes=handle.slot_bytes)
    try:
        with opened_files() as opened:
            for claimed in (named, shaped):
                _is_written_or_refused(claimed)
        links = [os.readlink(name) for name in opened - {_BOOT_ID}]
        assert all(link.startswith("/memfd:pipeline-ring") for link in links), links
    finally:
        ring.close()


def _is_written_or_refused(handle: RingHandle) -> None:
    try:
        RingWriter(handle).write(1, [ArrayPayload(np.zeros(3, np.uint8))])
    except (OSError, ProtocolError) as error:
        _can_be_shown(error)


# --- what lies on a disk ------------------------------------------------------------------


def checkpoint(data: bytes) -> None:
    """A checkpoint's folder: a manifest and block files, which a run starts from.

    `@0` in the manifest stands for the SHA-256 of block 0, which no fuzzer can guess.
    """
    manifest, *files = data.split(SEPARATOR)[: 1 + _BLOCKS]
    folder = _folder()
    _lay_out(folder, manifest, files)
    with opened_files() as opened:
        _starts_a_run_or_is_refused(folder)
    assert all(_is_of_a_checkpoint(name, folder) for name in opened), opened
    for file in (data, *files):
        _is_decoded_or_refused(file)
        _is_decoded_or_refused(framed(file))


def _is_of_a_checkpoint(name: str, folder: Path) -> bool:
    """The folder that holds it, its name, a name in it, or the number of a descriptor."""
    names = rf"{folder.name}|{MANIFEST}|block-\d+.safetensors|\d+"
    return name == str(folder.parent) or bool(re.fullmatch(names, name))


def framed(file: bytes) -> bytes:
    """A block file of JSON, a zero and tensors; of its own accord no fuzzer gets a length right."""
    header, _, tensors = file.partition(b"\0")
    return len(header).to_bytes(8, "little") + header + tensors


@cache
def _folder() -> Path:
    """One for all inputs: to make and to remove it takes longer than all the rest."""
    temp = tempfile.mkdtemp(prefix="fuzz-")
    atexit.register(shutil.rmtree, temp, ignore_errors=True)
    folder = Path(temp) / f"step-{STEP:08d}"
    folder.mkdir()
    return folder


def _lay_out(folder: Path, manifest: bytes, files: list[bytes]) -> None:
    for left in folder.iterdir():
        left.unlink()  # to write over it would be slow: ext4 then waits for the disk
    for block, file in enumerate(files):
        (folder / block_file_name(block)).write_bytes(file)
        digest = sha256(file).hexdigest().encode()
        manifest = manifest.replace(b"@%d" % block, digest)
    (folder / MANIFEST).write_bytes(manifest)


def _starts_a_run_or_is_refused(folder: Path) -> None:
    try:
        _can_travel(checkpoint_in(Folder.open(folder.parent), folder.name).start())
    except CheckpointError as error:
        _can_be_shown(error)


def _can_travel(start: RunState) -> None:
    """The position and the counters go to the stages in a message."""
    step, reported = start.position.step, start.position.epoch_reported
    steps_per_epoch = start.steps_per_epoch
    assert steps_per_epoch is not None
    _survives(StageState(step, steps_per_epoch, reported, tuple(start.files), start.tallies))


def _is_decoded_or_refused(data: bytes) -> None:
    from pipeline.learning.block_file import decode_block  # torch, which the codec does not need

    try:
        tensors = decode_block(data)
    except CheckpointError as error:
        _can_be_shown(error)
        return
    assert sum(tensor.nbytes for tensor in tensors.values()) <= len(data)


# --- for both -----------------------------------------------------------------------------


def _can_be_shown(error: Exception) -> None:
    """Short, and text that any terminal and any log takes."""
    assert len(str(error)) <= LONGEST_COMPLAINT, f"a complaint of {len(str(error))} characters"
    str(error).encode()


_watching: list[set[str]] = []  # an audit hook can't be taken back: there is one, and who listens


@contextmanager
def opened_files() -> Iterator[set[str]]:
    """The names of the files that this process opens meanwhile."""
    _hook()
    names: set[str] = set()
    _watching.append(names)
    try:
        yield names
    finally:
        _watching.pop()


@cache
def _hook() -> None:
    for name in ("utf-8-sig", "utf-16", "utf-16-be", "utf-16-le", "utf-32", "utf-32-be"):
        codecs.lookup(name)  # JSON may come in these, and Python opens a file for each
    codecs.lookup("utf-32-le")
    sys.addaudithook(_hear)


def _hear(event: str, given: tuple[Any, ...]) -> None:
    if event == "open" and _watching:
        name = given[0]
        _watching[-1].add(os.fsdecode(name) if isinstance(name, str | bytes) else str(name))


TARGETS: dict[str, Callable[[bytes], None]] = {"codec": codec, "checkpoint": checkpoint}
