"""Real commands on a Ray cluster of two hosts, a third beside it: what crosses the wire, teams, and
what ends in one line. What hosts may lose meanwhile: `python tests/chaos/cluster.py`."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack, closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import REPOSITORY
from support.hosts import Capture, imitated_hosts, why_not
from support.processes import COMMAND, TINY, digests, final_digests, launch, until
from support.ray_on_hosts import PORT, RAY, TOKEN, RayOnHosts, Training
from zmq.utils import z85

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

pytestmark = [
    pytest.mark.processes,
    pytest.mark.usefixtures("tiny"),
    pytest.mark.timeout(300),
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]
LABELS = re.compile(rb"(?:[\x01-\x09]\x00{7}){3}")
"""Of digits, as they travel: three in a row that are not 0."""
KEEPS_KEYS = """

def _kept(*secrets, made={}):
    import os
    for kind, data in secrets:
        name = f"{kind}-{os.uname().nodename}-{os.getpid()}-{len(made)}"
        made[name] = data
        with open(os.path.join(os.environ["KEPT_KEYS"], name), "wb") as file:
            file.write(data)
"""
PLANTED = {
    "transport/sockets.py": """
_made_keys = make_keys

def make_keys():
    keys = _made_keys()
    _kept(("public", keys.public.encode()), ("secret", keys.secret.encode()))
    return keys
""",
    "transport/stream_format.py": """
_key_of_connection = connection_key

def connection_key(secret, *said):
    key = _key_of_connection(secret, *said)
    _kept(("seal", secret), ("seal", key))
    return key
""",
}
"""Into a copy of the code that all processes of a run share: whoever makes a key writes it down."""


class Cluster(RayOnHosts):
    """`keys`: a folder; `code`: the copy that its processes import."""

    def __init__(self, folder: Path, hosts: Any) -> None:
        self.keys, code = folder / "keys", folder / "code"
        self.keys.mkdir()
        for package in ("pipeline", "launch"):
            shutil.copytree(REPOSITORY / package, code / package)
        for name, planted in PLANTED.items():
            path = code / "pipeline" / name
            path.write_text(path.read_text() + KEEPS_KEYS + planted)
        given = {"PYTHONPATH": str(code), "KEPT_KEYS": str(self.keys), "HOME": str(folder)}
        super().__init__(hosts, (1, 2), given)

    def kept(self, kind: str) -> set[bytes]:
        return {path.read_bytes() for path in self.keys.glob(f"{kind}-*")}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with (
        # paths of Ray's sockets are long enough below it
        tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as name,
        imitated_hosts(Path(name), 3) as hosts,
        closing(Cluster(Path(name), hosts)) as made,
    ):
        made.start(0, 1)
        yield made


# --- what crosses the wire --------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["tcp", "tcp-plain"])
def test_no_key_and_no_label_can_be_read_between_hosts(
    cluster: Cluster, tmp_path: Path, transport: str
) -> None:
    """Ray's own traffic included, which is seen to be there by the public keys in it. That labels
    would be found shows where nothing is encrypted."""
    for old in cluster.keys.iterdir():
        old.unlink()
    words = ("--stages", "3", "--set", f"runtime.transport={transport}")
    with Capture(cluster.hosts) as wire:
        training = Training(cluster, tmp_path / "t", TINY, words)
        training.ends()
    assert launch(tmp_path / "tiny.yaml", tmp_path / "single", single=True) == 0
    assert final_digests(training.run_dir) == final_digests(tmp_path / "single")
    sent = wire.all
    assert bool(LABELS.search(sent)) == (transport == "tcp-plain")
    assert "turned away" not in training.log
    if transport == "tcp":
        public, secret = cluster.kept("public"), cluster.kept("secret")
        assert len(secret) >= 3  # of the launcher, and of an agent on each host
        assert any(key in sent for key in public)
        seals = cluster.kept("seal")
        assert len(seals) == 2  # of the one link between hosts, and of its one connection
        keys = {*map(z85.decode, secret), *seals}
        found = [form for key in keys for form in forms(key) if form in sent]
        assert not found


def forms(key: bytes) -> set[bytes]:
    """Halves of a key as it may be written: one of them is whole, even where the key is divided
    between two packets."""
    texts = [key, z85.encode(key), key.hex().encode(), key.hex().upper().encode()]
    for before, skipped in enumerate((0, 2, 3)):  # it may stand anywhere in what is encoded
        text = base64.b64encode(bytes(before) + key).rstrip(b"=")[skipped:-1]
        texts += [text, text.translate(bytes.maketrans(b"+/", b"-_"))]
    return {half for text in texts for half in (text[: len(text) // 2], text[len(text) // 2 :])}


def test_a_key_would_be_found_however_it_is_written() -> None:
    key = bytes(range(7, 39))
    for text in (key, z85.encode(key), key.hex().encode()):
        assert any(form in b"before" + text + b"after" for form in forms(key))
    for before in range(3):
        encoded = base64.b64encode(b"before"[: 3 + before] + key + b"after")
        assert sum(form in encoded for form in forms(key)) >= 2


# --- teams ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (("--data-parallel", "3"), {"data_parallel": 3}),
        (("--stages", "2", "--replicas", "0:2"), {"stages": 2, "replicas": ("0:2",)}),
    ],
    ids=["members", "replicas"],
)
def test_a_team_on_two_hosts_equals_one_process(
    cluster: Cluster, tmp_path: Path, words: tuple[str, ...], options: Mapping[str, Any]
) -> None:
    training = Training(cluster, tmp_path / "t", TINY, words)
    training.ends()
    assert launch(tmp_path / "tiny.yaml", tmp_path / "single", single=True, **options) == 0
    assert digests(training.run_dir) == digests(tmp_path / "single")
    assert "sealed stream" in training.log


# --- one line each ----------------------------------------------------------------------------


def complaint(cluster: Cluster, *words: str, host: int = 0, **changed: str) -> str:
    """Of a command that must be refused: its one line.

    Args:
        changed: of its environment; an empty text takes a name out.
    """
    given = {**cluster.environment, **changed}
    where = cluster.hosts[host]
    (where.folder / "run.yaml").write_text(TINY)
    done = where.start(
        *(COMMAND, "run.yaml", "--engine=ray", "--gpus=cpu", "--run-dir=run", *words),
        env={name: text for name, text in given.items() if text},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    said, error = done.communicate(timeout=100)
    assert done.returncode == 2, (said, error)
    (line,) = error.splitlines()
    return str(line)


def at(cluster: Cluster) -> str:
    return f"--ray-address={cluster.address}"


def test_ray_is_not_installed(cluster: Cluster) -> None:
    hidden = "import sys; sys.modules['ray'] = None; from launch.cli import main; main()"
    host = cluster.hosts[0]
    (host.folder / "run.yaml").write_text(TINY)
    done = host.start(
        *(sys.executable, "-c", hidden, "run.yaml", "--engine=ray"),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.communicate(timeout=100)[1] == (
        "error: --engine ray: needs Ray, which is not installed here: pip install "
        "'local-loss-pipeline[ray]'\n"
    )
    assert done.returncode == 2


def test_a_token_that_is_wrong_or_missing(cluster: Cluster) -> None:
    wrong = complaint(cluster, at(cluster), RAY_AUTH_TOKEN="f" * len(TOKEN))
    assert wrong == (
        f"error: --engine ray: the cluster at {cluster.address} has another token than "
        "RAY_AUTH_TOKEN says"
    )
    missing = complaint(cluster, at(cluster), RAY_AUTH_TOKEN="")
    assert f"the cluster at {cluster.address} asks for a token, and there is none here" in missing


def test_a_cluster_without_a_token(cluster: Cluster) -> None:
    host = cluster.hosts[2]
    words = (
        *RAY, "start", "--block", "--head", f"--port={PORT}", "--include-dashboard=false",
        f"--temp-dir={host.private}2", f"--node-ip-address={host.address}", "--num-cpus=1",
        "--object-store-memory=80000000", "--disable-usage-stats",
    )  # fmt: skip
    with (host.folder / "ray.log").open("ab") as log:
        open_to_all = {**cluster.environment, "RAY_AUTH_MODE": "disabled"}
        head = host.start(*words, env=open_to_all, stdout=log, stderr=log)
    try:
        until(lambda: b"block forever" in (host.folder / "ray.log").read_bytes(), "a head", 100)
        address = f"{host.address}:{PORT}"
        line = complaint(cluster, f"--ray-address={address}", host=2)
        assert f"the cluster at {address} asks nobody for a token: whoever reaches it may " in line
        assert line.endswith("start it with RAY_AUTH_MODE=token, or give --ray-insecure")
    finally:
        host.turn_off()
        host.turn_on()
        head.wait(10)


def test_nobody_is_at_the_address(cluster: Cluster) -> None:
    """Neither on a host that is there, nor on one that is not."""
    for address in (f"{cluster.hosts[1].address}:9", "10.77.0.99:6379"):
        line = complaint(cluster, f"--ray-address={address}")
        assert line.startswith(f"error: --engine ray: nobody answers at {address} (")
        assert "start Ray's head there (ray start --head)" in line


def test_a_ray_of_another_version(cluster: Cluster, tmp_path: Path) -> None:
    """That of the launcher, whose broker is told so before anything else."""
    (tmp_path / "sitecustomize.py").write_text("import ray; ray.__version__ = '2.59.0'")
    line = complaint(
        cluster, at(cluster), PYTHONPATH=f"{tmp_path}:{cluster.environment['PYTHONPATH']}"
    )
    assert f"the Ray cluster at {cluster.address} is of another version: " in line
    assert "2.59.0" in line


def test_another_version_of_this_package_on_a_host(cluster: Cluster) -> None:
    """The launcher has the repository's, the hosts a changed copy."""
    line = complaint(cluster, at(cluster), PYTHONPATH="")
    assert re.match(
        r"error: host host[01] runs other code than the launcher: pipeline/transport/sockets.py is "
        r"\w+ here, \w+ there; install the same version on every host$",
        line,
    )


def test_two_addresses_in_the_network(cluster: Cluster) -> None:
    line = complaint(cluster, at(cluster), "--set=runtime.bind_address=10.76.0.0/14")
    assert "runtime.bind_address 10.76.0.0/14: host host0 has 2 addresses in it, " in line
    assert all(address in line for address in cluster.hosts[0].addresses[:2])
    assert line.endswith("give a smaller network, in which each host of the run has one")


def test_fewer_ports_than_a_host_needs(cluster: Cluster) -> None:
    """The second host, where the first has enough for what is on it."""
    few = ("--stages=3", "--set=runtime.ports=20000-20002")
    assert complaint(cluster, at(cluster), *few) == (
        "error: runtime.ports 20000-20002: 3 ports, and host host1 needs 4 for stages 1, 2: two "
        "for each, two more for each other member of its team, and one for the launcher; give more "
        "of them"
    )


def test_a_machine_that_is_no_node(cluster: Cluster) -> None:
    line = complaint(cluster, at(cluster), host=2)
    assert f"this machine is no node of the cluster at {cluster.address}: run this on one" in line


def test_a_ray_client(cluster: Cluster) -> None:
    line = complaint(cluster, "--ray-address=ray://10.77.0.10:10001")
    assert "which a Ray Client is no part of" in line


def test_a_blocked_port_is_told_of_and_training_goes_on_once_it_is_open(
    cluster: Cluster, tmp_path: Path
) -> None:
    first, second = cluster.hosts[:2]
    rule = ("ip", "rule", "add", "to", second.address, "ipproto", "tcp", "dport", "21000-21020")
    settings = ("runtime.ports=21000-21020", "runtime.stall_timeout_s=300")
    words = ("--stages", "2", *(part for setting in settings for part in ("--set", setting)))
    with ExitStack() as blocked:
        first.run(*rule, "unreachable")
        blocked.callback(first.run, "ip", "rule", "del", *rule[3:], "unreachable")
        training = Training(cluster, tmp_path / "t", TINY, words)
        training.wait_for("has had no answer")
        blocked.close()
        training.ends()
    assert re.search(
        rf"stage 0, on host host0, has had no answer from stage 1 at {second.address} port "
        r"\d+ for \d+ s: no way leads there; look at the firewalls between them",
        training.log,
    )
