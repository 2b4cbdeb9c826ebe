"""Messages survive the wire; whatever is malformed is a ProtocolError and nothing else."""

from __future__ import annotations

import ast
from dataclasses import is_dataclass, replace
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

import msgpack
import pytest
from fuzz.examples import EXAMPLES
from fuzz.trees import WRONG, as_tree, at, places, replaced
from hypothesis import given
from hypothesis import strategies as st
from support import REPOSITORY

from pipeline.config import yaml_text
from pipeline.data.facts import DataFacts
from pipeline.dtypes import ITEM_BYTES
from pipeline.errors import ProtocolError
from pipeline.protocol.addresses import CARRIERS, WAYS, Carrier, LinkAddress, reason_of
from pipeline.protocol.codec import MAX_DEPTH, MAX_HEADER_BYTES, MAX_ITEMS, decode, encode
from pipeline.protocol.messages import (
    ACTIVITIES,
    EXAMPLE_TYPES,
    MAX_DIMENSIONS,
    MAX_TENSORS,
    TARGET_TYPES,
    Bye,
    Connect,
    Connected,
    Credit,
    Failure,
    Header,
    Heartbeat,
    Hello,
    Message,
    ProgressNow,
    Setup,
    TensorSpec,
)
from pipeline.schedule import items
from pipeline.schedule.reports import DOINGS, ClockReading, StageState, Tally, Timeline, Usage

if TYPE_CHECKING:
    from pathlib import Path

# --- every message that can be built ------------------------------------------------------

numbers = st.integers(-(2**63), 2**64 - 1)
reals = st.floats(allow_nan=False)
texts = st.text(max_size=20)
reasons = texts.filter(str.isprintable)
ways = st.sampled_from(WAYS)
trees = st.recursive(
    st.none() | st.booleans() | numbers | reals | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
means = st.lists(reals, max_size=3).map(tuple)
shapes = st.lists(st.integers(1, 9), max_size=MAX_DIMENSIONS - 1).map(tuple)
facts = st.builds(
    DataFacts,
    shapes,
    *(numbers, numbers, numbers),
    *(means, means),
    st.sampled_from(EXAMPLE_TYPES),
    shapes,
    st.sampled_from(TARGET_TYPES),
    numbers,
)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "facts": facts,
    "dtype": st.sampled_from(sorted(ITEM_BYTES)),
    "shape": st.lists(st.integers(0, 9), max_size=MAX_DIMENSIONS).map(tuple),
    "channels_last": st.just(False),
    "way": ways,
    "kind": st.sampled_from(sorted(CARRIERS)),
    "memory": st.binary(min_size=64, max_size=64),
    "secret": st.binary(min_size=32, max_size=32),
    "no_ring": reasons,
    "no_device_ring": reasons,
    "no_stream": reasons,
    "doing": st.sampled_from(ACTIVITIES),
    "config": st.dictionaries(texts, trees),
}
"""Of fields that refuse most of what their type holds, in whatever message they are."""
PLAIN = {int: numbers, float: reals, str: texts, bool: st.booleans(), type(None): st.none()}


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Of a type, as messages name it."""
    if is_dataclass(hint):
        named = get_type_hints(hint).items()
        return st.builds(
            hint,
            **{name: FIELDS[name] if name in FIELDS else values_of(its) for name, its in named},
        )
    if get_origin(hint) is tuple:
        return st.lists(values_of(get_args(hint)[0]), max_size=3).map(tuple)
    return st.one_of(map(values_of, get_args(hint))) if get_args(hint) else PLAIN[hint]


headers = st.builds(Header, values_of(items.Marker)) | st.builds(
    Header,
    values_of(items.Batch),
    st.lists(values_of(TensorSpec), min_size=1, max_size=3).map(tuple),
    numbers,
    ways,
)
times = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def timelines(draw: st.DrawFn) -> Timeline:
    """Any that can be built."""
    of = draw(st.lists(values_of(items.Item), min_size=1, max_size=3))
    *began_s, ended_s = sorted(draw(st.lists(times, min_size=1, max_size=4)))
    spans = {"min_size": len(began_s), "max_size": len(began_s)}
    what = draw(st.lists(st.integers(0, len(DOINGS) - 1), **spans))
    item = draw(st.lists(st.integers(0, len(of) - 1), **spans))
    marks = draw(st.lists(st.tuples(numbers, times), max_size=3))
    clock = ClockReading(draw(texts), draw(times), draw(times))
    device = (tuple(at for at, _ in marks), tuple(at_s for _, at_s in marks))
    plain = (tuple(of), tuple(began_s), tuple(what), tuple(item))
    return Timeline(*plain, ended_s, clock, *device, draw(st.booleans()))


messages: st.SearchStrategy[Any] = st.one_of(
    headers,
    timelines(),
    *(values_of(kind) for kind in get_args(Message) if kind not in (Header, Timeline)),
)


@given(messages)
def test_round_trip(message: Message) -> None:
    assert decode(encode(message)) == message
    assert decode(memoryview(encode(message))) == message


def test_every_kind_of_message_is_tried() -> None:
    assert {type(message) for message in EXAMPLES} == set(get_args(Message))


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_types_survive(message: Any) -> None:
    again: Any = decode(encode(message))
    assert again == message
    assert repr(again) == repr(message)  # 1 == 1.0 == True, but they are printed differently


def test_a_whole_number_is_a_float_where_one_is_wanted() -> None:
    again: Any = decode(encode(Heartbeat(1, 1, "working", 2)))
    assert repr(again) == "Heartbeat(handled=1, batch_id=1, doing='working', cpu_s=2.0)"


def test_no_number_and_infinity_travel() -> None:
    again: Any = decode(encode(ProgressNow(1, float("nan"), 0, (Tally(0, 1, float("inf"), None),))))
    assert again.busy != again.busy
    assert again.tallies[0].loss_sum == float("inf")


# --- malformed ----------------------------------------------------------------------------


def refused(data: bytes) -> str:
    """The complaint, which is short whatever came."""
    with pytest.raises(ProtocolError) as caught:
        decode(data)
    assert len(str(caught.value)) < 500
    return str(caught.value)


def outcome(data: bytes) -> Message | ProtocolError:
    """A message, or the complaint: nothing else may come of any bytes."""
    try:
        return decode(data)
    except ProtocolError as error:
        return error


def decodes_or_is_refused(data: bytes) -> None:
    found = outcome(data)
    assert isinstance(found, (ProtocolError, *get_args(Message)))
    assert isinstance(found, get_args(Message)) or len(str(found)) < 500


@given(st.binary(max_size=200))
def test_random_bytes(data: bytes) -> None:
    decodes_or_is_refused(data)


plain = st.recursive(
    st.none() | st.booleans() | numbers | st.floats() | st.text(max_size=9) | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)


@given(plain)
def test_random_values(value: Any) -> None:
    refused(msgpack.packb(value))


@given(message=messages, end=st.floats(0, 1, exclude_max=True))
def test_truncated_messages(message: Message, end: float) -> None:
    data = encode(message)
    refused(data[: int(end * len(data))])


@given(message=messages, tail=st.binary(min_size=1, max_size=9))
def test_messages_with_a_tail(message: Message, tail: bytes) -> None:
    refused(encode(message) + tail)


@given(message=messages, place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_changed_bytes(message: Message, place: float, byte: int) -> None:
    data = bytearray(encode(message))
    data[int(place * len(data))] = byte
    decodes_or_is_refused(bytes(data))


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_every_field_with_every_wrong_type(message: Message) -> None:
    tree = as_tree(message)
    assert msgpack.packb(tree) == encode(message)
    for path in places(tree):
        for value in WRONG:
            there = at(tree, path)
            if type(value) is type(there) or (isinstance(there, float) and value == -1):
                continue
            data = msgpack.packb(replaced(tree, path, value))
            found = outcome(data)
            # where it is taken, the field may be None, or one of several things
            if isinstance(found, ProtocolError):
                assert len(str(found)) < 500
            else:
                assert encode(found) == data


def test_wrong_type_is_named_with_message_and_field() -> None:
    tree = {**as_tree(Credit(0)), "slot": "first"}
    assert refused(msgpack.packb(tree)) == "Credit.slot: 'first' is not a <class 'int'>"
    tree = {**as_tree(Credit(0)), "slot": True}
    assert refused(msgpack.packb(tree)) == "Credit.slot: True is not a <class 'int'>"
    tree = {**as_tree(Header(items.Stop())), "item": as_tree(Bye())}
    assert refused(msgpack.packb(tree)).startswith("Header.item: dict is not a ")


def test_missing_and_unknown_fields_are_named() -> None:
    tree = as_tree(Hello("run", 1, 5))
    missing = {key: value for key, value in tree.items() if key != "pid"}
    assert refused(msgpack.packb(missing)) == "Hello: missing or unknown fields ['pid']"
    assert refused(msgpack.packb({**tree, "uid": 0})) == "Hello: missing or unknown fields ['uid']"
    many = {**tree, **{f"{number}" * 100: 0 for number in range(100)}}
    assert refused(msgpack.packb(many)).startswith("Hello: missing or unknown fields ['0000")


@pytest.mark.parametrize("name", ["Message", "object", "Path", "system", "", "x" * 10_000])
def test_unknown_classes(name: str) -> None:
    assert refused(msgpack.packb({"type": name})).startswith("unknown message type '")


@pytest.mark.parametrize(
    "part", [items.Stop(), Tally(0, 1, 1.0, None), TensorSpec("uint8", (1,)), Usage(1.0, 1.0, 1)]
)
def test_parts_of_messages_are_no_messages(part: Any) -> None:
    said = refused(msgpack.packb(as_tree(part)))
    assert said == f"{type(part).__name__} is no message of its own"


@pytest.mark.parametrize(
    "data",
    [
        msgpack.packb({**as_tree(Credit(0)), "slot": msgpack.ExtType(5, b"x")}),
        msgpack.packb({**as_tree(Credit(0)), "slot": msgpack.Timestamp(1)}),
        msgpack.packb({1: 2}),
        b"\xc1",
        b"\xd6\xff\x00\x00\x00\x00",  # a time
        b"\xc7\x05\xff12345",  # a time of a wrong length
        b"\x82\xa4type\xa6Credit\xa4slot\xa1\xff",  # text that is not UTF-8
        b"\x82\xa4type\xa6Credit\xa4type\xa6Credit",
        b"\xdf\xff\xff\xff\xff",  # a map of 4 thousand million entries
        b"\xdd\xff\xff\xff\xff",  # a list of as many
        b"\xc6\xff\xff\xff\xff",  # bytes
    ],
    ids=range(11),
)
def test_odd_msgpack(data: bytes) -> None:
    refused(data)


@pytest.mark.parametrize("depth", [100, 900, 1020, 5000])
def test_deep_nesting(depth: int) -> None:
    deep = b"\x91" * depth + b"\x01"
    refused(deep)
    refused(b"\x82\xa4type\xa6Credit\xa4slot" + deep)


def test_oversized_headers_are_not_read() -> None:
    largest = encode(Failure("x" * (MAX_HEADER_BYTES - 100), None, 0, ""))
    assert decode(largest)
    data = encode(Failure("x" * MAX_HEADER_BYTES, None, 0, ""))
    assert refused(data) == f"header of {len(data)} bytes: at most {MAX_HEADER_BYTES} are read"


def test_long_lists_are_not_read() -> None:
    """4 million numbers took 7 s to check, and a list that claims to be long takes memory."""
    most = StageState(1, 1, True, tuple(range(MAX_ITEMS)), ())
    assert decode(encode(most)) == most
    claim = b"\xdd" + (1 << 21).to_bytes(4, "big")
    for data in (encode(replace(most, blocks=(*most.blocks, 1))), claim * 1000 + bytes(1 << 21)):
        assert f"exceeds max_array_len({MAX_ITEMS})" in refused(data)


@pytest.mark.parametrize(
    ("dtype", "shape", "says"),
    [
        ("float16", (1,), "tensor type 'float16' is none of uint8, "),
        ("x" * 10_000, (1,), "tensor type 'xxx"),
        ("uint8", (-1,), "tensor shape (-1,) is not one"),
        ("uint8", (1,) * 9, "tensor shape (1, 1, 1, 1, 1, 1, 1, 1, 1) is not one"),
        ("uint8", (1,) * MAX_ITEMS, "tensor shape (1, "),
        ("uint8", (1,) * 100_000, f"100000 exceeds max_array_len({MAX_ITEMS})"),
        ("uint8", (2**63, 2**63), "bytes: at most 68719476736 travel"),
        ("int64", (2**34,), "tensor of 137438953472 bytes"),
    ],
)
def test_absurd_tensors(dtype: str, shape: tuple[int, ...], says: str) -> None:
    spec = {"type": "TensorSpec", "dtype": dtype, "shape": list(shape), "channels_last": False}
    tree = as_tree(Header(items.TrainBatch(1, 1, 1.0), (TensorSpec("uint8", (1,)),), 0))
    assert says in refused(msgpack.packb({**tree, "tensors": [spec]}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dtype": "bfloat16"}, "examples are bfloat16, targets int64"),
        ({"target_dtype": "uint8"}, "examples are uint8, targets uint8"),
        ({"dtype": "object"}, "tensor type 'object' is none of"),
        ({"shape": (1,) * 8}, "tensor shape (1, 1, 1"),
        ({"target_shape": (3, -1)}, "tensor shape (1, 3, -1) is not one"),
    ],
)
def test_a_stage_is_set_up_for_data_that_can_travel(changes: dict[str, Any], says: str) -> None:
    (setup,) = (message for message in EXAMPLES if isinstance(message, Setup))
    with pytest.raises(ProtocolError) as caught:
        replace(setup, facts=replace(setup.facts, **changes))
    assert says in str(caught.value)


def test_only_feature_maps_have_channels() -> None:
    assert TensorSpec("uint8", (2, 3, 4, 4), channels_last=True).nbytes == 96
    with pytest.raises(ProtocolError, match=r"tensor shape \(2, 3\) has no channels to be last"):
        TensorSpec("uint8", (2, 3), channels_last=True)


def test_headers_refuse_to_be_built_wrong() -> None:
    batch, spec = items.TrainBatch(1, 1, 1.0), TensorSpec("uint8", (1,))
    right = Header(batch, (spec,), slot=0)
    for wrong in (
        lambda: replace(right, tensors=()),
        lambda: replace(right, slot=None),
        lambda: Header(batch),
        lambda: Header(items.EvaluationBatch(1, 1)),
        lambda: Header(items.Stop(), (spec,)),
        lambda: Header(items.Stop(), (), slot=0),
    ):
        with pytest.raises(ProtocolError, match="a batch has tensors and a slot"):
            wrong()
    assert replace(right, tensors=(spec,) * MAX_TENSORS)
    with pytest.raises(ProtocolError, match="17 tensors: at most 16 travel"):
        replace(right, tensors=(spec,) * (MAX_TENSORS + 1))


# --- no pickle ----------------------------------------------------------------------------

EXECUTES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
CARRIES_OUT = {"eval", "exec", "compile_command", "send_pyobj", "recv_pyobj"}
SOURCES = [*(REPOSITORY / "pipeline").rglob("*.py"), *(REPOSITORY / "launch").rglob("*.py")]


@pytest.mark.parametrize("reason", ["x" * 201, "two\nlines", "\x1b[31mred"])
@pytest.mark.parametrize("field", ["no_ring", "no_device_ring", "no_stream"])
def test_reasons_are_a_few_printable_words(field: str, reason: str) -> None:
    tree = as_tree(Connect(LinkAddress("ipc://x", None, "word")))
    tree["address"][field] = reason
    assert refused(msgpack.packb(tree)).endswith("characters: at most 200 travel, all printable")


@pytest.mark.parametrize(
    "error", [OSError("x\n" * 300), OSError(12, "Cannot allocate memory"), OSError(2, "No", "/x")]
)
def test_reasons_of_errors_travel(error: OSError) -> None:
    address = LinkAddress("ipc://x", None, "word", no_ring=reason_of(error))
    assert decode(encode(Connect(address))) == Connect(address)
    assert address.no_ring[:4] in ("x x ", "Cann", "[Err")


def test_nothing_is_executed_that_came_from_a_socket_or_a_file() -> None:
    assert {path: found for path in SOURCES if (found := executed_in(path))} == {}


def executed_in(path: Path) -> set[str]:
    """By which names a file of the sources may carry out what it reads."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    called = {
        node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for node in nodes
        if isinstance(node, ast.Call) and not _puts_a_module_into_test_mode(node)
    }
    imported = {
        name.split(".")[0]
        for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
        )
    }
    if path.name == "packed.py":  # what a process gives to those that it forks, and nobody else
        imported -= {"cloudpickle"}
    # an export writes a state dict for others to read, and reads none
    kept_from = ("load",) if path.name == "formats.py" else ("load", "save")
    of_torch = {
        f"torch.{node.attr}"
        for node in nodes
        if isinstance(node, ast.Attribute)
        and node.attr in kept_from
        and getattr(node.value, "id", "") in ("torch", "numpy", "np")
    }
    return (imported & EXECUTES) | (called & CARRIES_OUT) | of_torch


def _puts_a_module_into_test_mode(call: ast.Call) -> bool:
    """`module.eval()`: what would execute a text takes it as an argument."""
    named = isinstance(call.func, ast.Attribute) and call.func.attr == "eval"
    return named and not (call.args or call.keywords)


@pytest.mark.parametrize(
    ("call", "harmless"),
    [("net.eval()", True), ("eval(x)", False), ("builtins.eval(x)", False), ("eval()", False)],
)
def test_a_call_that_executes_a_text_is_told_from_test_mode(call: str, harmless: bool) -> None:
    (found,) = (node for node in ast.walk(ast.parse(call)) if isinstance(node, ast.Call))
    assert _puts_a_module_into_test_mode(found) is harmless


def test_four_files_import_what_is_named_at_run_time_and_only_by_the_launcher() -> None:
    """A worker refuses a network that it was not started with (test_user_network.py); the process
    that starts workers hears of them from the launcher alone, whose child it is, and so do those
    of a sweep's runs; a command's module stands in a table. Two packages import modules of their
    own when a name of theirs is asked for."""
    importing = {path for path in SOURCES if _imports_what_is_named_at_run_time(path)}
    of_their_own = {REPOSITORY / "pipeline" / name for name in ("__init__.py", "rules/__init__.py")}
    others = {"child_commands.py", "entry.py", "fork_server.py", "named_object.py"}
    assert {p.name for p in importing - of_their_own} == others


def _imports_what_is_named_at_run_time(path: Path) -> bool:
    text = path.read_text(encoding="utf-8")
    if "import_module" not in text:  # few have it, and to look through all calls takes long
        return False
    calls = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
    return any(
        not isinstance(call.args[0], ast.Constant)
        for call in calls
        if ast.unparse(call.func).endswith("import_module")
    )


def test_sources_are_found() -> None:
    assert {"codec.py", "zmq_link.py", "local.py"} <= {path.name for path in SOURCES}


def nested(depth: int) -> dict[str, Any]:
    return {"": nested(depth - 1)} if depth > 1 else {}


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        (nested(MAX_DEPTH + 1), f"or {MAX_DEPTH} of them in each other"),
        ({"layers": [[0] * 18000, [0] * 18000]}, f"Setup.config: more than {MAX_ITEMS} values"),
        ({"bytes": b""}, "Setup.config: bytes is no plain value"),
        ({b"bytes": 1}, "Setup.config: bytes is no plain value"),
        ({"time": msgpack.Timestamp(1)}, "Setup.config: Timestamp is no plain value"),
        ("{}", "Setup.config: '{}' is not a dict[str, typing.Any]"),
    ],
    ids=range(6),
)
def test_a_configuration_is_a_tree_of_plain_values(tree: Any, says: str) -> None:
    (setup,) = (message for message in EXAMPLES if isinstance(message, Setup))
    deepest = replace(setup, config=nested(MAX_DEPTH))
    assert decode(encode(deepest)) == deepest
    assert says in refused(msgpack.packb({**as_tree(setup), "config": tree}))


def test_whatever_a_file_may_hold_crosses() -> None:
    most = {"names": [""] * yaml_text._MOST_VALUES}
    setup = next(message for message in EXAMPLES if isinstance(message, Setup))
    assert decode(encode(replace(setup, config=most))).config == most  # type: ignore[union-attr]


def test_a_carrier_is_one_of_those_that_are_and_says_why_no_better_one() -> None:
    assert Carrier("device").in_words() == "memory of the CUDA device"
    assert Carrier("shared", "no CUDA").in_words() == "shared memory (no CUDA)"
    tree = {**as_tree(Connected(Carrier("frames"))), "carrier": as_tree(Carrier("frames"))}
    tree["carrier"]["kind"] = "pigeon"
    assert (
        refused(msgpack.packb(tree))
        == "carrier 'pigeon' is none of frames, shared, device, stream, plain-stream"
    )
