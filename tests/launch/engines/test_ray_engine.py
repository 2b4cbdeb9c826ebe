"""What is refused of `--engine ray` before Ray is there; the host of a run without a cluster."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
from support.processes import launch

from launch.engines.ray_engine import RayEngine
from launch.job import Options
from launch.plan.checks import check_engine, check_local
from pipeline.errors import ConfigError
from pipeline.planning.hosts import Wanted

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def no_cluster_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def found(monkeypatch: pytest.MonkeyPatch, ray: object) -> None:
    monkeypatch.setattr("launch.plan.checks.find_spec", lambda name: ray)


def complaint(**given: object) -> str:
    with pytest.raises(ConfigError) as caught:
        check_engine(Options(None, **given))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_ray_one_line_says_how_to_install_it(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found(monkeypatch, None)
    assert launch(tiny, tiny.parent / "run", engine="ray") == 2
    assert capsys.readouterr().err == (
        "error: --engine ray: needs Ray, which is not installed here: pip install "
        "'local-loss-pipeline[ray]'\n"
    )
    assert not (tiny.parent / "run").exists()


def test_what_does_not_go_with_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, "there")
    check_engine(Options(None, engine="ray"))
    assert complaint(engine="ray", single=True) == (
        "--single trains in this process: leave --engine ray out"
    )
    assert complaint(engine="ray", measure=True).startswith("--measure: measures this machine")
    assert complaint(engine="ray", replicas=("auto",)).endswith("say which stage, as 1:2")
    assert complaint(ray_address="10.0.0.1:6379").endswith("are for --engine ray")
    assert complaint(ray_insecure=True).endswith("are for --engine ray")
    with pytest.raises(ConfigError, match="this command trains on this machine alone"):
        check_local(Options(None, engine="ray"))


def test_a_ray_client_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://10.0.0.1:10001")
    with pytest.raises(ConfigError, match=r"ray://.*: .* give its head as 10.0.0.1:6379"):
        RayEngine(None, insecure=False)


@pytest.mark.parametrize("address", ["nonsense", "10.0.0.1", "10.0.0.1:", ":6379", "a b:1", "auto"])
def test_an_address_has_a_host_and_a_port(address: str) -> None:
    with pytest.raises(ConfigError, match=f"--ray-address {address}: give host and port"):
        RayEngine(address, insecure=False)


@pytest.mark.parametrize("address", ["10.0.0.1:6379", "head:6379", "[fe80::1]:6379"])
def test_nothing_is_asked_of_an_address_before_a_plan_is_made(address: str) -> None:
    RayEngine(address, insecure=False).close()


@pytest.mark.parametrize(("gpus", "devices"), [("cpu", ("cpu",)), ("0-1", ("cuda:0", "cuda:1"))])
def test_without_a_cluster_this_machine_is_the_one_host(
    monkeypatch: pytest.MonkeyPatch, gpus: str, devices: tuple[str, ...]
) -> None:
    """Nothing is started for a plan."""
    monkeypatch.setattr("launch.engines.ray_engine.devices", lambda spec: devices)
    engine = RayEngine(None, insecure=False)
    (host,) = engine.hosts(Wanted(gpus, 2))
    assert (host.name, host.address) == (socket.gethostname().partition(".")[0], "127.0.0.1")
    assert (host.devices, host.room) == (devices, None)
    assert engine._broker is None
    engine.close()
