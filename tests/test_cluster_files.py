"""The files that start a cluster agree with the commands they call and with one another."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from support import REPOSITORY
from support.snippets import COMMANDS

IMAGE = "local-loss-pipeline"
SLURM = REPOSITORY / "examples" / "cluster" / "slurm.sh"
KUBERAY = REPOSITORY / "examples" / "cluster" / "kuberay.yaml"
DOCKERFILE = REPOSITORY / "Dockerfile"


def compose(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`docker compose` as a package carries it, which needs no engine."""
    found = find_spec("compose")
    assert found is not None
    assert found.origin is not None
    program = Path(found.origin).with_name("docker-compose")
    return subprocess.run(
        [program, *arguments], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """What compose makes of its file, every profile included."""
    done = compose("--profile", "*", "config", "--format", "json", RAY_AUTH_TOKEN="word")
    assert not done.returncode, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["services"]
    return found


def check_command(words: list[str]) -> None:
    """That a command of ours or of Ray's has the options that it is given."""
    program, *arguments = words
    if program == "ray":
        scripts = pytest.importorskip("ray.scripts.scripts")
        name, *arguments = arguments
        main = scripts.cli.commands[name]
    else:
        main = COMMANDS[program]
    main.make_parser(click.Context(main)).parse_args(arguments)


def joined(script: str, given: list[str]) -> list[list[str]]:
    """The commands of a line for a shell that `&&` joins, with `given` in place of "$@"."""
    line = script.replace('"$$@"', shlex.join(given)).replace('"$@"', shlex.join(given))
    commands = [shlex.split(part) for part in re.sub(r"> ?/dev/null", "", line).split("&&")]
    return [words[1:] if words[0] == "exec" else words for words in commands]


def test_compose_refuses_a_cluster_without_a_token() -> None:
    done = compose("config")
    assert done.returncode
    assert "RAY_AUTH_TOKEN" in done.stderr
    assert "openssl rand" in done.stderr


def test_services_of_compose_are_what_profiles_promise(services: dict[str, Any]) -> None:
    gpus = {name for name, service in services.items() if "reservations" in str(service)}
    profiles = {name: service.get("profiles", []) for name, service in services.items()}
    assert profiles == {"head": [], "worker": ["gpu"], "worker-cpu": ["cpu"], "train": ["train"]}
    assert gpus == {"worker"}
    for service in services.values():
        assert service["image"] == IMAGE
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["environment"]["RAY_AUTH_TOKEN"] == "word"
        assert service["user"] != "0:0"
        assert not service.get("ports")  # nothing is reachable from outside


def test_nodes_of_compose_join_its_head(services: dict[str, Any]) -> None:
    head = services["head"]["command"]
    assert "--head" in head
    port = next(word.split("=")[1] for word in head if word.startswith("--port="))
    assert services["head"]["healthcheck"]["test"][1:] == [
        "ray", "health-check", "--address", f"head:{port}",
    ]  # fmt: skip
    joining = [services["worker"]["command"], services["worker-cpu"]["command"]]
    joining += [joined(services["train"]["entrypoint"][2], [])[0]]
    for command in joining:
        assert f"--address=head:{port}" in command
    for service in services.values():
        assert service["environment"]["RAY_ADDRESS"] == f"head:{port}"


def test_commands_of_compose_have_the_options_they_are_given(services: dict[str, Any]) -> None:
    for name in ("head", "worker", "worker-cpu"):
        check_command(services[name]["command"])
    check_command(services["head"]["healthcheck"]["test"][1:])
    train = services["train"]
    ours, theirs = train["command"], train["entrypoint"]
    assert theirs[:2] == ["/bin/sh", "-c"]
    assert len(theirs) == 4  # the script's name; what the user gives follows
    started, launched = joined(theirs[2], ours)
    check_command(started)
    check_command(launched)
    assert launched[:3] == ["pipeline-launch", "--engine", "ray"]
    assert (REPOSITORY / launched[-1]).is_file()


def test_image_installs_what_the_project_has() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    about = distribution(IMAGE).metadata
    found = re.search(r'"/tmp/source\[(.*?)\]"', text)
    assert found is not None
    assert {*found[1].split(","), "test"} == set(about.get_all("Provides-Extra") or ())
    python = re.search(r"^FROM python:(\d+)\.(\d+)-slim$", text, re.MULTILINE)
    assert python is not None
    oldest = about["Requires-Python"].removeprefix(">=").split(".")
    assert (int(python[1]), int(python[2])) >= tuple(map(int, oldest))
    started = re.search(r"^CMD (\[.*\])$", text, re.MULTILINE)
    assert started is not None
    check_command(json.loads(started[1]))


def test_image_is_built_from_all_that_is_installed() -> None:
    lines = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    packages = set((distribution(IMAGE).read_text("top_level.txt") or "").split())
    assert packages == {"pipeline", "launch"}
    files = {"pyproject.toml", "README.md", "LICENSE", "configs", "examples"}
    assert kept == packages | files
    assert all((REPOSITORY / name).exists() for name in kept)


def test_slurm_script_gives_known_options() -> None:
    assert not subprocess.run(["bash", "-n", SLURM]).returncode
    text = SLURM.read_text(encoding="utf-8").replace("\\\n", " ")
    line = next(line for line in text.splitlines() if line.startswith("exec srun"))
    words = shlex.split(line.replace('"$@"', "configs/vgg11b_3x.yaml"))
    ray, started = words[words.index("ray") :], words[words.index("--") + 1 :]
    check_command(["ray", "start", *ray[ray.index("--min-nodes") + 2 : ray.index("--")]])
    assert ray[:3] == ["ray", "symmetric-run", "--address"]
    check_command(started)
    assert started[:3] == ["pipeline-launch", "--engine", "ray"]


def test_kuberay_manifest_fits_together() -> None:
    cluster, job = yaml.safe_load_all(KUBERAY.read_text(encoding="utf-8"))
    assert (cluster["kind"], job["kind"]) == ("RayCluster", "Job")
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    name = cluster["metadata"]["name"]
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    pods = [*(group["template"]["spec"] for group in groups), job["spec"]["template"]["spec"]]
    for pod in pods:
        (container,) = pod["containers"]
        assert container["image"] == IMAGE
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in pod.get("volumes", [])}
    for group in groups:
        check_command(["ray", "start", *(f"--{k}={v}" for k, v in group["rayStartParams"].items())])
    (train,) = pods[-1]["containers"]
    environment = {entry["name"]: entry for entry in train["env"]}
    assert environment["RAY_ADDRESS"]["value"] == f"{name}-head-svc:6379"
    secret = environment["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
    assert secret == {"name": name, "key": "auth_token"}
    started, launched = joined(train["args"][0], [])
    check_command(started)
    check_command(launched)
    assert launched[:3] == ["pipeline-launch", "--engine", "ray"]
    assert (REPOSITORY / launched[-1]).is_file()
