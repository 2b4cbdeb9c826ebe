"""Every wrong config is one clear line; every right one survives being written and read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.config_file import dump_config, load_config
from pipeline.config.schema import brief
from pipeline.config.sections import build_config, config_tree, differing_keys
from pipeline.config.yaml_text import value_of, word_for
from pipeline.errors import ConfigError, WrongKeysError, cut

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SMALLEST = "model: {name: mlp}\nloss: {name: pred}\ndata: {name: digits}\n"


def own(kwargs: str) -> str:
    """The smallest config, with a factory that takes these arguments."""
    return SMALLEST.replace("{name: mlp}", f"{{factory: 'a.b:c', kwargs: {kwargs}}}")


def tree(**sections: dict[str, Any]) -> dict[str, Any]:
    """A right config with some keys changed."""
    smallest = {"model": {"name": "mlp"}, "loss": {"name": "pred"}, "data": {"name": "digits"}}
    return {
        name: {**smallest.get(name, {}), **sections.get(name, {})}
        for name in {**smallest, **sections}
    }


def complaint(path: Path, overrides: Sequence[str] = ()) -> str:
    """The one line that a wrong config gives."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, tuple(overrides))
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


def written(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    return file


def test_smallest_config_takes_the_documented_defaults(file: Path) -> None:
    config = load_config(written(file, SMALLEST))
    assert (config.optimizer.name, config.optimizer.lr) == ("adam", 5e-4)
    assert (config.loss.beta, config.loss.dim_in_decoder) == (0.99, 4096)
    assert (config.schedule.factor, config.schedule.milestones) == (0.25, ())
    assert (config.data.batch_size, config.data.root, config.data.download) == (128, "data", True)
    assert (config.runtime.max_in_flight, config.runtime.checkpoint_every_steps) == (2, 0)
    assert (config.runtime.precision, config.runtime.eval_every_epochs) == ("fp32", 1)


@pytest.mark.parametrize(
    ("nonlinearity", "loss", "expected"),
    [
        ("auto", "pred", "relu"),
        ("auto", "glob", "relu"),
        ("auto", "sim", "leaky_relu"),
        ("auto", "predsim", "leaky_relu"),
        ("relu", "predsim", "relu"),
        ("leaky_relu", "pred", "leaky_relu"),
    ],
)
def test_nonlinearity_follows_the_loss(nonlinearity: str, loss: str, expected: str) -> None:
    wanted = tree(model={"nonlinearity": nonlinearity}, loss={"name": loss})
    assert build_config(wanted, "test").nonlinearity == expected


# --- wrong values -------------------------------------------------------------------------


WRONG_VALUES = [
    # (section, key, text of the value in YAML, as it is shown, rule)
    ("loss", "beta", "1.5", "1.5", "less than or equal to 1"),
    ("loss", "beta", "-0.1", "-0.1", "greater than or equal to 0"),
    ("loss", "label_smoothing", "1", "1", "less than 1"),
    ("loss", "name", "backprop", "'backprop'", "'pred', 'sim', 'predsim', 'glob', 'glob+pred'"),
    ("loss", "dim_in_decoder", "0", "0", "greater than or equal to 1"),
    ("model", "name", "vgg12", "'vgg12'", "vgg11b"),
    ("model", "dropout", "1.0", "1.0", "less than 1"),
    ("model", "dropout", ".nan", "nan", "finite number"),
    ("model", "feat_mult", "0", "0", "greater than 0"),
    ("model", "feat_mult", "big", "'big'", "valid number"),
    ("model", "hidden", "1e3", "1000.0", "valid integer"),
    ("model", "hidden", '"64"', "'64'", "valid integer"),
    ("model", "batch_norm", "1", "1", "true or false"),
    ("optimizer", "lr", "0", "0", "greater than 0"),
    ("optimizer", "lr", ".inf", "inf", "finite number"),
    ("optimizer", "lr", "true", "true", "valid number"),
    ("optimizer", "lr", '"5e-4"', "'5e-4'", "valid number"),
    ("optimizer", "weight_decay", "-1", "-1", "greater than or equal to 0"),
    ("optimizer", "clip_norm", "0", "0", "greater than 0"),
    ("optimizer", "blocks", "3", "3", "keys and values, as {key: value}"),
    ("schedule", "epochs", "0", "0", "greater than or equal to 1"),
    ("schedule", "epochs", "2.5", "2.5", "valid integer"),
    ("schedule", "patience", "0", "0", "greater than or equal to 1"),
    ("schedule", "factor", "1.1", "1.1", "less than or equal to 1"),
    ("schedule", "milestones", "6", "6", "input should be a list, as [6]"),
    ("data", "root", "5e-4", "0.0005", "a text, in quotes where it would be read as"),
    ("data", "root", "2020-01-01", "2020-01-01", "a text, in quotes where it would be read as"),
    ("data", "batch_size", "true", "true", "valid integer"),
    ("data", "flip", "", "null", "true or false"),
    ("schedule", "milestones", "{a: 1}", "{'a': 1}", "input should be a list, as [one, two]"),
    ("model", "layers", "32", "32", "input should be a list, as [32]"),
    ("model", "factory", "abc", "'abc'", "input should be as package.module:function"),
    ("model", "factory", "a.b:c.d", "'a.b:c.d'", "input should be as package.module:function"),
    ("model", "factory", "5", "5", "input should be a text, in quotes"),
    ("model", "kwargs", "[1]", "[1]", "input should be keys and values, as {key: value}"),
    ("data", "classes_per_batch", "1", "1", "greater than or equal to 2"),
    ("data", "classes_per_batch_until_epoch", "0", "0", "greater than or equal to 1"),
    ("data", "train_limit", "0", "0", "greater than or equal to 1"),
    ("runtime", "seed", "-1", "-1", "greater than or equal to 0"),
    ("runtime", "precision", "fp16", "'fp16'", "'fp32' or 'bf16'"),
    ("runtime", "max_in_flight", "0", "0", "greater than or equal to 1"),
    ("runtime", "max_in_flight", "65", "65", "less than or equal to 64"),
    ("runtime", "stall_timeout_s", ".inf", "inf", "finite number"),
    ("runtime", "stall_timeout_s", "", "null", "valid number"),
    ("runtime", "keep_best", "first", "'first'", "use true, false, test, validation or last"),
    ("runtime", "keep_best", "1", "1", "use true, false, test, validation or last"),
    ("runtime", "best_form", "half", "'half'", "'full' or 'weights'"),
    ("model", "freeze", "0", "0", "input should be a list, as [0]"),
]


@pytest.mark.parametrize(
    ("section", "key", "value", "shown", "rule"),
    WRONG_VALUES,
    ids=[f"{section}.{key}={value}" for section, key, value, *_ in WRONG_VALUES],
)
def test_wrong_value_names_file_key_value_and_rule(
    file: Path, section: str, key: str, value: str, shown: str, rule: str
) -> None:
    in_yaml = str(tree(**{section: {key: value}})).replace("'", "")  # values as they stand there
    override = f"{section}.{key}={value}"
    for text, where in (
        (complaint(written(file, SMALLEST), [override]), f"--set {override}"),
        (complaint(written(file, in_yaml)), f"{file}:1: {section}.{key}"),
    ):
        assert text.startswith(f"{where}: {shown} is not allowed: ")
        assert rule in text


# --- unknown, missing, impossible ---------------------------------------------------------


WRONG_FILES = [
    # (text, line, what is said of it)
    (
        SMALLEST + "training: {}\n",
        ":4",
        "training: unknown key; allowed here: model, loss, optimizer, schedule, data, parallel, "
        "runtime",
    ),
    (
        SMALLEST + "optimizer: adam\n",
        ":4",
        "optimizer: expected keys and values (name, lr, weight_decay, momentum, nesterov, "
        "clip_norm, accumulate, blocks), found 'adam'",
    ),
    (
        SMALLEST + "optimizer:\n  lr: 1\n  5: adam\n",
        ":6",
        "optimizer.5: 5 is not allowed: a key should be a text, in quotes where it would be read as"
        " something else",
    ),
    (
        own("{since: 2020-01-01}"),
        ":1",
        "model.kwargs.since: 2020-01-01 is not allowed: input should be a text, a number, true, "
        "false, null, or a list or keys and values of these",
    ),
    *(
        (SMALLEST.replace(f"{section}: {{name: {name}}}", instead), at, f"{section}{missing}")
        for line, section, name in ((1, "model", "mlp"), (2, "loss", "pred"), (3, "data", "digits"))
        for instead, at, missing in (
            ("", "", ": is missing"),
            (f"{section}: {{}}", f":{line}", ".name: is missing"),
        )
    ),
    *(
        (text, "", f"expected sections (model:, loss:, …), found {found}")
        for text, found in (("", "null"), ("3", "3"), ("- model\n", "['model']"), ("a b", "'a b'"))
    ),
]


@pytest.mark.parametrize(("text", "line", "said"), WRONG_FILES)
def test_sections_and_keys_that_are_wrong_or_missing(
    file: Path, text: str, line: str, said: str
) -> None:
    assert complaint(written(file, text)) == f"{file}{line}: {said}"


LAYER_RULE = "neither a number of channels (1 to 1048576) nor M, M3, M4, A, A3, A4"
SCAN_RULE = "needs data.classes_per_batch of at least 10, to which it widens every batch"
IMPOSSIBLE = [
    # overrides, parted by spaces; what is said of them
    (
        "loss.betta=0.5",
        "loss.betta: unknown key; allowed here: name, rule, options, beta, dim_in_decoder, "
        "pred_hidden, similarity_pool, similarity_channels, similarity_groups, similarity_batches, "
        "similarity_bf16, bio, target_projection, classifier, feedback, unsupervised, alpha, "
        "label_smoothing; did you mean loss.beta?",
    ),
    (
        "train.lr=1",
        "train: unknown key; allowed here: model, loss, optimizer, schedule, data, parallel, "
        "runtime",
    ),
    (
        "schedule.a.b=1",
        "schedule.a.b: unknown key; allowed here: epochs, milestones, factor, decay, min_factor, "
        "warmup_epochs, patience, greedy",
    ),
    *(
        (
            f"schedule.milestones=[{wrong}]",
            f"schedule.milestones: {brief(value_of(wrong))} is neither an epoch (1 to 1000000) nor "
            "a share of the run (above 0, below 1)",
        )
        for wrong in ("0", "0.0", "1.0", "-0.5", "true", "half", "10000000")
    ),
    (
        "schedule.milestones=[0.5,3]",
        "schedule.milestones [0.5, 3]: give epochs (whole numbers) or shares of the run (below 1), "
        "not both",
    ),
    (
        "schedule.decay=cosine schedule.milestones=[5]",
        "schedule.decay cosine takes no milestones, and schedule.milestones is [5]: set it to []",
    ),
    (
        "schedule.patience=3 runtime.eval_every_epochs=0",
        "schedule.patience 3 goes by tests: runtime.eval_every_epochs must be at least 1",
    ),
    (
        "schedule.patience=3 schedule.greedy=true",
        "schedule.patience 3 would end the run in the phase of one block; schedule.greedy goes "
        "through all: leave one of them out",
    ),
    ("schedule.min_factor=0.1", "schedule.min_factor needs schedule.decay cosine"),
    (
        "schedule.epochs=5 schedule.warmup_epochs=5",
        "schedule.warmup_epochs 5 must be less than schedule.epochs 5",
    ),
    ("model.layers=[64,M]", "model.layers belongs to model.name vgg, not to mlp"),
    ("model.name=vgg", "model.name vgg needs model.layers, as [128, M, 256, M]"),
    ("model.name=vgg model.layers=[]", "model.name vgg needs model.layers, as [128, M, 256, M]"),
    ("model.name=vgg model.layers=[M,64]", "model.layers: the pooling M must follow a convolution"),
    (
        "model.name=vgg model.layers=[64,M,A3]",
        "model.layers: the pooling A3 must follow a convolution",
    ),
    ("model.name=vgg model.layers=[64,M5]", f"model.layers: 'M5' is {LAYER_RULE}"),
    ("model.name=vgg model.layers=[0]", f"model.layers: 0 is {LAYER_RULE}"),
    ("model.name=vgg model.layers=[true]", f"model.layers: true is {LAYER_RULE}"),
    ("model.hidden_layers=0", "model.hidden_layers 0: model.name mlp needs at least 1"),
    (
        "loss.name=glob loss.bio=true",
        "loss.name glob has no local losses: bio and unsupervised need one",
    ),
    *(
        (
            f"optimizer.nesterov=true {optimizer}".strip(),
            "optimizer.nesterov needs optimizer.name sgd with optimizer.momentum above 0",
        )
        for optimizer in ("", "optimizer.name=sgd optimizer.momentum=0")
    ),
    (
        "optimizer.blocks.0.rate=1",
        "optimizer.blocks.0.rate: unknown key; allowed here: lr, weight_decay",
    ),
    (
        "optimizer.blocks.first.lr=1",
        "optimizer.blocks.first: 'first' is not allowed: input should be a valid integer",
    ),
    (
        "optimizer.blocks.0=1",
        "optimizer.blocks.0: expected keys and values (lr, weight_decay), found 1",
    ),
    *(
        (
            f"loss.label_smoothing=0.1 {loss}",
            "loss.label_smoothing needs classifiers of classes: loss.name pred, predsim or one of "
            "glob, without loss.bio",
        )
        for loss in ("loss.name=sim", "loss.bio=true")
    ),
    (
        "runtime.keep_best=validation",
        "runtime.keep_best validation: no share is kept for validation: set data.validation, as "
        "0.1, or use true",
    ),
    (
        "runtime.keep_best=test data.validation=0.2",
        "runtime.keep_best test: with data.validation 0.2 that share is tested on, not the test "
        "set: use validation or true, or leave data.validation out",
    ),
    *(
        (
            f"runtime.keep_best={best} runtime.eval_every_epochs=0 {more}".strip(),
            f"runtime.keep_best {best} goes by tests: runtime.eval_every_epochs must be at least 1",
        )
        for best, more in (("test", ""), ("validation", "data.validation=0.2"))
    ),
    (
        "runtime.keep_best=false runtime.best_form=weights",
        "runtime.best_form weights is of checkpoints/best, and runtime.keep_best false keeps none: "
        "use true or last",
    ),
    (
        "model.init_from=5",
        "model.init_from: expected keys and values (run, checkpoint, blocks), found 5",
    ),
    (
        "model.init_from.run=a model.init_from.checkpoint=first",
        "model.init_from.checkpoint: 'first' is not allowed: use last, best, or the step of a "
        "checkpoint",
    ),
    (
        "model.init_from.run=a model.init_from.blocks=[]",
        "model.init_from.blocks: is empty; at least 1 is needed",
    ),
    *(
        (
            f"model.freeze=[0] loss.name={name}",
            f"model.freeze needs blocks that learn alone; loss.name {name} trains them together",
        )
        for name in ("glob", "glob+pred")
    ),
    (
        "model.freeze=[0] optimizer.blocks.0.lr=1",
        "optimizer.blocks: block 0 is frozen (model.freeze), and has no optimizer",
    ),
    ("schedule.milestones=[5,5]", "schedule.milestones [5, 5] must increase strictly"),
    ("schedule.milestones=[6,5]", "schedule.milestones [6, 5] must increase strictly"),
    ("data.size=16", "data.size is for data.name synthetic and imagefolder, not for digits"),
    (
        "data.name=imagefolder data.classes=3",
        "data.classes is for data.name synthetic, not for imagefolder",
    ),
    (
        "data.classes_per_batch=65 data.batch_size=64",
        "data.classes_per_batch 65 can't be more than the images of a batch (data.batch_size 64)",
    ),
    (
        "data.classes_per_batch_until_epoch=3",
        "data.classes_per_batch_until_epoch 3 needs data.classes_per_batch",
    ),
    ("data.factory=my_data:make", "data.factory is data of your own: leave data.name out"),
    ("data.file=my.npz", "data.file is data of your own: leave data.name out"),
    (
        "data.name=factory",
        "data.name factory needs data.factory, as package.module:function",
    ),
    ("data.name=npz", "data.name npz needs data.file, as path.npz"),
    ("data.kwargs.width=3", "data.kwargs needs data.factory, as package.module:function"),
    ("data.mean=[7] data.std=[0.5]", "data.mean [7.0]: pixels go from 0 to 1, so these do, too"),
    ("data.mean=[0.5] data.std=[7]", "data.std [7.0]: pixels go from 0 to 1, so these do, too"),
    ("data.class_order=scan", f"data.class_order scan {SCAN_RULE}"),
    ("data.class_order=scan data.classes_per_batch=9", f"data.class_order scan {SCAN_RULE}"),
    ("data.batch_size=1", "data.batch_size 1 leaves model.batch_norm nothing to normalise by"),
    *(
        (
            f"loss.pred_hidden={wrong}".replace(" ", ""),
            f"loss.pred_hidden: {brief(value_of(wrong))} is neither a number of units (1 to "
            "1048576), nor a list of them, nor a list of such lists",
        )
        for wrong in ("0", "true", "'8'", "8.0", "[8, 0]", "[8, [8]]", "[[true]]", "2097152")
    ),
    *(
        (
            f"loss.pred_hidden=8 {loss}",
            "loss.pred_hidden needs loss.name pred or predsim with trained classifiers, so neither "
            "loss.bio nor loss.classifier fixed",
        )
        for loss in (
            *("loss.name=sim", "loss.name=glob", "loss.name=glob+sim"),
            *("loss.bio=true", "loss.classifier=fixed"),
        )
    ),
]


@pytest.mark.parametrize(("overrides", "said"), IMPOSSIBLE)
def test_impossible_combinations(file: Path, overrides: str, said: str) -> None:
    found = complaint(written(file, SMALLEST), overrides.split())
    at, _, rule = found.removeprefix("--set ").partition(": ")
    assert at in overrides.split()
    key = at.partition("=")[0]
    assert said in (rule, f"{key}: {rule}", f"{key} {rule}"), found


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"name": "vgg", "layers": [64, "M", 64, "A4"]}},
        {"data": {"batch_size": 1}, "model": {"batch_norm": False}},
        {"data": {"name": "imagefolder", "size": 64}},
        {"data": {"name": "synthetic", "size": 8, "channels": 1, "classes": 2}},
        {"schedule": {"milestones": [1, 2]}},
        {"schedule": {"milestones": [0.5, 0.75]}},
        {"schedule": {"epochs": 2, "warmup_epochs": 1, "decay": "cosine", "min_factor": 0.01}},
        {"optimizer": {"name": "sgd", "nesterov": True, "momentum": 0.1}},
        {"loss": {"beta": 1}},
        {"loss": {"label_smoothing": 0.1}},
        {"loss": {"label_smoothing": 0.1, "name": "glob+sim"}},
        {"loss": {"pred_hidden": 8}},
        {"loss": {"pred_hidden": [8, 4], "name": "glob+predsim"}},
        {"loss": {"pred_hidden": []}},
        {"data": {"classes_per_batch": 2, "classes_per_batch_until_epoch": 1}},
        {"data": {"classes_per_batch": 64, "batch_size": 64}},
        {"data": {"classes_per_batch": 10, "class_order": "scan"}},
        {"model": {"dropout": 0}},
    ],
)
def test_neighbouring_right_configs_are_taken(changes: dict[str, Any]) -> None:
    config = build_config(tree(**changes), "test")
    for section, keys in changes.items():
        for key, value in keys.items():
            found = getattr(getattr(config, section), key)
            assert (list(found) if isinstance(found, tuple) else found) == value


@pytest.mark.parametrize(
    ("epochs", "shares", "expected"),
    [
        (100, [0.5, 0.75, 0.89, 0.94], (50, 75, 89, 94)),
        (10, [0.1, 0.3, 0.7], (1, 3, 7)),  # 0.7 * 10 is a little more than 7
        (5, [0.5, 0.7], (3, 4)),
        (3, [0.01, 0.99], (1, 3)),
        (1, [0.5], (1,)),
        (7, [2, 6], (2, 6)),
    ],
)
def test_milestones_as_shares_are_the_epochs_after_which_so_much_is_done(
    epochs: int, shares: list[float], expected: tuple[int, ...]
) -> None:
    config = build_config(tree(schedule={"epochs": epochs, "milestones": shares}), "test")
    assert config.schedule.milestone_epochs == expected


# --- bounds -----------------------------------------------------------------------------------


TOO_MUCH = [
    ("schedule.epochs", "1000000000000", "less than or equal to 1000000"),
    ("schedule.milestones", f"[{', '.join(map(str, range(1, 1500)))}]", "at most 1000 items"),
    ("schedule.milestones", "[10000000000]", "neither an epoch (1 to 1000000) nor"),
    ("data.batch_size", "x" * 1000, "xxx…"),
    ("data.batch_size", "1000000000", "less than or equal to 1048576"),
    ("data.train_limit", "1000000000000", "less than or equal to 1000000000"),
    ("data.cutout", "1000000", "less than or equal to 65536"),
    ("data.validation", "1.0", "less than 1"),
    ("data.validation", "0", "greater than 0"),
    ("data.std", "[0.0]", "greater than 0"),
    ("data.factory", "my data", "input should be as package.module:function"),
    ("data.file", "x" * 40000, "at most 32,768 characters"),
    ("runtime.max_in_flight", "1000000", "less than or equal to 64"),
    ("runtime.threads_per_stage", "1000000", "less than or equal to 1024"),
    ("runtime.checkpoint_every_steps", "1000000000000", "less than or equal to 1000000000"),
    ("runtime.keep_checkpoints", "1000000000000", "less than or equal to 1000000000"),
    ("runtime.stall_timeout_s", "1e300", "less than or equal to 1000000"),
    ("loss.target_projection", "1000000000", "less than or equal to 1048576"),
    ("loss.dim_in_decoder", f"{10**30}", "less than or equal to 1073741824"),
    ("loss.pred_hidden", f"{[8] * 17}", "at most 16 hidden layers in a classifier"),
    ("loss.pred_hidden", f"{[[]] * 1025}", "lists for 1024 blocks"),
    ("loss.pred_hidden", f"{[[8] * 17]}", "at most 16 hidden layers in a classifier"),
    ("model.hidden_layers", "10000", "less than or equal to 1024"),
    ("model.hidden", "1000000000", "less than or equal to 1048576"),
    ("model.name", "wrn-10000-1", "DEPTH is 6n + 4 and at most 1024, WIDTH at most 64"),
    ("model.name", f"wrn-{'4' * 5000}-1", "DEPTH is 6n + 4 and at most 1024"),
    ("model.name", "wrn-1030-1", "DEPTH is 6n + 4 and at most 1024"),
    ("model.layers", f"{[8] * 3000}", "at most 2048 items"),
    ("model.layers", f"[{10**9}]", "neither a number of channels (1 to 1048576) nor"),
]


@pytest.mark.parametrize(
    ("key", "value", "rule"), TOO_MUCH, ids=[f"{key}={value[:12]}" for key, value, _ in TOO_MUCH]
)
def test_too_much_is_refused_with_what_is_allowed(
    file: Path, key: str, value: str, rule: str
) -> None:
    said = complaint(written(file, SMALLEST), [f"{key}={value}"])
    assert said.startswith(f"--set {cut(f'{key}={value}', 80)}: ")
    assert rule in said


ARGUMENTS = [
    (
        "wide",
        "off",
        "=off: off is false to some and a text to others: write false,",
    ),
    ("wide", "[1, {deep: Yes}]", "model.kwargs.wide.1.deep: Yes is true to some and a text to"),
    (
        "wide",
        ".nan",
        "=.nan: nan is not allowed: input should be a finite number",
    ),
    ("wide", "[-.inf]", "model.kwargs.wide.0: -inf is not allowed: input should be a finite"),
    (
        "wide",
        f"{2**63}",
        ": 9223372036854775808 is not allowed: input should be a number",
    ),
    ("wide", "[" * 20 + "]" * 20, "at most 32,768 characters (8 for a number), and 16 lists"),
    ("wide", f"[{'1, ' * 5000}]", "can be given to your own code: let it read a file of its own"),
    (
        "wide",
        '"\\uDCFF"',
        r": '\udcff' is not allowed: input should be text in UTF-8",
    ),
    ("w" * 40_000, "1", "at most 32,768 characters"),
    ("wide", "w" * 40_000, "at most 32,768 characters"),
]


@pytest.mark.parametrize(("name", "value", "said"), ARGUMENTS)
def test_arguments_of_a_factory_are_bounded_and_plain(
    file: Path, name: str, value: str, said: str
) -> None:
    assert said in complaint(written(file, own("{a: 1}")), [f"model.kwargs.{name}={value}"])


def test_the_most_arguments_are_read_again(file: Path) -> None:
    path, text = written(file, own("{a: 'off', b: ['é', 1e-3], c: 1}")), "é" * 10_000
    wanted = (f"model.kwargs.text={text}", f"model.kwargs.list=[{'-1, ' * 2000}]")
    wanted += (f"model.kwargs.deep={'[' * 15 + ']' * 15}", "model.kwargs.c=16")
    config = load_config(path, wanted)
    assert (config.model.kwargs["a"], config.model.kwargs["c"]) == ("off", 16)
    assert load_config(written(file, dump_config(config))) == config


def test_yes_is_true_where_true_or_false_is_wanted_and_a_text_where_one_is(file: Path) -> None:
    yes = written(file, SMALLEST.replace("name: digits", "name: digits, flip: yes, root: no"))
    config = load_config(yes, ("runtime.compile=on", "data.download=Off"))
    found = (config.data.flip, config.runtime.compile, config.data.download, config.data.root)
    assert found == (True, True, False, "no")
    assert load_config(written(file, dump_config(config))) == config
    assert "'on' is not allowed" in complaint(yes, ["optimizer.lr=on"])


def test_an_override_changes_its_own_section_alone(file: Path) -> None:
    shared = written(file, SMALLEST + "optimizer: &o {}\nschedule: *o\n")
    config = load_config(shared, ("optimizer.lr=0.5", "schedule.epochs=7"))
    assert (config.optimizer.lr, config.schedule.epochs) == (0.5, 7)


def test_settings_of_single_blocks_survive_being_written_overridden_and_sent(file: Path) -> None:
    own = written(file, SMALLEST + "optimizer: {blocks: {0: {lr: 0.1}, 1: {weight_decay: 0.2}}}\n")
    config = load_config(own, ("optimizer.blocks.0.weight_decay=0.3", "optimizer.blocks.2.lr=4"))
    found = {index: (own.lr, own.weight_decay) for index, own in config.optimizer.blocks.items()}
    assert found == {0: (0.1, 0.3), 1: (None, 0.2), 2: (4.0, None)}
    assert load_config(written(file, dump_config(config))) == config
    assert load_config(file, ("optimizer.blocks.0.lr=0.1",)) == config  # where 0 stands in quotes
    assert build_config(json.loads(json.dumps(config_tree(config))), "a manifest") == config
    other = load_config(file, ("optimizer.blocks={}",))
    changed = differing_keys(other, config)["optimizer.blocks"]
    assert value_of(word_for(changed[0])) == {}
    assert value_of(word_for(changed[1]))[0] == {"lr": 0.1, "weight_decay": 0.3}


# --- all at once, and what was meant --------------------------------------------------------

MANY = """\
model:
  nmae: mlp
  hidden: wide
loss: {name: predsin, beta: 2}
optimizer: {lr: 0.1, nestarov: 1}
data:
  name: mnist
  batch_size: 0
"""


def problems(file: Path, text: str, *overrides: str) -> list[tuple[str, str]]:
    """Where, but for the file's name, and the key of each thing that is wrong."""
    with pytest.raises(WrongKeysError) as caught:
        load_config(written(file, text), overrides)
    found = caught.value.problems
    first, *lines = str(caught.value).splitlines()
    assert first == f"{file}: {len(found)} things are wrong:"
    assert lines == [f"  {n}. {problem.line}" for n, problem in enumerate(found, 1)]
    assert all(problem.line.startswith(f"{problem.at}: ") for problem in found)
    return [(problem.at.removeprefix(str(file)), problem.key) for problem in found]


def test_all_that_is_wrong_is_said_at_once_where_it_stands(file: Path) -> None:
    found = problems(file, MANY, "loss.beta=3", "schedule.epochs=0", "data.lr=1", "loss.beta=4")
    assert found == [
        (":3", "model.hidden"),
        (":2", "model.nmae"),
        (":4", "loss.name"),
        ("--set loss.beta=4", "loss.beta"),
        (":5", "optimizer.nestarov"),
        ("--set schedule.epochs=0", "schedule.epochs"),
        (":8", "data.batch_size"),
        ("--set data.lr=1", "data.lr"),
    ]


def test_what_only_follows_is_not_said(file: Path) -> None:
    """A key that is written wrong is missing, too; what must fit together is looked at where every
    value is right by itself."""
    wrong = SMALLEST.replace("model:", "modle:").replace("{name: pred}", "{nam: pred, alpha: 0.5}")
    assert problems(file, wrong) == [(":2", "loss.nam"), (":1", "modle")]
    misfits = SMALLEST.replace("name: pred", "name: sim, alpha: 0.5, pred_hidden: 8")
    assert problems(file, misfits) == [(":2", "loss.pred_hidden"), (":2", "loss.alpha")]


def test_a_line_is_found_in_json_and_behind_an_alias(file: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", '{"model": {\n"name": "mlp",\n"hidden": "wide"}}')
    with pytest.raises(WrongKeysError) as caught:
        load_config(path, ("loss.name=pred", "data.name=digits"))
    assert caught.value.problems[0].at == f"{path}:3"
    shared = "model: &m {name: mlp,\n  hidden: wide}\nloss: {name: pred}\ndata: *m\n"
    assert (":2", "model.hidden") in problems(file, shared)


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("loss.betta=0.5", "loss.beta"),
        ("optimiser.lr=1", "optimizer"),
        ("data.lr=1", "optimizer.lr"),
        ("model.batch_size=1", "data.batch_size"),
        ("optimizer.blocks.0.weigth_decay=1", "optimizer.blocks.0.weight_decay"),
        ("seed=3", "runtime.seed"),
        ("loss.name=predsin", "predsim"),
        ("data.name=MNIST", "mnist"),
        ("model.name=resnet81", "resnet18"),
        ("optimizer.name=adam2", "adam"),
    ],
)
def test_what_was_meant_is_named(file: Path, override: str, meant: str) -> None:
    assert complaint(written(file, SMALLEST), [override]).endswith(f"; did you mean {meant}?")


@pytest.mark.parametrize("override", ["loss.qqq=1", "data.name=qqq", "name=mlp", "data.name=7"])
def test_nothing_is_guessed_where_nothing_is_like_it(file: Path, override: str) -> None:
    assert "did you mean" not in complaint(written(file, SMALLEST), [override])


# --- files and YAML -----------------------------------------------------------------------


def test_what_is_no_text_can_not_be_read(file: Path, tmp_path: Path) -> None:
    assert complaint(file) == f"{file}: there is no such file"
    assert complaint(tmp_path) == f"{tmp_path}: is a folder: name a file in it"
    file.write_bytes(b"\xff\xfe\x00")
    assert complaint(file).startswith(f"{file}: can't be read as text: 'utf-8' codec")
    assert complaint(tmp_path) == f"{tmp_path}: is a folder: name a file in it, as {file}"


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ("model: {name: mlp", "1:18", "expected ',' or '}'"),
        ("model:\n  name: mlp\n bad: 1\n", "3:2", "expected <block end>"),
        ("model: [\n", "2:1", "expected the node content"),
        ("\tmodel: 1\n", "1:1", "cannot start any token"),
        ("model: *nowhere\n", "1:8", "found undefined alias"),
        ("model: {name: 2020-99-99}\n", "1:15", "'2020-99-99' is no timestamp"),
        ("model: {name: !!timestamp soon}\n", "1:15", "'soon' is no timestamp"),
        ("model: {batch_norm: !!bool perhaps}\n", "1:21", "'perhaps' is no bool"),
        ("model: {hidden: !!int many}\n", "1:17", "'many' is no int"),
        ("model: {name: mlp, name: mlp}\n", "1:20", "key 'name' is given twice"),
        ("model: {}\nloss: {}\nmodel: {}\n", "3:1", "key 'model' is given twice"),
        ("model: {}\n? [loss]\n: {}\n", "2:3", "a key must be a single word"),
    ],
)
def test_yaml_errors_name_line_and_column(file: Path, text: str, place: str, problem: str) -> None:
    said = complaint(written(file, text))
    assert said.startswith(f"{file}:{place}: YAML syntax: ")
    assert problem in said


def test_what_would_be_misread_has_its_place_and_a_forbidden_character_one_line(file: Path) -> None:
    misread = complaint(written(file, SMALLEST + "extra: {root: 010}\n"))
    assert misread.startswith(f"{file}:4:15: 010 would be read as 8 (octal): write a number in")
    forbidden = complaint(written(file, SMALLEST + "# \x00\n"))
    assert forbidden.startswith(f"{file}: YAML syntax: unacceptable character #x0000")


@pytest.mark.parametrize("value", ["5e-4", "5E-4", ".5e-3", "+5e-4", "0.0005", "5.e-4", "50e-5"])
def test_numbers_without_a_dot_are_numbers(file: Path, value: str) -> None:
    in_file = load_config(written(file, SMALLEST + f"optimizer: {{lr: {value}}}\n"))
    by_override = load_config(written(file, SMALLEST), (f"optimizer.lr={value}",))
    assert in_file.optimizer.lr == by_override.optimizer.lr == 5e-4


# --- overrides ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "override", "said"),
    [
        (SMALLEST, "schedule.milestones=[1", ":1:3: YAML syntax: expected ',' or ']'"),
        (SMALLEST, "data.root=010", ": 010 would be read as 8 (octal): write a number in plain"),
        (SMALLEST + "optimizer: adam", "optimizer.lr=1", ": optimizer is not a section"),
        (own("[1]"), "model.kwargs.a=1", ": kwargs is not a section"),
        (own("5"), "model.kwargs.a=1", ": kwargs is not a section"),
        (own("word"), "model.kwargs.a=1", ": kwargs is not a section"),
        *(
            (SMALLEST, form, ": expected SECTION.KEY=VALUE, as data.batch_size=64")
            for form in ("", "optimizer.lr", "seed=3", "=3", ".lr=3", "optimizer.=3", "data root 3")
        ),
    ],
)
def test_override_that_can_not_be_applied(file: Path, text: str, override: str, said: str) -> None:
    assert complaint(written(file, text), [override]).startswith(f"--set {override}{said}")


def test_overrides_win_over_the_file_and_the_last_over_the_first(file: Path) -> None:
    path = written(file, SMALLEST + "runtime: {seed: 5, max_in_flight: 3}\n")
    more = ("schedule.milestones=[2, 4]", "data.root=a=b")
    config = load_config(path, ("runtime.seed=6", "runtime.seed=7", *more))
    assert (config.runtime.seed, config.runtime.max_in_flight) == (7, 3)
    assert (config.schedule.milestones, config.data.root) == ((2, 4), "a=b")
    assert load_config(path).runtime.seed == 5


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (None, "null"), (True, "true"), (5e-4, "0.0005"), ("5e-4", "'5e-4'"), ("null", "'null'"),
        ("", "''"), ("a: b", "'a: b'"), ("é", "é"), ([[8], []], "[[8], []]"),
        ({"deep": None, "widths": [1]}, "{deep: null, widths: [1]}"),
        ([64, "M"] * 40, f"[{', '.join(['64, M'] * 40)}]"),
    ],
)  # fmt: skip
def test_a_value_as_a_word_is_read_as_that_value(value: Any, word: str) -> None:
    assert value_of(word_for(value)) == value
    assert word_for(value) == word


# --- written and read again ---------------------------------------------------------------

units = st.integers(1, 999)
widths = st.lists(units, max_size=2)
floats = st.floats(min_value=1e-12, max_value=1e12)
configs = st.fixed_dictionaries(
    {
        "model": st.fixed_dictionaries(
            {
                "name": st.just("vgg"),
                "layers": st.lists(st.integers(1, 999), min_size=1, max_size=3).map(
                    lambda channels: [*channels, "A3"]
                ),
                "feat_mult": st.floats(0.01, 64),
                "batch_norm": st.booleans(),
            }
        ),
        "loss": st.fixed_dictionaries(
            {"name": st.sampled_from(["pred", "sim", "predsim", "glob"]), "beta": st.floats(0, 1)}
        )
        | st.fixed_dictionaries(
            {"name": st.just("pred"), "pred_hidden": units | widths | st.lists(widths)}
        ),
        "optimizer": st.fixed_dictionaries({"lr": floats}),
        "schedule": st.fixed_dictionaries(
            {"milestones": st.sets(st.integers(1, 500), max_size=4).map(sorted)}
        ),
        "data": st.fixed_dictionaries(
            {
                "name": st.just("synthetic"),
                "root": st.text(st.characters(exclude_categories=["Cs"])),
                "classes": st.none() | st.integers(2, 10),
            }
        ),
        "runtime": st.fixed_dictionaries({"seed": st.integers(0, 2**63 - 1)}),
    }
)


@given(wanted=configs)
def test_dumped_config_loads_to_an_equal_one(
    tmp_path_factory: pytest.TempPathFactory, wanted: dict[str, Any]
) -> None:
    config = build_config(wanted, "test")
    dumped = written(tmp_path_factory.getbasetemp() / "dumped.yaml", dump_config(config))
    assert load_config(dumped) == config


def test_config_is_frozen() -> None:
    config = build_config(tree(), "test")
    with pytest.raises(ValueError, match="frozen"):
        config.loss.beta = 0.5  # type: ignore[misc]


# --- differences --------------------------------------------------------------------------


def test_differing_keys_are_dotted_and_give_both_values() -> None:
    one = build_config(tree(optimizer={"lr": 1e-3}, runtime={"seed": 4}), "test")
    other = build_config(tree(runtime={"seed": 5}, data={"train_limit": 7}), "test")
    assert differing_keys(one, other) == {
        "optimizer.lr": (1e-3, 5e-4),
        "data.train_limit": (None, 7),
        "runtime.seed": (4, 5),
    }
    assert differing_keys(one, build_config(config_tree(one), "test")) == {}


def test_own_data_are_named_by_where_they_are_from(tmp_path: Path) -> None:
    for keys, name in (("factory: 'my:own', kwargs: {n: 3}", "factory"), ("file: a.npz", "npz")):
        path = tmp_path / "own.yaml"
        path.write_text(
            f"model: {{name: mlp}}\nloss: {{name: pred}}\ndata: {{{keys}, mean: [-3], std: [7]}}\n"
        )
        config = load_config(path)
        assert (config.data.name, config.data.is_own) == (name, True)
        path.write_text(dump_config(config))
        assert load_config(path) == config


def test_a_run_to_begin_from_is_a_folder_or_says_more(file: Path) -> None:
    plain = load_config(written(file, SMALLEST), ("model.init_from=runs/one",))
    assert plain.model.init_from is not None
    assert plain.model.init_from.run == "runs/one"
    assert (plain.model.init_from.checkpoint, plain.model.init_from.blocks) == ("last", None)
    more = ("model.init_from.run=runs/one", "model.init_from.checkpoint=12")
    given = load_config(file, (*more, "model.init_from.blocks=[0,2]", "model.freeze=[0]"))
    assert given.model.init_from is not None
    assert (given.model.init_from.checkpoint, given.model.init_from.blocks) == (12, (0, 2))
    for config in (plain, given):
        again = load_config(written(file, dump_config(config)))
        assert again == config
        assert config_tree(again)["model"]["init_from"]["run"] == "runs/one"


def test_which_is_the_best_is_told_by_one_key(file: Path) -> None:
    for text, expected in (("yes", True), ("false", False), ("last", "last"), ("test", "test")):
        config = load_config(written(file, SMALLEST), (f"runtime.keep_best={text}",))
        assert config.runtime.keep_best == expected
    assert load_config(file).runtime.keep_best is True
