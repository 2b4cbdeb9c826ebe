"""The schema for editors takes every config that a run takes, and refuses a key that is not one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support import REPOSITORY

from pipeline.config.json_schema import json_schema
from pipeline.config.sections import Config
from pipeline.config.yaml_file import load_tree

CONFIGS = sorted(
    path for path in (REPOSITORY / "configs").rglob("*.yaml") if path.parent.name != "devices"
)
SMALLEST: dict[str, Any] = {
    "model": {"name": "mlp"},
    "loss": {"name": "pred"},
    "data": {"name": "digits"},
}


@pytest.fixture(scope="module")
def validator() -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    kind = jsonschema.Draft202012Validator
    kind.check_schema(json_schema())
    return kind(json_schema())


def test_every_key_has_its_sentence() -> None:
    sections = json_schema()["$defs"]
    for name, section in Config.model_fields.items():
        kind = section.annotation
        assert kind is not None
        properties = sections[kind.__name__]["properties"]
        assert properties.keys() == kind.model_fields.keys(), name
        assert all(len(keys["description"]) > 5 for keys in properties.values()), name


def test_every_config_passes(validator: Any) -> None:
    assert len(CONFIGS) > 80
    for path in CONFIGS:
        tree = json.loads(json.dumps(load_tree(path)))
        assert [error.message for error in validator.iter_errors(tree)] == [], path


@pytest.mark.parametrize(
    ("section", "keys"),
    [
        ("model", {"factory": "a.b:c"}),
        ("model", {"name": "wrn-28-10"}),
        ("model", {"name": "vgg", "layers": [8, "M"]}),
        ("loss", {"rule": "DGL", "options": {"hidden": 8}}),
        ("data", {"file": "a.npz"}),
        ("data", {"factory": "a.b:c"}),
        ("optimizer", {"blocks": {"0": {"lr": 0.1}}}),
        ("schedule", {"milestones": [0.5, 0.75]}),
    ],
)
def test_what_a_run_takes_passes(validator: Any, section: str, keys: dict[str, Any]) -> None:
    assert validator.is_valid({**SMALLEST, section: keys})


@pytest.mark.parametrize(
    ("section", "keys"),
    [
        ("model", {"name": "mlp", "hiden": 8}),
        ("model", {"name": "vgg12"}),
        ("model", {"hidden": 8}),
        ("loss", {"name": "pred", "beta": 1.5}),
        ("data", {"batch_size": 8}),
        ("optimizer", {"blocks": {"0": {"rate": 0.1}}}),
        ("schedule", {"milestones": [1.5]}),
        ("training", {}),
    ],
)
def test_what_a_run_refuses_fails(validator: Any, section: str, keys: dict[str, Any]) -> None:
    assert not validator.is_valid({**SMALLEST, section: keys})
