"""`pipeline.fit` in this process; that worker processes give the same bits is shown by
`tests/processes/test_fit.py`."""

from __future__ import annotations

import json
import os
import random
import signal
from socket import gethostname
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from support.traces import read_trace
from torch import nn

import pipeline
from launch.job import Options
from launch.machine.provenance import read_starts
from launch.plan.checks import make_job
from pipeline.config.sections import build_config, config_tree
from pipeline.data.batches import load_batches

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LIMITS = {"data.train_limit": 100, "data.test_limit": 40}
QUICK: dict[str, Any] = {
    "epochs": 2, "batch_size": 32, "gpus": "cpu", "quiet": True, "options": LIMITS,
}  # fmt: skip


class Wide(nn.Module):
    """A layer of a user's own."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(64, out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.flatten(1))


class Sums(pipeline.LocalRule):
    """Predicts by the first features of an activation."""

    def __init__(self, place: pipeline.Place, factor: float = 1.0) -> None:
        super().__init__(place)
        self.factor = factor

    def loss(self, h: Any, x: Any, batch: Any, generator: Any) -> Any:
        return nn.functional.cross_entropy(self.factor * h[:, : self.place.classes], batch.y)

    def scores(self, h: Any, batch: Any) -> Any:
        return h[:, : self.place.classes]


class Branches(nn.Module):
    """Whose forward is a chain, though it is no Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = Wide(16), nn.Linear(16, 16), nn.Linear(16, 10)
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.first(x))
        return self.out(torch.relu(self.norm(self.second(h))))


def own_network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(Wide(16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10))


def raw_test_images() -> tuple[Any, Any]:
    tree = {
        "model": {"name": "mlp"},
        "loss": {"name": "pred"},
        "data": {"name": "digits", "test_limit": 40},
    }
    return load_batches(build_config(tree, "test").data, 1).evaluation(0)


def states(module: nn.Module) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in module.state_dict().items()}


@pytest.fixture(scope="module")
def own() -> pipeline.FittedRun:
    """A run of `own_network` that nothing disturbs."""
    return pipeline.fit(own_network(), "digits", **QUICK)


@pytest.fixture(scope="module")
def mlp() -> pipeline.FittedRun:
    """A run that nothing disturbs."""
    return pipeline.fit("mlp", "digits", **QUICK)


def test_a_network_is_trained_and_the_users_stays_as_it_was() -> None:
    network = own_network()
    before = states(network)
    run = pipeline.fit(network, "digits", **QUICK)
    assert states(network) == before
    assert [row["epoch"] for row in run.history] == [1, 2]
    nn.init.zeros_(network[0].linear.weight)  # what became of it afterwards is no matter
    assert type(run.model) is nn.Sequential
    assert type(run.model[0]) is Wide
    assert not run.model.training
    assert run.model.state_dict().keys() == before.keys()
    assert states(run.model) != before


def test_predictions_are_those_that_the_run_has_tested(own: pipeline.FittedRun) -> None:
    images, labels = raw_test_images()
    wrong = 100 * float((own.predict(images) != labels).mean())
    assert wrong == own.history[-1]["test"]["error_pct"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mlp", {"model.hidden": 32, "model.dropout": 0.2}),
        ("vgg", {"model.layers": [4, "M", 6, "A3"], "model.dropout": 0.1}),
        ("vgg", {"model.layers": [4, "M", 6], "model.batch_norm": False, "loss.name": "pred"}),
        ("resnet18", {"model.feat_mult": 0.05}),
        ("wrn-10-1", {"model.feat_mult": 0.3, "model.preactivation": True}),
        ("wrn-10-1", {"model.feat_mult": 0.3, "model.hidden_layers": 1, "model.hidden": 8}),
        ("wrn-10-1", {"model.feat_mult": 0.3, "model.residual": False, "loss.name": "glob"}),
    ],
)
def test_built_in_networks_become_torchs_own_layers(name: str, options: dict[str, Any]) -> None:
    images, labels = raw_test_images()
    run = pipeline.fit(name, "digits", **{**QUICK, "epochs": 1, "options": {**LIMITS, **options}})
    test = run.history[-1]["test"]
    assert 100 * float((run.predict(images) != labels).mean()) == test["error_pct"]
    pixels = torch.as_tensor(images) / 255
    logits = run.model((pixels - run._trained.facts.mean[0]) / run._trained.facts.std[0]).detach()
    assert 100 * float((logits.argmax(1).numpy() != labels).mean()) == test["error_pct"]
    loss = nn.functional.cross_entropy(logits, torch.as_tensor(labels))
    weight = 0.01 if run._trained.config.loss.name == "predsim" else 1.0
    assert float(loss) * weight == pytest.approx(test["loss"], rel=1e-5)


def test_arguments_are_keys_of_a_configuration(tmp_path: Path) -> None:
    run = pipeline.fit(
        "mlp",
        "digits",
        loss={"name": "predsim", "beta": np.float64(0.5)},
        epochs=1,
        batch_size=np.int64(16),
        lr=0.01,
        seed=3,
        gpus="cpu",
        quiet=True,
        run_dir=tmp_path / "run",
        options={"model.hidden": 8, "optimizer.momentum": 0.5, "optimizer.name": "sgd", **LIMITS},
    )
    config = run._trained.config
    assert (config.loss.beta, config.data.batch_size, config.optimizer.lr) == (0.5, 16, 0.01)
    assert (config.runtime.seed, config.optimizer.name, config.model.hidden) == (3, "sgd", 8)
    assert run.path == tmp_path / "run"
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row) for row in rows] == run.history


def test_a_data_set_goes_before_a_folder_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    (tmp_path / "photos").mkdir()
    assert pipeline.fit("mlp", "digits", **QUICK)._trained.config.data.name == "digits"
    with pytest.raises(pipeline.ConfigError, match="photos"):  # which holds no images
        pipeline.fit("mlp", "photos", gpus="cpu")


def test_milestones_that_stay_behind_are_told(tmp_path: Path) -> None:
    config = {
        "model": {"name": "mlp", "hidden": 8}, "loss": {"name": "pred"},
        "schedule": {"epochs": 8, "milestones": [4, 6]}, "data": {"name": "digits"},
    }  # fmt: skip
    pipeline.fit(config=config, **QUICK, run_dir=tmp_path / "run")
    assert "schedule.milestones [4, 6] don't fit" in (tmp_path / "run" / "run.log").read_text()


def test_a_config_file_is_where_arguments_begin(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(
        "model: {name: mlp, hidden: 8}\nloss: {name: pred}\nschedule: {epochs: 5}\n"
        "data: {name: digits, train_limit: 200, test_limit: 40}\n"
    )
    one = pipeline.fit(config=path, epochs=1, gpus="cpu", quiet=True)
    assert (one._trained.config.loss.name, one._trained.config.schedule.epochs) == ("pred", 1)
    other = pipeline.fit(config=one._trained.config, loss="sim", gpus="cpu", quiet=True)
    assert (other._trained.config.loss.name, other._trained.config.model.hidden) == ("sim", 8)
    assert one._trained.config.loss.name == "pred"


@pytest.mark.parametrize(("given", "says"), [
    ({"network": None}, "network: which?"),
    ({"data": None}, "data: which?"),
    ({"network": "vgg8c"}, "model.name: 'vgg8c' is not allowed"),
    ({"network": [nn.Linear(64, 10), 3]}, "network: a int is in the list"),
    ({"network": Branches}, "network: Branches is a class: call it"),
    ({"network": 3}, "network: 3 is none; give an nn.Module, or a list"),
    ({"loss": nn.CrossEntropyLoss()}, "loss: CrossEntropyLoss(…) is an object: give the name"),
    ({"gpus": 0}, "gpus 0: a number or a device? give [0] or '0'"),
    ({"gpus": 1.5}, "gpus 1.5: a number or a device? give [1.5] or '1.5'"),
    ({"callbacks": print}, "callbacks: <built-in function print> is no list: give one, as [it]"),
    ({"callbacks": [pipeline.Callback]}, "callbacks: Callback is a class: call it"),
    ({"config": ""}, "config '': is empty: give a path"),
    ({"callbacks": [3]}, "callbacks: 3 is neither a function nor a pipeline.Callback"),
    ({"network": nn.Sequential(nn.Linear(64, 10))}, "network: 1 children with parameters"),
    ({"loss": int}, "loss: int is no pipeline.LocalRule"),
    ({"loss": "pres"}, "loss.name"),
    ({"epochs": 0}, "epochs: 0 is not allowed"),
    ({"options": {"momentum": 0.9}}, "options momentum: expected SECTION.KEY"),
    ({"options": {"optimizer.momentun": 0.9}}, "optimizer.momentun"),
    ({"resume": True}, "resume: which run?"),
    ({"stages": 9}, "stages 9"),
])  # fmt: skip
def test_what_is_wrong_is_said_before_anything_starts(given: dict[str, Any], says: str) -> None:
    with pytest.raises(pipeline.ConfigError) as caught:
        pipeline.fit(**{"network": own_network(), "data": "digits", **QUICK, **given})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_any_module_is_cut_and_comes_back_as_itself(tmp_path: Path) -> None:
    images, _ = raw_test_images()
    module = Branches()
    run = pipeline.fit(module, "digits", **QUICK, run_dir=tmp_path / "run")
    assert type(run.model) is Branches
    assert run.model.state_dict().keys() == module.state_dict().keys()
    assert len(run.scores_by_depth(images)) == 3
    pixels = (torch.as_tensor(images) / 255 - run._trained.facts.mean[0]) / run._trained.facts.std[
        0
    ]
    given = run.model(pixels).detach()
    np.testing.assert_allclose(given, run.scores_by_depth(images)[-1], rtol=1e-4, atol=1e-6)
    assert states(pipeline.load(tmp_path / "run", network=Branches())) == states(run.model)
    two = pipeline.load(tmp_path / "run", network=module, depth=2)
    assert torch.equal(run.model.out(two(pixels)), given)


# --- data ---------------------------------------------------------------------------------


def own_data(examples: int = 60) -> tuple[Any, Any]:
    draws = np.random.default_rng(0)
    y = np.arange(examples) % 3
    return (draws.normal(size=(examples, 5)) + y[:, None]).astype(np.float32), y


def small() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


class Pairs(torch.utils.data.Dataset[Any]):
    def __init__(self, x: Any, y: Any) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return torch.as_tensor(self.x[index]), int(self.y[index])


ARRAYS = {"epochs": 2, "batch_size": 16, "gpus": "cpu", "quiet": True}


def test_data_are_arrays_tensors_datasets_or_a_file(tmp_path: Path) -> None:
    x, y = own_data()
    np.savez(tmp_path / "data.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    forms: list[dict[str, Any]] = [
        {"data": ((x[:40], y[:40]), (x[40:], y[40:]))},
        {"data": (torch.as_tensor(x[:40]), torch.as_tensor(y[:40])), "test": (x[40:], y[40:])},
        {"data": Pairs(x[:40], y[:40]), "test": Pairs(x[40:], y[40:])},
        {"data": tmp_path / "data.npz"},
    ]
    runs = [pipeline.fit(small(), **form, **ARRAYS) for form in forms]
    first, *others = runs
    assert all(states(run.model) == states(first.model) for run in others)
    assert {run.history[-1]["test"]["error_pct"] for run in runs} == {
        first.evaluate((x[40:], y[40:]))["error_pct"]
    }
    np.testing.assert_array_equal(first.predict(x), first.predict(torch.as_tensor(x)))


def test_numbers_are_predicted_as_numbers() -> None:
    x, _ = own_data()
    y = x[:, :2].sum(axis=1)
    network = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 1))
    run = pipeline.fit(network, (x, y), loss="glob", **{**ARRAYS, "epochs": 80, "lr": 0.01})
    assert run.predict(x).shape == (60,)
    squares = float(np.mean((run.predict(x) - y) ** 2))
    assert squares < 0.5
    assert run.evaluate((x, y)) == {"loss": pytest.approx(squares, rel=1e-4), "error_pct": None}


def test_settings_of_data_stay_where_data_are_given() -> None:
    x, y = own_data()
    config = {
        "model": {"name": "mlp"}, "loss": {"name": "pred"},
        "data": {"name": "synthetic", "size": 8, "batch_size": 7, "normalise": "measured"},
    }  # fmt: skip
    run = pipeline.fit(small(), (x, y), **{**ARRAYS, "batch_size": None}, config=config)
    data = run._trained.config.data
    assert (data.name, data.batch_size, data.normalise) == ("factory", 7, "measured")
    assert run.history[-1]["test"] is None
    kept = pipeline.fit(small(), (x, y), **ARRAYS, validation=0.25)
    assert kept.history[-1]["validation"]["error_pct"] is not None


def test_what_is_normalised_in_training_is_normalised_in_predictions(tmp_path: Path) -> None:
    x, y = own_data()
    measured = {**ARRAYS, "options": {"data.normalise": "measured"}, "epochs": 3}
    run = pipeline.fit(small(), (x, y), **measured, test=(x, y), run_dir=tmp_path / "run")
    wrong = 100 * float((run.predict(x) != y).mean())
    assert wrong == pytest.approx(run.history[-1]["test"]["error_pct"])
    normalised = (x - np.float32(run._trained.facts.mean)) / np.float32(run._trained.facts.std)
    given = run.model(torch.as_tensor(normalised)).detach()
    np.testing.assert_allclose(run.scores_by_depth(x)[-1], given, atol=1e-5)
    assert states(pipeline.load(tmp_path / "run", network=small())) == states(run.model)
    rest = pipeline.fit(
        small(), (x, y), **{**measured, "epochs": 4}, test=(x, y),
        run_dir=tmp_path / "run", resume=True,
    )  # fmt: skip
    assert len(rest.history) == 4
    with pytest.raises(pipeline.ConfigError, match=r"data\.accept"):
        pipeline.fit(
            small(), (x + 1, y), **{**measured, "epochs": 5}, test=(x, y),
            run_dir=tmp_path / "run", resume=True,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"data": np.zeros((4, 5))}, "data.factory pipeline.fit:data: gives a ndarray"),
        ({"data": (np.zeros((4, 5)), np.zeros(3, int))}, "4 examples in X and 3 targets in y"),
        ({"data": "digits", "test": own_data()}, "test: the data set digits has a test set"),
        ({"data": None, "test": own_data()}, "data: which?"),
        ({"network": nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))}, "network: block 0, for in"),
    ],
)
def test_data_that_do_not_fit_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(pipeline.ConfigError) as caught:
        pipeline.fit(**{"network": small(), "data": own_data(), **ARRAYS, **given})
    assert says in str(caught.value)


def test_what_is_asked_about_stays_as_it_is_and_may_be_of_any_kind() -> None:
    X, y = own_data()
    network = nn.Sequential(nn.ReLU(inplace=True), *small())
    run = pipeline.fit(network, (X, y), **ARRAYS)
    given = np.array(X)
    expected = run.predict(given)
    run.evaluate((given, y))
    np.testing.assert_array_equal(given, np.asarray(X))
    given.setflags(write=False)
    tensor = torch.tensor(given, requires_grad=True)
    for alike in (given, given.tolist(), tensor, np.asfortranarray(given), given[::-1][::-1]):
        np.testing.assert_array_equal(run.predict(alike), expected)
    assert len(run.predict(tensor.bfloat16())) == len(X)


@pytest.fixture(scope="module")
def of_arrays() -> pipeline.FittedRun:
    return pipeline.fit(small(), own_data(), **ARRAYS)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda x: x * np.nan, "X has numbers that are NaN, infinite or too large for float32"),
        (lambda x: x.astype(np.float64) * 1e300, "X has numbers that are NaN, infinite or too"),
        (lambda x: [[1.0], [1.0, 2.0]], "X can't be read as an array"),
    ],
)
def test_what_is_no_example_is_refused(
    of_arrays: pipeline.FittedRun, spoil: Any, says: str
) -> None:
    X, _ = own_data()
    with pytest.raises(pipeline.ConfigError, match=f"^{says}"):
        of_arrays.predict(spoil(np.asarray(X)))


# --- the run's folder -----------------------------------------------------------------------


def test_a_folder_that_nobody_has_named_goes_with_the_result() -> None:
    run = pipeline.fit("mlp", "digits", **QUICK)
    path = run.path
    assert (path / "checkpoints").is_dir()
    del run
    assert not path.exists()


def test_a_trace_of_the_first_batches(tmp_path: Path) -> None:
    run = pipeline.fit("mlp", "digits", **QUICK, run_dir=tmp_path / "run", trace=3)
    assert read_trace(run.path).batches(0) == [1, 2, 3]
    with pytest.raises(pipeline.ConfigError, match=r"^trace 0: .* 1 to 1000; use 50$"):
        pipeline.fit("mlp", "digits", **QUICK, trace=0)


def test_an_interruption_leaves_what_a_run_can_go_on_from(
    own: pipeline.FittedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt, match=r"interrupted after step 4: .* run_dir='(.*)'"):
            pipeline.fit(
                own_network(), "digits", **QUICK,
                callbacks=[lambda row: signal.raise_signal(signal.SIGINT)],
            )  # fmt: skip
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    (folder,) = tmp_path.iterdir()
    rest = pipeline.fit(own_network(), "digits", **QUICK, run_dir=folder, resume=True)
    assert states(rest.model) == states(own.model)


def test_a_run_goes_on_with_the_same_objects_and_gives_the_same_bits(
    own: pipeline.FittedRun, tmp_path: Path
) -> None:
    folder = {"run_dir": tmp_path / "run"}
    first = pipeline.fit(own_network(), "digits", **{**QUICK, **folder, "epochs": 1})
    rest = pipeline.fit(own_network(), "digits", **QUICK, **folder, resume=True)
    assert states(rest.model) == states(own.model) != states(first.model)
    assert [row["epoch"] for row in rest.history] == [1, 2]
    again = pipeline.fit(own_network(), "digits", **QUICK, **folder, resume=True)
    assert states(again.model) == states(rest.model)
    assert again.predict(raw_test_images()[0]).shape == (40,)
    starts = read_starts(rest.path)
    assert [start["after_step"] for start in starts] == [0, 4]
    assert all(start["command"].startswith("pipeline.fit in ") for start in starts)
    assert starts[0]["host"] == gethostname()
    assert starts[0]["time"] <= starts[1]["time"]


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    pipeline.fit("mlp", "digits", **QUICK, run_dir=tmp_path / "run")
    with pytest.raises(pipeline.ConfigError, match=r"already holds a run .*; add resume=True"):
        pipeline.fit("mlp", "digits", **QUICK, run_dir=tmp_path / "run")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"network": own_network()}, "network: the network"),
        ({"data": "own"}, "data.factory pipeline.fit:data: the data"),
        ({"loss": "own"}, "loss.rule pipeline.fit:loss: the rule"),
    ],
)
def test_the_command_says_how_to_go_on_with_objects(
    tmp_path: Path, given: dict[str, Any], named: str
) -> None:
    own = {"data": own_data(), "loss": Sums}
    arguments = {key: own[key] if value == "own" else value for key, value in given.items()}
    quick = {**QUICK, "epochs": 1, "options": {"data.train_limit": 40}}
    pipeline.fit(
        **{"network": "mlp", "data": "digits", **quick, **arguments}, run_dir=tmp_path / "run"
    )
    with pytest.raises(pipeline.ConfigError) as caught:
        make_job(Options(None, run_dir=tmp_path / "run", resume=True, gpus="cpu"))
    assert str(caught.value) == (
        f"{named} of this run is a Python object, which no command has: go on with it by "
        "pipeline.fit(…, run_dir=…, resume=True), given the same"
    )


# --- the caller's process -------------------------------------------------------------------


def process() -> list[Any]:
    return [
        torch.get_num_threads(), torch.get_default_dtype(), torch.get_deterministic_debug_mode(),
        torch.get_float32_matmul_precision(), torch.get_default_device(),
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32,
        torch.utils.deterministic.fill_uninitialized_memory,
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"), torch.get_rng_state().tolist(),
        random.getstate(), [str(part) for part in np.random.get_state()],
    ]  # fmt: skip


def test_the_callers_process_is_left_as_it_was(
    own: pipeline.FittedRun, mlp: pipeline.FittedRun
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.set_default_dtype(torch.float64)
    torch.set_float32_matmul_precision("medium")
    try:
        torch.use_deterministic_algorithms(False)
        torch.manual_seed(5)
        network = own_network().float()
        before = process()
        with torch.no_grad():
            other = pipeline.fit("mlp", "digits", **QUICK)
        torch.set_default_device("meta")
        elsewhere = pipeline.fit("mlp", "digits", **QUICK)
        assert next(elsewhere.model.parameters()).device.type == "cpu"
        torch.set_default_device(None)
        assert process() == before
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
        torch.set_default_device(None)
    assert states(elsewhere.model) == states(other.model)
    assert states(other.model) == states(mlp.model)
    assert network[0].linear.weight.dtype == torch.float32
    assert states(pipeline.fit(own_network(), "digits", **QUICK).model) == states(own.model)


def test_bfloat16_copies_of_weights_are_made_anew_in_each_step() -> None:
    """Torch keeps them within an autocast of the caller's, and the losses stayed as they were."""
    quick = {**QUICK, "epochs": 3, "lr": 0.01}
    bf16 = {**LIMITS, "runtime.precision": "bf16", "model.hidden": 16}
    inside: list[Any] = []
    plain = pipeline.fit("mlp", "digits", **{**quick, "options": bf16}, loss="pred")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside.append(pipeline.fit("mlp", "digits", **{**quick, "options": bf16}, loss="pred"))
        assert torch.is_autocast_enabled("cpu")
    own = pipeline.fit(small(), own_data(), **ARRAYS, options={"runtime.precision": "bf16"})
    losses = [row["train"]["loss"] for row in plain.history]
    exact = pipeline.fit(
        "mlp", "digits", **{**quick, "options": {**bf16, "runtime.precision": "fp32"}}, loss="pred"
    )
    np.testing.assert_allclose(losses, [r["train"]["loss"] for r in exact.history], rtol=0.05)
    assert [row["train"]["loss"] for row in inside[0].history] == losses
    assert len(own.history) == 2


def test_another_thread_may_train(own: pipeline.FittedRun) -> None:
    """Which can't handle signals, and finds the objects that it was given."""
    found: list[Any] = []
    thread = Thread(
        target=lambda: found.append(pipeline.fit(own_network(), "digits", **QUICK)), daemon=True
    )
    thread.start()
    thread.join(60)
    assert states(found[0].model) == states(own.model)


# --- callbacks ------------------------------------------------------------------------------


class Notes(pipeline.Callback):
    def __init__(self) -> None:
        self.told: list[Any] = []

    def on_start(self) -> None:
        self.told.append("start")

    def on_epoch(self, row: dict[str, Any]) -> None:
        self.told.append(row["epoch"])

    def on_end(self, run: pipeline.FittedRun) -> None:
        self.told.append(len(run.history))


def test_callbacks_are_told_and_may_end_a_run(mlp: pipeline.FittedRun, tmp_path: Path) -> None:
    notes = Notes()
    more = {**QUICK, "epochs": 5, "run_dir": tmp_path / "run"}
    run = pipeline.fit("mlp", "digits", **more, callbacks=[notes, lambda row: row["epoch"] == 2])
    assert notes.told == ["start", 1, 2, 2]
    assert states(run.model) == states(mlp.model)
    rest = pipeline.fit("mlp", "digits", **more, resume=True)
    assert states(rest.model) == states(
        pipeline.fit("mlp", "digits", **{**QUICK, "epochs": 5}).model
    )


def fails(error: BaseException) -> Callable[[Any], bool]:
    def callback(row: Any) -> bool:
        raise error

    return callback


@pytest.mark.parametrize("error", [ZeroDivisionError("by zero"), KeyboardInterrupt("enough")])
def test_a_callback_that_fails_ends_the_run_with_a_checkpoint(
    mlp: pipeline.FittedRun, tmp_path: Path, error: BaseException
) -> None:
    with pytest.raises(type(error)) as caught:
        pipeline.fit("mlp", "digits", **QUICK, run_dir=tmp_path / "run", callbacks=[fails(error)])
    assert caught.value is error
    rest = pipeline.fit("mlp", "digits", **QUICK, run_dir=tmp_path / "run", resume=True)
    assert states(rest.model) == states(mlp.model)


def test_a_callback_may_train_another_network(own: pipeline.FittedRun) -> None:
    inner: list[Any] = []

    def train(row: Any) -> None:
        inner.append(pipeline.fit("mlp", "digits", **QUICK))

    run = pipeline.fit(own_network(), "digits", **QUICK, callbacks=[train])
    assert states(run.model) == states(own.model)
    assert states(inner[0].model) == states(inner[1].model)


# --- predictions ----------------------------------------------------------------------------


def test_scores_of_every_depth_are_those_of_the_local_classifiers(
    own: pipeline.FittedRun,
) -> None:
    images, labels = raw_test_images()
    scores = own.scores_by_depth(images)
    assert [each.shape for each in scores] == [(40, 10)] * 3
    np.testing.assert_array_equal(scores[-1].argmax(1), own.predict(images))
    test = own.evaluate((images, labels))
    assert test["error_pct"] == own.history[-1]["test"]["error_pct"]
    assert test["loss"] == pytest.approx(own.history[-1]["test"]["loss"])
    assert own.evaluate((images, labels)) == test
    assert own.evaluate((images[:4], own.predict(images[:4])))["error_pct"] == 0.0
    similar = pipeline.fit(own_network(), "digits", **QUICK, loss="sim")
    assert [each is None for each in similar.scores_by_depth(images)] == [True, True, False]


def test_a_rule_is_a_class(tmp_path: Path) -> None:
    images, _ = raw_test_images()
    loss = {"rule": Sums, "options": {"factor": 2.0}}
    run = pipeline.fit(own_network(), "digits", **QUICK, loss=loss, run_dir=tmp_path / "run")
    plain = pipeline.fit(own_network(), "digits", **QUICK, loss=Sums)
    assert states(run.model) != states(plain.model)
    assert [each.shape for each in run.scores_by_depth(images)] == [(40, 10)] * 3
    loaded = pipeline.load(tmp_path / "run", network=own_network(), loss=Sums)
    assert states(loaded) == states(run.model)


def test_a_rule_of_a_config_keeps_its_options() -> None:
    loss = {"rule": Sums, "options": {"factor": 2.0}}
    given = pipeline.fit(own_network(), "digits", **QUICK, loss=loss)
    configured = pipeline.fit(own_network(), "digits", **QUICK, config={"loss": loss})
    assert states(configured.model) == states(given.model)


def test_what_is_done_with_a_network_stays_in_the_config_whoever_names_the_network() -> None:
    for network in ("mlp", own_network()):
        for kept in ({"group": 2}, {"freeze": [0]}):
            config = {"model": {"name": "vgg8b", **kept}}
            run = pipeline.fit(network, "digits", **QUICK, config=config)
            assert config_tree(run._trained.config)["model"].items() >= kept.items()


def test_what_a_config_says_of_the_same_network_and_loss_stays() -> None:
    model = {"name": "mlp", "hidden": 8, "hidden_layers": 2}
    config = {"model": model, "loss": {"name": "predsim", "beta": 0.5}}
    run = pipeline.fit("mlp", "digits", **QUICK, config=config, loss="predsim")
    assert config_tree(run._trained.config)["model"].items() >= model.items()
    assert run._trained.config.loss.beta == 0.5


class Ones(nn.Module):
    """Works in place, and says so nowhere."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(0) + 1.0


class SeesActivations(Sums):
    """Notes the largest number of the activation that its loss has seen."""

    most: torch.Tensor

    def __init__(self, place: pipeline.Place) -> None:
        super().__init__(place)
        self.register_buffer("most", torch.zeros(()))

    def loss(self, h: Any, x: Any, batch: Any, generator: Any) -> Any:
        if self.training:
            self.most.copy_(h.detach().abs().max())
        return super().loss(h, x, batch, generator)


def test_what_follows_an_activation_in_place_does_not_change_what_is_learned_from() -> None:
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.Flatten(), Ones(), nn.Linear(16, 10)
    )
    run = pipeline.fit(network, "digits", **QUICK, loss=SeesActivations)
    assert run._trained.states()[0]["rule.most"] > 0


class SeesInputs(Sums):
    """Notes the smallest numbers of the input that its loss has seen."""

    least: torch.Tensor

    def __init__(self, place: pipeline.Place) -> None:
        super().__init__(place)
        self.register_buffer("least", torch.zeros(2))

    def loss(self, h: Any, x: Any, batch: Any, generator: Any) -> Any:
        if self.training:
            self.least.copy_(torch.stack([x.min(), batch.x.min()]))
        return super().loss(h, x, batch, generator)


def test_a_rule_sees_the_input_as_it_arrived_whatever_modules_do_in_place() -> None:
    """A ReLU that has computed in place would leave nothing below 0."""
    generator = np.random.default_rng(1)
    X = -generator.uniform(1, 2, (32, 8)).astype(np.float32)
    y = generator.integers(0, 3, 32)
    network = nn.Sequential(
        nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 6)), nn.LogSigmoid(), nn.Linear(6, 3)
    )
    run = pipeline.fit(network, (X, y), loss=SeesInputs, **ARRAYS)
    assert (run._trained.states()[0]["rule.least"] < -1).all()


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (np.zeros((2, 8, 8), np.uint8), r"X has shape (2, 8, 8); (n, 1, 8, 8) is needed"),
        (np.zeros((0, 1, 8, 8), np.uint8), "X holds no example"),
        (np.zeros((2, 1, 8, 8)), "X is float64; uint8 is needed, as in training"),
        (np.full((2, 1, 8, 8), 300, np.uint16), "X is uint16 with numbers beyond those of uint8"),
    ],
)
def test_examples_of_another_kind_are_refused(mlp: pipeline.FittedRun, x: Any, says: str) -> None:
    with pytest.raises(pipeline.ConfigError) as caught:
        mlp.predict(x)
    assert str(caught.value).startswith(says)
