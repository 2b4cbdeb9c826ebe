"""Home folders: `~` is one wherever a path is given, and nobody needs to have one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launch.job import Options
from launch.plan import cost_cache
from launch.plan.checks import make_job
from pipeline.config.data import DataConfig
from pipeline.data.facts import data_root
from pipeline.errors import ConfigError
from pipeline.system.paths import expanded, file_named


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without HOME whom the system does not know by name."""

    def unknown(key: object) -> None:
        raise KeyError(key)

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("~", "/h"),
        ("~/a b", "/h/a b"),
        ("./~x", "~x"),
        ("a/~", "a/~"),
        ("/~/x", "/~/x"),
        (".", "."),
    ],
)
def test_a_home_folder_is_written_out(
    monkeypatch: pytest.MonkeyPatch, given: str, found: str
) -> None:
    monkeypatch.setenv("HOME", "/h")
    assert expanded("--plan", given) == Path(found)


def test_an_empty_path_is_none() -> None:
    """Such as that of a variable which was not set; the current folder would be a bad guess."""
    with pytest.raises(ConfigError, match="--plan '': is empty: give a path"):
        expanded("--plan", "")


@pytest.mark.parametrize("given", ["~no-such-user", "~no-such-user/x", "~~/x"])
def test_an_unknown_one_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match=r"^--plan ~.*: there is no user .*; write the folder"):
        expanded("--plan", Path(given))


def test_a_file_that_is_written_is_none_of_the_systems(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path in (Path("/dev/null"), tmp_path / "pipe", tmp_path / "link"):
        with pytest.raises(ConfigError, match=r"^--out /.*: is no file, but a device or the like"):
            file_named("--out", path)


def test_what_a_link_leads_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    assert file_named("--out", tmp_path / "link") == tmp_path.resolve() / "file"
    (tmp_path / "file").touch()
    assert file_named("--out", tmp_path / "link") == tmp_path.resolve() / "file"


@pytest.mark.usefixtures("nobody")
def test_who_has_no_home_is_told_so_where_they_name_it() -> None:
    with pytest.raises(ConfigError, match=r"^data\.root ~/d: this user has no home folder; "):
        data_root(DataConfig(name="mnist", root="~/d"))


@pytest.mark.usefixtures("nobody")
def test_who_has_no_home_keeps_no_measurements_and_plans(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(Options(tiny, gpus="cpu"))
    assert job.known_speed is None
    with pytest.raises(ConfigError, match=r"no home folder; let XDG_CACHE_HOME name a folder"):
        make_job(Options(tiny, gpus="cpu", measure=True))
    monkeypatch.setenv("XDG_CACHE_HOME", "/kept/here")
    assert str(cost_cache.cost_file(job.config, job.specs, "cpu")).startswith("/kept/here/")


def test_the_config_may_be_at_home(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tiny.parent))
    assert make_job(Options(Path("~/tiny.yaml"), gpus="cpu", dry_run=True)).name == "tiny"


@pytest.mark.parametrize("option", ["plan", "assume"])
def test_every_other_file_that_is_named_may_be_there_too(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setenv("HOME", str(tiny.parent))
    given = {option: Path("~/none.json")}
    with pytest.raises(ConfigError, match=f"{tiny.parent}/none.json"):
        make_job(Options(tiny, gpus="cpu", dry_run=True, **given))  # type: ignore[arg-type]
