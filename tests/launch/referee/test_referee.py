"""The referee: which tasks there are, in which order, what each is told, and what rows say."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from launch.child_commands import Ended
from launch.command import DONE, FAILED
from launch.engines.interrupts import INTERRUPTED
from launch.referee.expected import Expectation
from launch.referee.page import page_text
from launch.referee.referee import Referee, best_value, check_rows
from launch.referee.repeat import bits_that_differ
from launch.referee.rows import Row, Rows
from launch.referee.table import read_table
from launch.referee.tasks import Request, Task, config_of, tasks_of
from pipeline.config.sections import config_tree
from pipeline.errors import ConfigError
from pipeline.rules import SHIPPED

if TYPE_CHECKING:
    from pathlib import Path

SMALL = """\
common: {optimizer: {lr: 1e-3}}
search: {optimizer.lr: [1e-3, 3e-3]}
networks:
  small:
    title: Small
    epochs: 3
    search_epochs: 2
    config: {model: {name: mlp, hidden_layers: 2, hidden: 16}, data: {name: digits}}
  other:
    title: Other
    epochs: 3
    search_epochs: 2
    asked_for: true
    config: {model: {name: vgg8b}, data: {name: cifar10}}
rules:
  backprop: {title: Backprop, config: {loss: {name: glob}}}
  saving:
    title: Saving
    config: {loss: {name: glob}, runtime: {recompute: 1}}
    search_of: backprop
  pred: {title: Pred, config: {loss: {name: pred}}}
  own:
    title: Own
    config: {loss: {rule: SoftHebb}}
    search: {loss.options.lr: [0.1]}
    own_networks:
      small:
        factory: "pipeline.rules.networks:hebbian"
        kwargs: {image_shape: [1, 8, 8], classes: 10, hidden: [16]}
"""
START = {
    "command": "pipeline-launch", "processor": "A processor", "cores": 2, "gpus": [],
    "versions": {"torch": "2"}, "commit": "abc1234", "uncommitted_changes": False,
}  # fmt: skip


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    (tmp_path / "table.yaml").write_text(SMALL)
    table = read_table(tmp_path / "table.yaml")
    nets, rules = table.named_networks("small"), table.named_rules(None)
    out, runs = tmp_path / "out", tmp_path / "runs"
    return Request(table, nets, rules, (1, 2), out=out, runs=runs)


def task_of(request: Request, rule: str, kind: Any, **named: Any) -> Task:
    return Task(request.networks[0], request.table.rules[rule], kind, **named)


def row_of(request: Request, task: Task, error: float = 5.0, **result: Any) -> Row:
    found: dict[str, Any] = {
        "images_per_s": 1000.0, "peak_memory_bytes": 1 << 28, "device": "cpu", "epochs": 3,
        "error_pct": error, "loss": 0.1, "tested_on": "test", "wall_s": 10.0,
        "depths": [{"block": 0, "error_pct": error + 1, "name": "a"}], **result,
    }  # fmt: skip
    if task.kind == "locality":
        found = {"is_local": True, "said": "local: 3 blocks", "wall_s": 2.0}
    value = best_value(task.network, task.rule, request, Rows(request.out))
    return Row(str(task.path), config_tree(config_of(task, request, value)), (START,), found)


def with_rows(request: Request, *, seeds: tuple[int, ...] = (1,)) -> Rows:
    """Everything but some seeds."""
    rows = Rows(request.out)
    for task in tasks_of(request):
        if task.kind != "train":
            error = 4.0 if task.value == 3e-3 else 6.0
            rows.add(row_of(request, task, error))
    for task in tasks_of(request):
        if task.kind == "train" and task.seed in seeds:
            rows.add(row_of(request, task, 2.0 + task.seed))
    return rows


def test_a_file_of_rules_alone_adds_them_to_the_shipped_ones(tmp_path: Path) -> None:
    path, shipped = tmp_path / "mine.yaml", read_table()
    row = "{title: Mine, config: {loss: {name: pred, pred_hidden: 8}}, search_of: pred}"
    path.write_text(f"rules:\n  Mine: {row}\n", "utf-8")
    table = read_table(path)
    assert [*table.rules] == [*shipped.rules, "Mine"]
    assert table.networks == shipped.networks
    request = Request(table, [table.networks["mlp"]], [table.rules["Mine"]])
    (made,) = {config_of(task, request).loss.pred_hidden for task in tasks_of(request)[-1:]}
    assert made == 8
    path.write_text(f"rules:\n  DGL: {row}\n", "utf-8")
    with pytest.raises(ConfigError, match="DGL is a shipped rule: give yours another name"):
        read_table(path)


def test_speed_is_taken_of_as_many_steps_as_the_table_says(tmp_path: Path) -> None:
    path = tmp_path / "table.yaml"
    path.write_text(SMALL.replace("epochs: 3", "epochs: 3\n    speed_steps: 3", 1), "utf-8")
    table = read_table(path)
    request = Request(table, list(table.networks.values()), [table.rules["pred"]])
    configs = [config_of(Task(net, rule, "speed"), request) for net, rule in request.pairs]
    assert [config.data.train_limit for config in configs] == [3 * 128, 40 * 128]


def test_the_shipped_table_has_every_rule_and_all_its_configs_are_right() -> None:
    table = read_table()
    named = {rule.config["loss"].get("rule") for rule in table.rules.values()}
    assert named - {None} == set(SHIPPED)
    losses = {rule.config["loss"].get("name") for rule in table.rules.values()}
    assert {"glob", "pred", "sim", "predsim"} <= losses
    networks = list(table.networks.values())
    request = Request(table, networks, list(table.rules.values()))
    for network, rule in request.pairs:
        for kind in ("speed", "search", "train"):
            config_of(Task(network, rule, kind, value=rule.values[0]), request)
    assert [network.name for network in table.named_networks(None)] == ["mlp", "cnn3"]
    by_default = table.named_rules(None)
    assert all(rule.fits(table.networks["mlp"]) for rule in by_default)
    assert not any(rule.name.startswith("predsim-") for rule in by_default)
    assert not table.rules["predsim-pooled"].fits(table.networks["mlp"])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("networks:", "nets:", "expected the entries"),
        ("search_of: backprop", "search_of: nobody", "saving: search_of nobody is no rule"),
        ("epochs: 3", "epochs: many", "small: epochs 'many' is no int"),
        ("epochs: 3", "epochs: 0", "small: epochs 0: expected 1 or more"),
        ("title: Pred, ", "", "pred: title is missing"),
        ("  pred: {", "  a/b: {", "rules: 'a/b' can't name files, nor be asked for: use letters"),
        ("  pred: {", "  1: {", "rules: 1 can't name files, nor be asked for"),
        (
            "config: {loss: {name: pred}}",
            "config: {loss: pred}",
            "pred: config: loss: expected keys",
        ),
        (
            "      small:\n        factory",
            "      big:\n        factory",
            "own: 'big' is no network",
        ),
        ("[1e-3, 3e-3]", "1e-3", "expected SECTION.KEY with a list of values"),
        ("asked_for", "asked", "other: asked is none of title"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(old: str, new: str, said: str, tmp_path: Path) -> None:
    assert old in SMALL
    (tmp_path / "table.yaml").write_text(SMALL.replace(old, new))
    with pytest.raises(ConfigError, match=said):
        read_table(tmp_path / "table.yaml")


def test_a_repetition_tells_which_bits_are_others_and_where_the_row_was_made(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.referee.repeat.provenance", lambda command: START)
    kept = replace(row_of(request_, task_of(request_, "pred", "train")), starts=(START,))

    def with_(row: Row, **result: Any) -> Row:
        return replace(row, result={**row.result, **result})

    kept = with_(kept, blocks_sha256={"0": "a", "1": "b"})
    assert bits_that_differ(kept, kept) == ""
    other = with_(kept, blocks_sha256={"0": "a", "1": "c"})
    said = "not the same: error 5.00 % against error 5.00 %, other bits in blocks 1"
    assert bits_that_differ(kept, other) == said
    elsewhere = replace(kept, starts=({**START, "processor": "Another"},))
    place = "the row was trained on Another with torch 2, this on A processor with torch 2"
    assert bits_that_differ(elsewhere, other) == f"{said}; {place}, which may round otherwise"
    on_a_gpu = with_(replace(kept, starts=({**START, "gpus": ["A GPU"]},)), device="cuda:0")
    assert "; the row was trained on A GPU with torch 2, this on A pr" in bits_that_differ(
        on_a_gpu, other
    )
    fewer = with_(kept, blocks_sha256={"0": "a"})
    for one, two in ((kept, fewer), (fewer, kept)):
        assert "other bits in blocks 1" in bits_that_differ(one, two)
    assert bits_that_differ(kept, with_(kept, error_pct=4.0)) == (
        "the same bits, but error 4.00 % against error 5.00 %"
    )
    unlike = with_(kept, blocks_sha256={"0": "x", "1": "y"}, error_pct=None, loss=None)
    said = bits_that_differ(kept, unlike)
    assert "no loss against error 5.00 %, other bits in all blocks" in said


GIVEN = {
    "images_per_s": None, "peak_memory_bytes": 1, "device": "cpu", "depths": [], "epochs": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"result": None}, "small/pred/seed=1: result: no mapping"),
        ({"result": {}}, "small/pred/seed=1: result: peak_memory_bytes None"),
        ({"config": None}, "NoneType"),
        ({"result": {**GIVEN, "seconds": "x"}}, "small/pred/seed=1: result: seconds 'x'"),
        ({"result": {**GIVEN, "depths": [3]}}, "result: depths: one has no block or no error_pct"),
        ({"result": {**GIVEN, "blocks_sha256": [1]}}, "result: blocks_sha256 [1]"),
        ({"result": {**GIVEN, "blocks_sha256": {"0": 1}}}, "blocks_sha256: a digest is no text"),
        ({"config": {"data": "x"}}, "small/pred/seed=1: config: a section is no mapping"),
        ({"starts": []}, "small/pred/seed=1: starts: not as a command records who made it"),
        ({"starts": [{}]}, "small/pred/seed=1: starts: not as a command records who made it"),
        ({"path": "small/pred/seed=01"}, "a row of small/pred/seed=01"),
        ({"path": "small/pred/seed=1/x"}, "a row of small/pred/seed=1/x"),
        ({"path": "small/sim/seed=1"}, "a row of small/sim/seed=1"),
        ({"path": 3}, "TypeError"),
    ],
)
def test_a_damaged_row_is_told_before_anything_is_done_with_it(
    changed: dict[str, Any], said: str, request_: Request
) -> None:
    Rows(request_.out).add(row_of(request_, task_of(request_, "pred", "train")))
    (file,) = request_.out.rglob("pred.jsonl")
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))
    with pytest.raises(ConfigError) as caught:
        Rows(request_.out)
    told = str(caught.value)
    assert told.startswith(f"{file}: can't be read: ")
    assert said in told
    assert told.endswith("; repair it, or move it away: its rows are then trained again")


def test_names_that_are_none_are_told(request_: Request) -> None:
    with pytest.raises(ConfigError, match=r"--rules 'prd': there are .*; did you mean pred"):
        request_.table.named_rules("prd")


def test_one_seed_of_all_comes_before_a_second_seed_of_any(request_: Request) -> None:
    tasks = tasks_of(request_)
    names = [f"{task.rule.name} {task.name}" for task in tasks]
    assert len(set(names)) == len(names)
    assert [task.kind for task in tasks[:4]] == ["speed"] * 4
    trained = [(task.seed, task.rule.name) for task in tasks if task.kind == "train"]
    rules = ["backprop", "saving", "pred", "own"]
    assert trained == [(seed, rule) for seed in (1, 2) for rule in rules]
    for rule in ("pred", "own"):
        before = names[: names.index(f"{rule} seed=1")]
        assert f"{rule} locality" in before
    assert not {"backprop locality", "saving locality"} & set(names)
    searches = [name for name in names if "search" in name]
    assert searches == [
        "backprop search-optimizer.lr=0.001", "backprop search-optimizer.lr=0.003",
        "pred search-optimizer.lr=0.001", "pred search-optimizer.lr=0.003",
        "own search-loss.options.lr=0.1",
    ]  # fmt: skip


def test_a_search_never_sees_the_test_set_and_a_run_that_counts_no_validation(
    request_: Request,
) -> None:
    search = config_of(task_of(request_, "pred", "search", value=3e-3), request_)
    assert (search.data.validation, search.optimizer.lr, search.schedule.epochs) == (0.1, 3e-3, 2)
    train = config_of(task_of(request_, "pred", "train", seed=7), request_, 3e-3)
    assert (train.data.validation, train.optimizer.lr, train.runtime.seed) == (None, 3e-3, 7)
    assert train.schedule.epochs == 3
    assert train.runtime.eval_depths
    own = config_of(task_of(request_, "own", "train"), request_, 0.1)
    assert own.model.factory is not None
    assert own.loss.options == {"lr": 0.1}


def test_rules_and_backprop_differ_in_nothing_but_how_they_learn(request_: Request) -> None:
    one, other = (
        config_tree(config_of(task_of(request_, rule, "train"), request_))
        for rule in ("backprop", "pred")
    )
    assert {key for key in one if one[key] != other[key]} == {"loss"}


def test_what_is_set_holds_for_all_but_what_a_task_is(request_: Request) -> None:
    asked = replace(
        request_,
        overrides=("schedule.epochs=1", "runtime.seed=9", "data.train_limit=100"),
        data="d",
    )
    config = config_of(task_of(asked, "pred", "train", seed=2), asked)
    assert (config.schedule.epochs, config.runtime.seed, config.data.root) == (1, 2, "d")
    bad = replace(request_, overrides=("schedule.epochs=0",))
    with pytest.raises(ConfigError, match=r"--set schedule.epochs=0"):
        config_of(task_of(bad, "pred", "train"), bad)


def test_the_best_value_is_known_once_all_have_been_tried(request_: Request) -> None:
    rows = Rows(request_.out)
    network, pred = request_.networks[0], request_.table.rules["pred"]
    low, high = (task_of(request_, "pred", "search", value=value) for value in pred.values)
    rows.add(row_of(request_, low, 4.0))
    assert best_value(network, pred, request_, rows) is None
    rows.add(row_of(request_, high, 4.0))
    assert best_value(network, pred, request_, rows) == pred.values[0]  # the first of several
    rows.add(row_of(request_, high, 3.0))
    assert best_value(network, pred, request_, rows) == pred.values[1]
    rows.add(replace(row_of(request_, high), result={}, failed="not finite"))
    assert best_value(network, pred, request_, rows) == pred.values[0]


def test_rows_are_read_as_they_were_written_and_damage_is_named(request_: Request) -> None:
    rows = with_rows(request_)
    again = Rows(request_.out)
    assert [row.tree() for row in again.all()] == sorted(
        (row.tree() for row in rows.all()), key=lambda tree: list(again._rows).index(tree["path"])
    )
    file = rows.folder / "small" / "pred.jsonl"
    text = file.read_text()
    for damaged in (text[:-9], text.replace("small/pred", "small/own"), "[]\n", "{}\n"):
        file.write_text(damaged)
        with pytest.raises(ConfigError, match=r"pred.jsonl: can't be read: .*move it away"):
            Rows(request_.out)


def test_rows_of_other_settings_are_refused(request_: Request) -> None:
    rows = with_rows(request_)
    check_rows(request_, rows)
    asked = replace(request_, overrides=("data.batch_size=32",))
    with pytest.raises(ConfigError, match=r"is there with data.batch_size 128, but 32 is asked"):
        check_rows(asked, rows)


def test_one_is_measured_alone_and_what_it_needs_comes_first(request_: Request) -> None:
    rows = Rows(request_.out)
    told: list[str] = []
    referee = Referee(request_, rows, told.append)
    first, words = referee.next_one(False) or pytest.fail("there is work")
    assert first.kind == "speed"
    assert words[:2] == ["pipeline-launch", "launch.cli"]
    assert referee.next_one(True) is None
    rows.add(row_of(request_, first))  # in place of its run
    referee._begun.clear()
    for name in ("saving", "pred", "own"):
        task, _ = referee.next_one(False) or pytest.fail("there is work")
        assert (task.rule.name, task.kind) == (name, "speed")
        referee._begun.clear()
    begun = []
    while found := referee.next_one(bool(begun)):
        begun.append(found[0])
    assert {task.kind for task in begun} == {"search", "locality"}  # nothing can be trained yet
    for task in begun:
        failed = Ended(task, 1, "", "the loss of block 0 is not finite", 1.0)
        referee.ended(failed)
    assert "no result: the loss of block 0 is not finite" in told[0]
    assert referee.next_one(False) is None
    assert set(referee.missing.values()) >= {
        "failed with every value of optimizer.lr", "failed with every value of loss.options.lr"
    }  # fmt: skip
    assert referee.status == 1


def test_what_was_killed_has_failed_and_what_was_asked_to_end_has_not(request_: Request) -> None:
    for status, expected in ((-9, FAILED), (-15, DONE), (INTERRUPTED, DONE)):
        referee = Referee(request_, Rows(request_.out), lambda line: None)
        task, _ = referee.next_one(False) or pytest.fail("there is work")
        referee.ended(Ended(task, status, "", "ended by a signal", 1.0))
        assert referee.status == expected


def test_nothing_is_begun_that_the_budget_does_not_hold(request_: Request) -> None:
    rows = with_rows(request_, seeds=(1,))
    referee = Referee(replace(request_, hours=1e-3), rows, print)  # 3.6 s, each takes 10
    assert referee.next_one(False) is None
    assert len(referee.missing) == 4
    assert set(referee.missing.values()) == {"not begun: beyond the budget of 0.001 h"}
    assert referee.status == 0
    referee.write()
    page = (request_.out / "REFEREE.md").read_text()
    assert "- pred, seed=2: not begun: beyond the budget of 0.001 h" in page


def test_the_page_has_means_deviations_depths_and_what_is_missing(request_: Request) -> None:
    rows = with_rows(request_, seeds=(1, 2))
    page = page_text(request_, rows, {task_of(request_, "pred", "train", seed=3): "failed: why"})
    (pred,) = (line for line in page.splitlines() if "[Pred]" in line)
    assert [cell.strip() for cell in pred.split("|")[2:8]] == [
        "3.50 ± 0.71", "2", "4.50", "1,000 A", "256 MiB", "proven"
    ]  # fmt: skip
    (backprop,) = (line for line in page.splitlines() if "[Backprop]" in line)
    assert "| no: backprop | optimizer.lr 0.003 ² | A |" in backprop
    assert "\n² The largest or the smallest value that was tried" in page
    assert "[Own](results/referee/small/own.jsonl) ¹" in page
    assert "- pred, seed=3: failed: why" in page
    assert "- A: commit abc1234, torch 2, A processor, 2 cores" in page
    assert "## Other" not in page


@pytest.mark.parametrize("values", [(1e-3, 3e-3, 1e-2), ("linear", ["mlp", 2], None)])
def test_numbers_within_the_search_and_words_are_not_at_an_end(
    request_: Request, values: tuple[Any, ...]
) -> None:
    pred = replace(request_.table.rules["pred"], values=values)
    table = replace(request_.table, rules={**request_.table.rules, "pred": pred})
    page = page_text(replace(request_, table=table), with_rows(request_, seeds=(1,)), {})
    (pred_line,) = (line for line in page.splitlines() if "[Pred]" in line)
    assert "| optimizer.lr 0.003 | A |" in pred_line


def test_several_searches_that_are_missing_are_counted(request_: Request) -> None:
    rule = request_.table.rules["pred"]
    network = request_.table.networks["small"]
    searches = [Task(network, rule, "search", value) for value in rule.values]
    lines = page_text(request_, Rows(request_.out), dict.fromkeys(searches, "not begun"))
    assert "- pred, 2 searches: not begun\n" in lines
    lines = page_text(request_, Rows(request_.out), {searches[0]: "not begun"})
    assert "- pred, search-optimizer.lr=0.001: not begun\n" in lines


def test_what_an_earlier_command_left_is_not_forgotten(request_: Request) -> None:
    rows = with_rows(request_, seeds=(1,))
    pred, backprop = (request_.table.rules[name] for name in ("pred", "backprop"))
    rows.add(row_of(request_, task_of(request_, "pred", "train", seed=2)))
    rows.add(row_of(request_, Task(request_.table.networks["other"], pred, "speed")))
    # what is set is no key of the other network
    asked = replace(request_, rules=[backprop], overrides=("model.hidden=8",))
    Referee(asked, rows, print).write()
    page = (request_.out / "REFEREE.md").read_text()
    small, other = page.split("## Other")
    assert "- backprop, seed=2: not begun\n" in small
    assert "- saving, seed=2: not asked for\n" in small
    assert "- own, seed=2: not asked for\n" in small
    assert "- pred" not in small
    assert "- pred, 2 searches, locality, seed=1, seed=2: not asked for\n" in other
    assert "- backprop" not in other  # of which nothing is there


def test_a_rule_with_fewer_seeds_than_others_says_so(request_: Request) -> None:
    rows = with_rows(request_, seeds=(1,))
    rows.add(row_of(request_, task_of(request_, "pred", "train", seed=2)))
    page = page_text(request_, rows, {})
    (own,) = (line for line in page.splitlines() if "[Own]" in line)
    assert "| 1 of 2 |" in own


def test_time_is_expected_by_what_was_measured(request_: Request) -> None:
    rows = Rows(request_.out)
    expected = Expectation(request_, rows)
    trial = task_of(request_, "pred", "train", seed=1)
    guessed = expected.seconds(trial)
    assert guessed > 8
    rows.add(row_of(request_, task_of(request_, "pred", "speed"), images_per_s=10.0))
    by_speed = expected.seconds(trial)
    assert by_speed == pytest.approx(8 + (3 * 1437 + 360 / 3) / 10)
    rows.add(row_of(request_, task_of(request_, "pred", "train", seed=2), wall_s=77.0))
    assert expected.seconds(trial) == 77


def test_rows_are_lines_of_json_without_names_of_hosts(request_: Request) -> None:
    rows = with_rows(request_)
    for file in rows.folder.glob("*/*.jsonl"):
        for line in file.read_text().splitlines():
            assert "host" not in json.loads(line)["starts"][0]
