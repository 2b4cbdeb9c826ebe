"""One message of every kind."""

from __future__ import annotations

from typing import Any

from pipeline.data.facts import DataFacts
from pipeline.protocol.addresses import Carrier, DeviceRingHandle, LinkAddress, RingHandle
from pipeline.protocol.messages import (
    Bye,
    CloseLink,
    Complete,
    Connect,
    Connected,
    Credit,
    Failure,
    Header,
    Heartbeat,
    Hello,
    OpenLink,
    ProgressNow,
    Ready,
    Remark,
    Setup,
    TensorSpec,
)
from pipeline.schedule import items
from pipeline.schedule.reports import (
    ClockReading,
    PassReport,
    StageState,
    Tally,
    Timeline,
    Usage,
)

FACTS = DataFacts((1, 8, 8), 10, 100, 20, (0.5,), (0.25,))
ADDRESS = LinkAddress(
    "ipc://x",
    RingHandle("host", 1, 2, 3, 4, 5),
    "word",
    "key",
    DeviceRingHandle("host", bytes(range(64)), 2, 4096),
)
MARKERS = (
    items.Stop(),
    items.PassedBatch(3, 1),
    items.StartEvaluation(1),
    items.EndEvaluation(1),
    items.EndEpoch(1),
    items.Snapshot(3, 1, False),
)
EXAMPLES: list[Any] = [
    *(Header(marker) for marker in MARKERS),
    Header(
        items.TrainBatch(3, 1, 5e-4),
        (TensorSpec("float32", (2, 3)), TensorSpec("int64", (2,))),
        slot=1,
    ),
    Header(items.EvaluationBatch(3, 1), (TensorSpec("uint8", (1, 9)),), slot=0, way="frames"),
    OpenLink("run", 1),
    Credit(0),
    CloseLink(),
    Hello("run", 1, 77),
    Setup(
        0,
        {"model": {"layers": [4, "M"], "dropout": 0.5, "group": None}, "bio": True},
        FACTS,
        (0, 1),
        "cpu",
        "ipc://x",
        True,
        False,
        5,
        1,
        (Tally(0, 9, 1.5, None, 2.5, 0.5),),
        2,
        0.5,
        0,
        0,
        (0,),
    ),
    Ready(0, ADDRESS),
    Connect(None),
    Connect(ADDRESS),
    Complete(3),
    Connected(Carrier("shared", "no device")),
    PassReport(0, 1, False, (Tally(0, 9, 1.5, 3, 2.5, 0.5),), Usage(1.0, 0.5, 7), (6, 2, 1, 0)),
    StageState(1, 1, True, (0,), ()),
    Timeline(
        (items.TrainBatch(3, 1, 5e-4), items.Stop()),
        (1.0, 1.5, 2.0),
        (1, 3, 1),
        (0, 0, 1),
        2.5,
        ClockReading("boot", 3.0, 1.7e9),
        (1, 2),
        (1.6, 1.9),
    ),
    ProgressNow(1, 0.5, 0, ()),
    Remark("a block skipped a batch"),
    Heartbeat(1, 1, "working", 0.5),
    Failure("broken", None, 1, "Traceback"),
    Bye(),
]
