"""Files that people write: bounded before work is done; what would be misread is refused."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.config import yaml_file
from pipeline.config.yaml_file import load_tree, load_words
from pipeline.config.yaml_text import dump_tree, value_of, word_for
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECONDS = 8.0
"""Where nothing is bounded each of these takes minutes, or all memory; here one or two."""


def refused(read: Callable[[Any], Any], given: Any) -> str:
    """The one line that a text or file gives, soon."""
    begun = time.process_time()
    with pytest.raises(ConfigError) as caught:
        read(given)
    assert time.process_time() - begun < SECONDS
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 400
    return said


def refused_file(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    said = refused(load_tree, path)
    assert said.startswith(f"{path}:")
    return said


# --- what people read otherwise -------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("010", "010 would be read as 8 (octal): write a number in plain decimal digits, or in"),
        ("-0017", "-0017 would be read as -15 (octal): "),
        ("0x10", "0x10 would be read as 16 (hexadecimal): "),
        ("0b11", "0b11 would be read as 3 (binary): "),
        ("1_000", "1_000 would be read as 1000 (underscores are skipped): "),
        ("1:30", "1:30 would be read as 90 (base 60): "),
        ("12:30:45", "12:30:45 would be read as 45045 (base 60): "),
        ("1:30.5", "1:30.5 would be read as 90.5 (base 60): "),
        ("1_0.5", "1_0.5 would be read as 10.5 (underscores are skipped): "),
        ("08", "08 is a number to some and a text to others: write a number in plain decimal"),
        ("0o17", "0o17 is a number to some and a text to others: "),
        ("1e400", "1e400 would be read as inf: write a number that 64 bits hold"),
        ("-1e999", "-1e999 would be read as -inf: "),
        ("1e-400", "1e-400 would be read as 0.0: "),
        ("9" * 5000, "has 5000 digits, too many for a number"),
        ("=", "= has a meaning of its own in YAML: write '='"),
        ("[<<]", "<< has a meaning of its own in YAML: write '<<'"),
        ("!!python/object:os.system x", "the tag '!!python/object:os.system' is not allowed: "),
        ("!mine {a: 1}", "the tag '!mine' is not allowed: write plain values, without !tags"),
        ("!!binary aGk=", "the tag '!!binary' is not allowed"),
        ("!!set {a, b}", "the tag '!!set' is not allowed"),
        ("!!int ''", "'' is no int"),
        ("!!float ''", "'' is no float"),
        ("--- 1\n--- 2", "expected a single document in the stream, but found another document"),
        ("{a: 1, 'a': 2}", "key 'a' is given twice"),
        ("{epochs: 1,000}", "000 would be read as 0 (octal)"),
        ('"\\UFFFFFFFF"', "YAML syntax: an escape names no character"),
        ("&a [*a]", "*a is recursive: it stands within what it names"),
        ("\ta: 1", "found character '\\t' that cannot start any token"),
    ],
)
def test_what_would_be_misread_is_refused_with_what_it_would_be(text: str, said: str) -> None:
    assert said in refused(value_of, text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0), ("-0", 0), ("10", 10), ("+5", 5), ("-12", -12), ("0.5", 0.5), (".5", 0.5),
        ("5.", 5.0), ("1e-3", 1e-3), (".5e3", 500.0), ("1E5", 1e5), ("0e5", 0.0), ("007.5", 7.5),
        ("1.5e3", 1500.0), ("true", True), ("False", False), ("~", None), ("null", None),
        ("", None), ("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("'010'", "010"),
        ('"0x10"', "0x10"),
        ("!!str 010", "010"), ("1,000", "1,000"), ("v1_000", "v1_000"), ("00-a", "00-a"),
        ("a: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
        ("é", "é"), ("[1, [2, {a: b}]]", [1, [2, {"a": "b"}]]),
        ("a: &x {b: 1}\nc: {<<: *x, d: 2}", {"a": {"b": 1}, "c": {"b": 1, "d": 2}}),
        ("a: &x [1]\nc: *x", {"a": [1], "c": [1]}),
    ],
)  # fmt: skip
def test_what_is_plain_is_read(text: str, value: Any) -> None:
    assert value_of(text) == value
    assert type(value_of(text)) is type(value)


@pytest.mark.parametrize("word", ["yes", "No", "ON", "off"])
def test_yes_and_no_are_texts_that_know_what_they_mean(word: str) -> None:
    found = value_of(word)
    assert found == word
    assert found.meant is (word.lower() in ("yes", "on"))
    assert word_for(found) == f"'{word}'"


# --- bounds ---------------------------------------------------------------------------------


def laughs(
    lines: int, form: str = "[*a{0}, *a{0}, *a{0}, *a{0}, *a{0}, *a{0}, *a{0}, *a{0}]"
) -> str:
    rows = [f"a{n}: &a{n} {form.format(n - 1)}" for n in range(1, lines)]
    return "\n".join(["a0: &a0 [lol]", *rows])


@pytest.mark.parametrize(
    "text",
    [
        laughs(20),
        laughs(200),
        laughs(20, "{{x: *a{0}, y: *a{0}}}"),
        laughs(20, "{{x: *a{0}, y: *a{0}}}").replace("[lol]", "{k: 1}").replace("x: *", "<<: *"),
        f"a: &a '{'x' * 100_000}'\nb: [*a, *a, *a, *a]",
        f"[{'1, ' * 30_000}]",
        "".join(f"k{n}:\n" for n in range(15_000)),
    ],
)
def test_values_are_counted_before_anything_is_made_of_them(text: str) -> None:
    said = refused(value_of, text)
    assert "more than 20,000 values, aliases (*name) counted as what they stand for" in said


@pytest.mark.parametrize(
    "text",
    [
        "[" * 1000 + "]" * 1000,
        "[" * 200_000,
        "{a: " * 1000 + "1" + "}" * 1000,
        "- " * 5000,
        "".join(f"{' ' * n}a:\n" for n in range(200)),
        "? " * 2000,
        laughs(40, "[*a{0}]"),
    ],
)
def test_nesting_is_bounded(text: str) -> None:
    said = refused(value_of, text)
    assert "more than 32 lists or mappings in each other: nest less" in said


def test_what_is_within_the_bounds_is_read() -> None:
    assert len(value_of(f"[{'1, ' * 19_000}]")) == 19_000
    deep = value_of("[" * 31 + "1" + "]" * 31)
    for _ in range(31):
        (deep,) = deep
    assert deep == 1
    assert len(value_of("'" + "x" * 250_000 + "'")) == 250_000


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.yaml", "more than 262,144 bytes; at most 256 KiB are read"),
        ("a.json", "4,096 KiB"),
    ],
)
def test_a_huge_file_is_not_read_to_its_end(tmp_path: Path, name: str, said: str) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(1 << 40)  # a hole: no disk is used
    assert said in refused(load_tree, tmp_path / name)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "JSON: more than 32 lists or mappings in each other"),
        ("[" * 40 + "]" * 40, "JSON: more than 32 lists or mappings in each other"),
        ('{"a": NaN}', "NaN is no number that JSON has"),
        ('{"a": -Infinity}', "-Infinity is no number that JSON has"),
        ('{"a": 1, "a": 2}', "key 'a' is given twice"),
        ("9" * 5000, "Exceeds the limit"),
    ],
)
def test_json_has_the_same_bounds(tmp_path: Path, text: str, said: str) -> None:
    assert said in refused_file(tmp_path / "plan.json", text)


# --- files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.yaml", "a.json"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert load_tree(path) == {"a": 1}


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_other_encodings_are_named(tmp_path: Path, encoding: str) -> None:
    said = refused_file(tmp_path / "a.yaml", "root: é\n".encode(encoding))
    assert said.endswith("; save it as UTF-8")


def test_a_pipe_is_read_and_one_that_nobody_writes_to_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"a: 1\n")
    os.close(writer)
    assert load_tree(tmp_path / f"/dev/fd/{reader}") == {"a": 1}
    os.close(reader)
    monkeypatch.setattr(yaml_file, "_PIPE_TIMEOUT_S", 0.01)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="no file, and nothing more came out of it for"):
        load_tree(tmp_path / "fifo")


# --- whatever it is -------------------------------------------------------------------------

SYNTAX = st.lists(
    st.sampled_from(
        ["a", "b", ": ", "- ", "[", "]", "{", "}", ", ", "\n", "\n  ", "&a ", "*a", "<<", "!!int ",
         "!!map ", "!x ", "'", '"', "\\U", "|", ">", "#", "%", "---", "...", "? ", "=", "~", "on",
         "010", "1e5", "1:2", "2020-01-01", ".nan", "\t", "\r", "\x85", "é", "\0", "\ufeff"]
    ),
    max_size=30,
).map("".join)  # fmt: skip


@given(SYNTAX | st.text(max_size=40))
def test_any_text_is_read_or_refused_in_a_line(text: str) -> None:
    said = ""
    try:
        value_of(text)
    except ConfigError as error:
        said = str(error)
    assert len(said.splitlines()) <= 1


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.from_regex(r"\A[-+]?[0-9_:oOxXbB.eE]{1,8}\Z")
    | st.sampled_from(["yes", "no", "on", "off", "=", "<<", "~", "null", "0o17", "08", "1_0"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(value=PLAIN)
@example("\x85")  # which single quotes would not keep
@example({"a\x85b": ["\u2028", "\ufeff"]})
def test_what_is_written_is_read_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, value: Any
) -> None:
    assert value_of(dump_tree(value)) == value
    assert value_of(word_for(value)) == value
    path = tmp_path_factory.getbasetemp() / "tree.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    assert load_tree(path) == value


def test_words_stay_words(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: [0.80, 010, yes, '', 1_0, =, <<]\n", encoding="utf-8")
    assert load_words(path) == {"a": ["0.80", "010", "yes", "", "1_0", "=", "<<"]}
