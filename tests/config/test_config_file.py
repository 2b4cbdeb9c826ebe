"""Every wrong config is one clear line; every right one survives being written and read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.config_file import dump_config, load_config
from pipeline.config.schema import brief
from pipeline.config.sections import Config, build_config, config_tree, differing_keys
from pipeline.config.yaml_text import value_of, word_for
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SMALLEST = "model: {name: mlp}\nloss: {name: pred}\ndata: {name: digits}\n"


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
    ("schedule", "epochs", "0", "0", "greater than or equal to 1"),
    ("schedule", "epochs", "2.5", "2.5", "valid integer"),
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
    ("runtime", "heartbeat_timeout_s", "", "null", "valid number"),
]


@pytest.mark.parametrize(
    ("section", "key", "value", "shown", "rule"),
    WRONG_VALUES,
    ids=[f"{section}.{key}={value}" for section, key, value, *_ in WRONG_VALUES],
)
def test_wrong_value_names_file_key_value_and_rule(
    file: Path, section: str, key: str, value: str, shown: str, rule: str
) -> None:
    override = f"{section}.{key}={value}"
    for text in (
        complaint(written(file, SMALLEST), [override]),
        complaint(written(file, _with(section, key, value))),
    ):
        assert text.startswith(f"{file}: {section}.{key}: {shown} is not allowed: ")
        assert rule in text


def _with(section: str, key: str, value: str) -> str:
    """The smallest config with one more key, in a file."""
    sections = {"model": {"name": "mlp"}, "loss": {"name": "pred"}, "data": {"name": "digits"}}
    sections.setdefault(section, {})[key] = value
    lines = [
        f"{name}: {{{', '.join(f'{key}: {value}' for key, value in pairs.items())}}}"
        for name, pairs in sections.items()
    ]
    return "\n".join(lines)


def test_milestone_below_one_is_named_by_its_place(file: Path) -> None:
    text = complaint(written(file, SMALLEST), ["schedule.milestones=[5, 0]"])
    assert text.startswith(f"{file}: schedule.milestones.1: 0 is not allowed: ")


def test_long_value_is_cut(file: Path) -> None:
    text = complaint(written(file, SMALLEST), [f"data.batch_size={'x' * 1000}"])
    assert "data.batch_size: 'xxx" in text
    assert "…" in text


# --- unknown, missing, impossible ---------------------------------------------------------


def test_unknown_key_is_named_with_those_that_are_allowed(file: Path) -> None:
    text = complaint(written(file, SMALLEST), ["loss.betta=0.5"])
    assert text == (
        f"{file}: loss.betta: unknown key; allowed here: name, beta, dim_in_decoder, pred_hidden, "
        "bio, target_projection, classifier, feedback, unsupervised, alpha"
    )


def test_a_section_that_is_none_is_told_its_keys(file: Path) -> None:
    assert complaint(written(file, SMALLEST + "optimizer: adam\n")) == (
        f"{file}: optimizer: expected keys and values (name, lr, weight_decay, momentum), "
        "found 'adam'"
    )


def test_a_key_that_is_a_number(file: Path) -> None:
    said = complaint(written(file, SMALLEST + "optimizer: {5: adam}\n"))
    assert "optimizer.5: 5 is not allowed: a key should be a text, in quotes where" in said


def test_arguments_of_a_factory_are_what_json_can_say(file: Path) -> None:
    own = SMALLEST.replace("{name: mlp}", "{factory: 'a.b:c', kwargs: {since: 2020-01-01}}")
    assert complaint(written(file, own)) == (
        f"{file}: model.kwargs.since: 2020-01-01 is not allowed: input should be a text, a number, "
        "true, false, null, or a list or keys and values of these"
    )


def test_unknown_section_is_named_with_those_that_are_allowed(file: Path) -> None:
    text = complaint(written(file, SMALLEST + "training: {}\n"))
    assert text == (
        f"{file}: training: unknown key; "
        "allowed here: model, loss, optimizer, schedule, data, runtime"
    )


@pytest.mark.parametrize("section", ["model", "loss", "data"])
def test_missing_section_and_missing_name(file: Path, section: str) -> None:
    without = "".join(line for line in SMALLEST.splitlines(True) if not line.startswith(section))
    assert complaint(written(file, without)) == f"{file}: {section}: is missing"
    nameless = f"{without}{section}: {{}}\n"
    assert complaint(written(file, nameless)) == f"{file}: {section}.name: is missing"


LAYER_RULE = "neither a number of channels (1 to 1048576) nor M, M3, M4, A, A3, A4"
SCAN_RULE = "needs data.classes_per_batch of at least 10, to which it widens every batch"
IMPOSSIBLE = [
    # overrides, parted by spaces; what is said of them
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
    ("model.hidden_layers=0", "model.name mlp needs model.hidden_layers of at least 1"),
    (
        "loss.name=glob loss.bio=true",
        "loss.name glob has no local losses: bio and unsupervised need one",
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
    assert complaint(written(file, SMALLEST), overrides.split()) == f"{file}: {said}"


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"name": "vgg", "layers": [64, "M", 64, "A4"]}},
        {"data": {"batch_size": 1}, "model": {"batch_norm": False}},
        {"data": {"name": "imagefolder", "size": 64}},
        {"data": {"name": "synthetic", "size": 8, "channels": 1, "classes": 2}},
        {"schedule": {"milestones": [1, 2]}},
        {"loss": {"beta": 1}},
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


# --- bounds -----------------------------------------------------------------------------------


TOO_MUCH = [
    ("schedule.epochs", "1000000000000", "less than or equal to 1000000"),
    ("schedule.milestones", f"[{', '.join(map(str, range(1, 1500)))}]", "at most 1000 items"),
    ("schedule.milestones", "[10000000000]", "less than or equal to 1000000"),
    ("data.batch_size", "1000000000", "less than or equal to 1048576"),
    ("data.train_limit", "1000000000000", "less than or equal to 1000000000"),
    ("data.cutout", "1000000", "less than or equal to 65536"),
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
    assert said.startswith(f"{file}: {key}")
    assert rule in said


ARGUMENTS = [
    ("wide", "off", "model.kwargs.wide: off is false to some and a text to others: write false,"),
    ("wide", "[1, {deep: Yes}]", "model.kwargs.wide.1.deep: Yes is true to some and a text to"),
    ("wide", ".nan", "model.kwargs.wide: nan is not allowed: input should be a finite number"),
    ("wide", "[-.inf]", "model.kwargs.wide.0: -inf is not allowed: input should be a finite"),
    ("wide", f"{2**63}", "model.kwargs.wide: 9223372036854775808 is not allowed: input should be"),
    ("wide", "[" * 20 + "]" * 20, "at most 32,768 characters (8 for a number), and 16 lists"),
    ("wide", f"[{'1, ' * 5000}]", "can be given to a factory: let it read a file of its own"),
    (
        "wide",
        '"\\uDCFF"',
        r"model.kwargs.wide: '\udcff' is not allowed: input should be text in UTF-8",
    ),
    ("w" * 40_000, "1", "at most 32,768 characters"),
    ("wide", "w" * 40_000, "at most 32,768 characters"),
]


@pytest.mark.parametrize(("name", "value", "said"), ARGUMENTS)
def test_arguments_of_a_factory_are_bounded_and_plain(
    file: Path, name: str, value: str, said: str
) -> None:
    own = written(file, SMALLEST.replace("{name: mlp}", "{factory: 'a.b:c', kwargs: {a: 1}}"))
    assert said in complaint(own, [f"model.kwargs.{name}={value}"])


def test_the_most_arguments_are_read_again(file: Path) -> None:
    own = SMALLEST.replace("{name: mlp}", "{factory: 'a.b:c', kwargs: {a: 'off', b: ['é', 1e-3]}}")
    path, text = written(file, own), "é" * 10_000
    wanted = (f"model.kwargs.text={text}", f"model.kwargs.list=[{'-1, ' * 2000}]")
    config = load_config(path, (*wanted, f"model.kwargs.deep={'[' * 15 + ']' * 15}"))
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


@pytest.mark.parametrize("given", ["[1]", "5", "word"])
def test_arguments_that_are_none(file: Path, given: str) -> None:
    own = SMALLEST.replace("{name: mlp}", f"{{factory: 'a.b:c', kwargs: {given}}}")
    assert "kwargs is not a section" in complaint(written(file, own), ["model.kwargs.a=1"])


# --- files and YAML -----------------------------------------------------------------------


def test_missing_file(file: Path) -> None:
    assert complaint(file) == f"{file}: there is no such file"


def test_folder_and_binary_file_can_not_be_read(file: Path, tmp_path: Path) -> None:
    assert complaint(tmp_path).startswith(f"{tmp_path}: can't be read as text: ")
    file.write_bytes(b"\xff\xfe\x00")
    assert complaint(file).startswith(f"{file}: can't be read as text: 'utf-8' codec")


@pytest.mark.parametrize("text", ["", "3", "- model\n", "just words\n"])
def test_file_without_sections(file: Path, text: str) -> None:
    text = complaint(written(file, text))
    assert text.startswith(f"{file}: expected sections (model:, loss:, …), found ")


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


def test_forbidden_character_is_one_line_too(file: Path) -> None:
    text = complaint(written(file, SMALLEST + "# \x00\n"))
    assert text.startswith(f"{file}: YAML syntax: unacceptable character #x0000")


@pytest.mark.parametrize("value", ["5e-4", "5E-4", ".5e-3", "+5e-4", "0.0005", "5.e-4", "50e-5"])
def test_numbers_without_a_dot_are_numbers(file: Path, value: str) -> None:
    in_file = load_config(written(file, SMALLEST + f"optimizer: {{lr: {value}}}\n"))
    by_override = load_config(written(file, SMALLEST), (f"optimizer.lr={value}",))
    assert in_file.optimizer.lr == by_override.optimizer.lr == 5e-4


# --- overrides ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override", ["", "optimizer.lr", "seed=3", "=3", ".lr=3", "optimizer.=3", "optimizer lr 3"]
)
def test_override_of_another_form(file: Path, override: str) -> None:
    assert complaint(written(file, SMALLEST), [override]) == (
        f"--set {override}: expected SECTION.KEY=VALUE, as data.batch_size=64"
    )


def test_override_whose_value_is_no_yaml(file: Path) -> None:
    text = complaint(written(file, SMALLEST), ["schedule.milestones=[1"])
    assert text.startswith("--set schedule.milestones=[1:1:3: YAML syntax: expected ',' or ']'")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("schedule.epochs=1:30", "1:30 would be read as 90 (base 60): write a number in plain"),
        ("data.batch_size=0x10", "0x10 would be read as 16 (hexadecimal): write"),
        (
            "data.root=010",
            "010 would be read as 8 (octal): write a number in plain decimal digits,",
        ),
    ],
)
def test_override_that_would_be_misread(file: Path, override: str, said: str) -> None:
    assert complaint(written(file, SMALLEST), [override]).startswith(f"--set {override}: {said}")
    key, _, value = override.partition("=")
    name = key.rpartition(".")[2]
    text = complaint(written(file, f"{SMALLEST}extra: {{{name}: {value}}}\n"))
    assert text.startswith(f"{file}:4:{11 + len(name)}: {said}")


def test_override_of_unknown_places(file: Path) -> None:
    path = written(file, SMALLEST)
    assert complaint(path, ["train.lr=1"]).startswith(f"{file}: train: unknown key; ")
    assert complaint(path, ["data.a.b=1"]).startswith(f"{file}: data.a.b: unknown key; ")
    flat = written(file, SMALLEST + "optimizer: adam\n")
    assert complaint(flat, ["optimizer.lr=1"]) == "--set optimizer.lr=1: optimizer is not a section"


def test_overrides_win_over_the_file_and_the_last_over_the_first(file: Path) -> None:
    path = written(file, SMALLEST + "runtime: {seed: 5, max_in_flight: 3}\n")
    config = load_config(path, ("runtime.seed=6", "runtime.seed=7", "schedule.milestones=[2, 4]"))
    assert (config.runtime.seed, config.runtime.max_in_flight) == (7, 3)
    assert config.schedule.milestones == (2, 4)
    assert load_config(path).runtime.seed == 5


def test_override_of_an_argument_of_a_factory(file: Path) -> None:
    own = SMALLEST.replace("{name: mlp}", "{factory: 'a.b:c', kwargs: {width: 1}}")
    assert "factory" in own
    path = written(file, own)
    config = load_config(path, ("model.kwargs.width=16", "model.kwargs.deep=true"))
    assert config.model.kwargs == {"width": 16, "deep": True}


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (None, "null"), (True, "true"), (5e-4, "0.0005"), ("5e-4", "'5e-4'"), ("null", "'null'"),
        ("", "''"), ("a: b", "'a: b'"), ("é", "é"), ([[8], []], "[[8], []]"),
        ({"deep": None, "widths": [1]}, "{deep: null, widths: [1]}"),
    ],
)  # fmt: skip
def test_a_value_as_a_word_is_read_as_that_value(value: Any, word: str) -> None:
    assert value_of(word_for(value)) == value
    assert word_for(value) == word


def test_long_lists_are_words_too() -> None:
    assert word_for((64, "M") * 40) == f"[{', '.join(['64, M'] * 40)}]"


def test_override_value_may_hold_an_equals_sign(file: Path) -> None:
    assert load_config(written(file, SMALLEST), ("data.root=a=b",)).data.root == "a=b"


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


@given(configs)
def test_tree_builds_the_same_config(wanted: dict[str, Any]) -> None:
    config = build_config(wanted, "test")
    assert build_config(config_tree(config), "test") == config


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config") / "dumped.yaml"


@given(wanted=configs)
def test_dumped_config_loads_to_an_equal_one(scratch: Path, wanted: dict[str, Any]) -> None:
    config = build_config(wanted, "test")
    assert load_config(written(scratch, dump_config(config))) == config


@pytest.mark.parametrize(
    "root", ["5e-4", "1e5", "3", "null", "true", "2020-01-01", "", "a: b", "é"]
)
def test_dumped_text_stays_a_text(scratch: Path, root: str) -> None:
    config = build_config(tree(data={"root": root}), "test")
    assert load_config(written(scratch, dump_config(config))).data.root == root


def test_config_is_frozen() -> None:
    config = build_config(tree(), "test")
    with pytest.raises(ValueError, match="frozen"):
        config.loss.beta = 0.5  # type: ignore[misc]


# --- differences --------------------------------------------------------------------------


def changed(**sections: dict[str, Any]) -> Config:
    return build_config(tree(**sections), "test")


def test_differing_keys_are_dotted_and_give_both_values() -> None:
    one = changed(optimizer={"lr": 1e-3}, runtime={"seed": 4})
    other = changed(runtime={"seed": 5}, data={"train_limit": 7})
    assert differing_keys(one, other) == {
        "optimizer.lr": (1e-3, 5e-4),
        "data.train_limit": (None, 7),
        "runtime.seed": (4, 5),
    }
    assert differing_keys(one, changed(optimizer={"lr": 1e-3}, runtime={"seed": 4})) == {}
