"""What all commands have in common: their version, and what a shell completes."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.metadata import entry_points, version

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

import launch.entry
from launch.cli import main
from launch.command import NumberRange, complaint_in
from launch.entry import COMMANDS


def test_every_command_is_installed() -> None:
    scripts = {script.name: script.value for script in entry_points(group="console_scripts")}
    for name in COMMANDS:
        assert scripts[name] == f"launch.entry:{name.replace('-', '_')}"
        assert callable(getattr(launch.entry, name.replace("-", "_")))


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("option", ["-V", "--version"])
def test_every_command_says_its_version_and_torch_s(name: str, option: str) -> None:
    command = import_module(COMMANDS[name]).main
    assert isinstance(command, click.Command)
    result = CliRunner().invoke(command, [option], prog_name=name)
    assert result.exit_code == 0
    said = re.fullmatch(
        r"([\w-]+), version (\S+)( \(commit \w+\+?\))?, torch (\S+)\n", result.output
    )
    assert said, result.output
    assert (said[1], said[2], said[4]) == (name, version("local-loss-pipeline"), version("torch"))


def test_nan_lies_between_no_bounds() -> None:
    assert NumberRange(0, 1).convert("0.5", None, None) == 0.5
    with pytest.raises(click.BadParameter, match="'nan' is no number"):
        NumberRange(0, 1).convert("nan", None, None)


@pytest.mark.parametrize(("shell", "says"), [("zsh", "#compdef pipeline-launch"), ("fish", "-f")])
def test_a_shell_is_told_what_to_do(shell: str, says: str) -> None:
    runner = CliRunner(env={"_PIPELINE_LAUNCH_COMPLETE": f"{shell}_source"})
    assert says in runner.invoke(main, prog_name="pipeline-launch").output


def completed(*words: str) -> list[str]:
    """What stands for the last word."""
    shell = ShellComplete(main, {}, "pipeline-launch", "_PIPELINE_LAUNCH_COMPLETE")
    return [item.value for item in shell.get_completions(list(words[:-1]), words[-1])]


def test_keys_and_values_of_a_config_are_completed() -> None:
    assert completed("--set", "loss.al") == ["loss.alpha="]
    assert completed("a.yaml", "--set", "schedule.decay=") == [
        "schedule.decay=milestones",
        "schedule.decay=cosine",
    ]
    assert completed("--set", "loss.name=predsi") == ["loss.name=predsim"]
    assert completed("--set", "loss.nothing=") == []
    assert completed("--list", "mo") == ["models"]


def test_a_config_is_completed_as_a_file() -> None:
    shell = ShellComplete(main, {}, "pipeline-launch", "_PIPELINE_LAUNCH_COMPLETE")
    assert [item.type for item in shell.get_completions([], "my")] == ["file"]


@pytest.mark.parametrize(
    ("stderr", "status", "said"),
    [
        ("a note\nerror: it is so\nmore", 1, "it is so"),
        ("Traceback (most recent call last):\n  at\nValueError: 3\n", 1, "ValueError: 3"),
        ("", 3, "exit status 3"),
        ("a warning\n  warnings.warn(\n", -9, "ended by signal 9 (Killed)"),
        ("error: out of memory", -9, "out of memory"),
    ],
)
def test_why_a_command_failed_is_one_line(stderr: str, status: int, said: str) -> None:
    assert complaint_in(stderr, status) == said


@pytest.mark.parametrize(
    "command",
    [
        "cli", "cli configs/digits.yaml --plan", "cli --assume", "verify", "evaluate", "predict",
        "export", "report.command", "sweep --seeds 1", "referee.command --table",
    ],
)  # fmt: skip
def test_an_empty_path_is_one_line(command: str) -> None:
    """As of a variable that was not set: the current folder would be a bad guess."""
    module, *words = command.split()
    main = import_module(f"launch.{module}").main
    done = CliRunner().invoke(main, [*words, ""])
    assert done.exit_code == 2
    assert "is empty: give a path, or . for the current folder" in " ".join(done.output.split())
