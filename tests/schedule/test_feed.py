"""The order of everything that travels: the drawings, and every place to stop and go on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pipeline.config.recipe import ScheduleConfig
from pipeline.config.sections import build_config
from pipeline.data.facts import data_facts
from pipeline.errors import CalledOffError
from pipeline.network.from_config import network_specs
from pipeline.schedule.best import BestSoFar
from pipeline.schedule.feed import Course, Feed, Position, course_of
from pipeline.schedule.items import (
    EndEpoch,
    EndEvaluation,
    EvaluationBatch,
    Snapshot,
    StartEvaluation,
    Stop,
    TrainBatch,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pipeline.schedule.items import Item

DRAWN = Course(epochs=2, steps_per_epoch=3, evaluation_batches=2, lr=1.0)


def drawing(items: Iterable[Item]) -> str:
    """As in feed.py's docstring, without its bars."""
    return " ".join(map(_sign, items))


def _sign(item: Item) -> str:
    match item:
        case TrainBatch():
            return f"t{item.batch_id}"
        case EvaluationBatch():
            return f"e{item.batch_id}"
        case StartEvaluation():
            return "("
        case EndEvaluation():
            return ")"
        case EndEpoch():
            return f"E{item.epoch}"
        case Snapshot():
            return f"S{item.step}"
        case Stop():
            return "Stop"


def feed(course: Course, start: Position | None = None) -> Feed:
    return Feed(course, start or Position())


def drawn(text: str) -> str:
    """A drawing as the docstring spaces it, as `drawing` does."""
    return " ".join(text.replace("(", "( ").replace(")", " )").replace("|", " ").split())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "t1 t2 t3 E1 (e1 e2) S3 | t4 t5 t6 E2 (e1 e2) S6 | Stop"),
        (
            {"checkpoint_every_steps": 2},
            "t1 t2 S2 t3 E1 (e1 e2) | t4 S4 t5 t6 E2 (e1 e2) S6 | Stop",
        ),
        (
            {"checkpoint_every_steps": 3},
            "t1 t2 t3 E1 (e1 e2) S3 | t4 t5 t6 E2 (e1 e2) S6 | Stop",
        ),
        # one is always written last
        ({"checkpoint_every_steps": 100}, "t1 t2 t3 E1 (e1 e2) | t4 t5 t6 E2 (e1 e2) S6 | Stop"),
        ({"checkpoint_every_steps": 4}, "t1 t2 t3 E1 (e1 e2) | t4 S4 t5 t6 E2 (e1 e2) S6 | Stop"),
        ({"eval_before_training": True, "epochs": 1}, "(e1 e2) | t1 t2 t3 E1 (e1 e2) S3 | Stop"),
        ({"eval_every_epochs": 0}, "t1 t2 t3 E1 S3 | t4 t5 t6 E2 S6 | Stop"),
        (
            {"eval_every_epochs": 0, "eval_before_training": True, "epochs": 1},
            "(e1 e2) | t1 t2 t3 E1 S3 | Stop",
        ),
        # the last epoch is always tested
        ({"eval_every_epochs": 5}, "t1 t2 t3 E1 S3 | t4 t5 t6 E2 (e1 e2) S6 | Stop"),
        (
            {"eval_every_epochs": 2, "epochs": 3, "steps_per_epoch": 1},
            "t1 E1 S1 | t2 E2 (e1 e2) S2 | t3 E3 (e1 e2) S3 | Stop",
        ),
        ({"last_step": 4}, "t1 t2 t3 E1 (e1 e2) S3 | t4 Stop"),
        ({"last_step": 99}, "t1 t2 t3 E1 (e1 e2) S3 | t4 t5 t6 E2 (e1 e2) S6 | Stop"),
    ],
)
def test_drawings(changes: dict[str, int], expected: str) -> None:
    assert drawing(feed(replace(DRAWN, **changes))) == drawn(expected)


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (Position(2, epoch_reported=False), "t3 E1 (e1 e2) S3 | t4 t5 t6 E2 (e1 e2) S6 | Stop"),
        (Position(3, epoch_reported=True), "t4 t5 t6 E2 (e1 e2) S6 | Stop"),
        (Position(3, epoch_reported=False), "E1 (e1 e2) S3 | t4 t5 t6 E2 (e1 e2) S6 | Stop"),
        (Position(6, epoch_reported=False), "E2 (e1 e2) S6 | Stop"),
        (Position(6, epoch_reported=True), "Stop"),
    ],
)
def test_drawings_of_resumed_runs(start: Position, expected: str) -> None:
    assert drawing(feed(DRAWN, start)) == drawn(expected)


def test_items_know_their_epoch() -> None:
    items = list(feed(replace(DRAWN, eval_before_training=True)))
    epochs = [(drawing([item]), item.epoch) for item in items if not isinstance(item, Stop)]
    first = [("(", 0), ("e1", 0), ("e2", 0), (")", 0), ("t1", 1), ("t2", 1), ("t3", 1)]
    assert epochs[:7] == first
    assert epochs[7:13] == [("E1", 1), ("(", 1), ("e1", 1), ("e2", 1), (")", 1), ("S3", 1)]
    assert epochs[13] == ("t4", 2)


def test_snapshots_say_whether_the_epoch_was_reported() -> None:
    course = replace(DRAWN, checkpoint_every_steps=1)
    snapshots = [item for item in feed(course) if isinstance(item, Snapshot)]
    assert [(s.step, s.epoch, s.epoch_reported) for s in snapshots] == [
        (1, 1, False),
        (2, 1, False),
        (3, 1, True),
        (4, 2, False),
        (5, 2, False),
        (6, 2, True),
    ]


# --- learning rate ------------------------------------------------------------------------


def test_milestones_take_effect_after_their_epoch_for_every_batch() -> None:
    course = Course(4, 3, 1, lr=0.8, milestones=(1, 3), factor=0.5)
    rates = [(item.epoch, item.lr) for item in feed(course) if isinstance(item, TrainBatch)]
    assert rates == [(1, 0.8)] * 3 + [(2, 0.4)] * 3 + [(3, 0.4)] * 3 + [(4, 0.2)] * 3


RATES = [
    ({"milestones": (2,), "factor": 0.5}, "100 100 | 100 100 |  50  50 |  50  50"),
    ({"decay": "cosine"}, "100  96 |  85  69 |  50  31 |  15   4"),
    ({"warmup_epochs": 1}, " 50 100 | 100 100 | 100 100 | 100 100"),
    ({"warmup_epochs": 1, "decay": "cosine"}, " 50 100 | 100  93 |  75  50 |  25   7"),
    ({"warmup_epochs": 2, "milestones": (1, 3), "factor": 0.5}, "25 50 38 50 | 50 50 25 25"),
    ({"decay": "cosine", "min_factor": 0.5}, "100 98 93 85 75 65 57 52"),
]


@pytest.mark.parametrize(("changes", "expected"), RATES, ids=str)
def test_drawings_of_learning_rates(changes: dict[str, Any], expected: str) -> None:
    course = Course(4, 2, 1, lr=0.2, **changes)
    rates = [item.lr for item in feed(course) if isinstance(item, TrainBatch)]
    assert [round(100 * rate / 0.2) for rate in rates] == [
        int(word) for word in expected.replace("|", " ").split()
    ]


@pytest.mark.parametrize("min_factor", [0.0, 0.1])
def test_a_cosine_is_torchs_in_every_step(min_factor: float) -> None:
    course = Course(3, 7, 1, lr=0.3, decay="cosine", min_factor=min_factor)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    torchs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 21, eta_min=0.3 * min_factor)
    for step in range(1, 22):
        assert course.learning_rate(step) == pytest.approx(torchs.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        torchs.step()


def test_each_phase_of_greedy_training_warms_up_and_decays_again() -> None:
    course = Course(2, 2, 1, 1.0, warmup_epochs=1, decay="cosine", learners=(0, 1))
    rates = [item.lr for item in feed(course) if isinstance(item, TrainBatch)]
    assert rates[:4] == rates[4:] == pytest.approx([0.5, 1.0, 1.0, 0.5])


def test_course_of_a_config() -> None:
    tree = {
        "model": {"name": "mlp"},
        "loss": {"name": "pred"},
        "data": {"name": "digits"},
        "optimizer": {"lr": 0.5},
        "schedule": {"epochs": 7, "milestones": [0.4, 0.7], "factor": 0.1, "warmup_epochs": 2},
        "runtime": {
            "eval_every_epochs": 2,
            "eval_before_training": True,
            "checkpoint_every_steps": 9,
        },
    }
    config = build_config(tree, "test")
    specs = network_specs(config, data_facts(config.data))
    expected = Course(
        *(7, 11, 4, 0.5, (3, 5), 0.1, 2),
        eval_before_training=True,
        checkpoint_every_steps=9,
        warmup_epochs=2,
    )
    assert course_of(config, specs, 11, 4) == expected
    cosine = ScheduleConfig(epochs=7, decay="cosine", min_factor=0.2, patience=3)
    course = course_of(config.model_copy(update={"schedule": cosine}), specs, 11, 4)
    assert (course.decay, course.min_factor, course.patience) == ("cosine", 0.2, 3)
    greedy = config.model_copy(update={"schedule": ScheduleConfig(epochs=7, greedy=True)})
    assert course_of(greedy, specs, 11, 4).learners == (0, 1)


def test_greedy_training_gives_each_block_all_epochs_in_turn() -> None:
    course = Course(2, 1, 1, 1.0, milestones=(1,), factor=0.5, learners=(1, 3))
    assert course.steps == course.all_epochs == 4
    items = list(Feed(course, Position()))
    trained = [item for item in items if isinstance(item, TrainBatch)]
    assert [(item.epoch, item.lr, item.learner) for item in trained] == [
        (1, 1.0, 1),
        (2, 0.5, 1),
        (3, 1.0, 3),
        (4, 0.5, 3),
    ]
    tested = [item for item in items if isinstance(item, EvaluationBatch)]
    assert [(item.epoch, item.learner) for item in tested] == [(1, 1), (2, 1), (3, 3), (4, 3)]


def test_a_test_before_training_shows_the_learning_rate_of_the_first_epoch() -> None:
    assert Course(3, 1, 1, 1.0, milestones=(1, 2)).learning_rate(0) == 1.0


def test_the_last_epoch_of_each_greedy_phase_is_tested() -> None:
    course = Course(3, 1, 1, 1.0, eval_every_epochs=2, learners=(0, 1))
    assert [epoch for epoch in range(1, 7) if course.evaluates(epoch)] == [2, 3, 4, 6]


@pytest.mark.parametrize(("step", "epoch"), [(0, 0), (1, 1), (3, 1), (4, 2), (6, 2)])
def test_epoch_of_a_step(step: int, epoch: int) -> None:
    assert DRAWN.epoch_of(step) == epoch


# --- interrupted anywhere -----------------------------------------------------------------

COURSES = [
    DRAWN,
    replace(DRAWN, eval_before_training=True, milestones=(1,)),
    replace(DRAWN, eval_every_epochs=0),
    replace(DRAWN, eval_every_epochs=2, epochs=3),
    replace(DRAWN, checkpoint_every_steps=2),
    replace(DRAWN, checkpoint_every_steps=1, evaluation_batches=1),
    replace(DRAWN, steps_per_epoch=1, eval_before_training=True),
    replace(DRAWN, epochs=1, learners=(0, 1)),
]


def interrupted_after(course: Course, start: Position, n: int) -> list[Item]:
    """The items of a run that is interrupted once `n` have been fed."""
    fed, items = feed(course, start), []
    if n == 0:
        fed.interrupt()
    for item in fed:
        items.append(item)
        if len(items) == n:
            fed.interrupt()
    return items


def position_of(snapshot: Item) -> Position:
    """Where a run resumes that kept `snapshot`."""
    assert isinstance(snapshot, Snapshot)
    return Position(snapshot.step, snapshot.epoch_reported)


def trained(items: Iterable[Item]) -> list[TrainBatch]:
    return [item for item in items if isinstance(item, TrainBatch)]


def epochs_tested(items: Iterable[Item]) -> list[int]:
    """Epochs whose test was completed."""
    return [item.epoch for item in items if isinstance(item, EndEvaluation)]


@pytest.mark.parametrize("course", COURSES, ids=range(len(COURSES)))
def test_interrupted_at_every_position_and_resumed(course: Course) -> None:
    undisturbed = list(feed(course))
    for n in range(len(undisturbed) - 1):  # the last item is the stop
        before = interrupted_after(course, Position(), n)
        assert before[:n] == undisturbed[:n]
        *_, snapshot, stop = before
        assert (len(before), stop) == (n + 2, Stop())
        done = trained(before)
        assert (position_of(snapshot).step) == (done[-1].batch_id if done else 0)
        after = list(feed(course, position_of(snapshot)))
        assert trained(before) + trained(after) == trained(undisturbed)
        # every test is there, the one that was cut short a second time
        assert sorted({*epochs_tested(before), *epochs_tested(after)}) == epochs_tested(undisturbed)
        assert [item for item in after if isinstance(item, EvaluationBatch | Stop)]


@pytest.mark.parametrize("course", COURSES, ids=range(len(COURSES)))
def test_interrupted_twice(course: Course) -> None:
    undisturbed = trained(feed(course))
    length = len(list(feed(course)))
    for n in range(length - 1):
        first = interrupted_after(course, Position(), n)
        start = position_of(first[-2])
        for m in range(len(list(feed(course, start))) - 1):
            second = interrupted_after(course, start, m)
            third = feed(course, position_of(second[-2]))
            assert trained(first) + trained(second) + trained(third) == undisturbed


@pytest.mark.parametrize("course", COURSES, ids=range(len(COURSES)))
def test_resumed_from_every_snapshot(course: Course) -> None:
    undisturbed = list(feed(course))
    for place, item in enumerate(undisturbed):
        if isinstance(item, Snapshot):
            assert list(feed(course, position_of(item))) == undisturbed[place + 1 :]


def test_interrupted_between_the_end_of_an_epoch_and_its_test() -> None:
    *_, snapshot, _ = interrupted_after(DRAWN, Position(), 4)  # t1 t2 t3 E1
    assert snapshot == Snapshot(3, 1, epoch_reported=False)
    *_, snapshot, _ = interrupted_after(replace(DRAWN, eval_every_epochs=0), Position(), 4)
    assert snapshot == Snapshot(3, 1, epoch_reported=True)
    *_, snapshot, _ = interrupted_after(DRAWN, Position(), 8)  # … ( e1 e2 )
    assert snapshot == Snapshot(3, 1, epoch_reported=True)


def test_interrupted_before_the_first_item() -> None:
    assert interrupted_after(DRAWN, Position(), 0) == [Snapshot(0, 0, True), Stop()]
    resumed = interrupted_after(DRAWN, Position(2, False), 0)
    assert resumed == [Snapshot(2, 1, False), Stop()]


def test_an_interruption_after_the_last_item_changes_nothing() -> None:
    length = len(list(feed(DRAWN)))
    assert interrupted_after(DRAWN, Position(), length) == list(feed(DRAWN))


# --- early ends ---------------------------------------------------------------------------


def fed(course: Course, errors: Sequence[float], start: Snapshot | None = None) -> list[Item]:
    """The items of a run whose test of epoch k gives the k-th of `errors`; from a snapshot, whose
    tests were heard of before."""
    position = position_of(start) if start else Position()
    known = start.epoch - (not start.epoch_reported) if start else 0
    best = BestSoFar()
    for epoch in range(1, known + 1):
        best = best.after(epoch, errors[epoch - 1])
    feed, items = Feed(course, position, best=best), []
    for item in feed:
        items.append(item)
        if isinstance(item, EndEvaluation) and item.epoch:
            feed.hear(feed.best.after(item.epoch, errors[item.epoch - 1]))
    assert feed.ended_early is (course.epoch_of(feed.position.step) < course.epochs)
    return items


WITH_PATIENCE = replace(DRAWN, epochs=9, patience=1)


@pytest.mark.parametrize(
    ("changes", "errors", "expected"),
    [
        ({}, [3, 3], "t1 t2 t3 E1 (e1 e2) S3 | t4 t5 t6 E2 (e1 e2) S6 | Stop"),
        # a checkpoint is written last
        (
            {"checkpoint_every_steps": 100},
            [3, 4],
            "t1 t2 t3 E1 (e1 e2) | t4 t5 t6 E2 (e1 e2) S6 | Stop",
        ),
        (
            {"checkpoint_every_steps": 2},
            [3, 4],
            "t1 t2 S2 t3 E1 (e1 e2) | t4 S4 t5 t6 E2 (e1 e2) S6 | Stop",
        ),
        (
            {"steps_per_epoch": 1, "patience": 2},
            [3, 3, 2, 2, 2],
            "t1 E1 (e1 e2) S1 t2 E2 (e1 e2) S2 t3 E3 (e1 e2) S3 t4 E4 (e1 e2) S4 "
            "t5 E5 (e1 e2) S5 Stop",
        ),
        # epochs count, tested or not
        (
            {"steps_per_epoch": 1, "patience": 3, "eval_every_epochs": 2},
            [0, 3, 0, 3, 0, 3],
            "t1 E1 S1 t2 E2 (e1 e2) S2 t3 E3 S3 t4 E4 (e1 e2) S4 t5 E5 S5 t6 E6 (e1 e2) S6 Stop",
        ),
        (
            {"steps_per_epoch": 1, "eval_before_training": True},
            [3, 3],
            "(e1 e2) t1 E1 (e1 e2) S1 t2 E2 (e1 e2) S2 Stop",
        ),
        ({"epochs": 2}, [3, 2], "t1 t2 t3 E1 (e1 e2) S3 | t4 t5 t6 E2 (e1 e2) S6 | Stop"),
        ({"epochs": 2}, [3, 3], "t1 t2 t3 E1 (e1 e2) S3 | t4 t5 t6 E2 (e1 e2) S6 | Stop"),
    ],
)
def test_drawings_of_runs_that_patience_ends(
    changes: dict[str, Any], errors: list[float], expected: str
) -> None:
    assert drawing(fed(replace(WITH_PATIENCE, **changes), errors)) == drawn(expected)


@pytest.mark.parametrize("every", [0, 1, 2])
def test_a_run_that_patience_ends_does_so_after_every_interruption(every: int) -> None:
    course = replace(WITH_PATIENCE, checkpoint_every_steps=every, patience=2)
    errors = [5, 4, 4, 6]
    undisturbed = fed(course, errors)
    assert len(trained(undisturbed)) == 12
    for n in range(1, len(undisturbed) - 1):
        feed = Feed(course, Position())
        before: list[Item] = []
        for item in feed:
            before.append(item)
            if len(before) == n:
                feed.interrupt()  # before the report of a test
            elif isinstance(item, EndEvaluation):
                feed.hear(feed.best.after(item.epoch, errors[item.epoch - 1]))
        *_, snapshot, _ = before
        assert isinstance(snapshot, Snapshot)
        assert not feed.ended_early
        after = fed(course, errors, snapshot)
        assert trained(before) + trained(after) == trained(undisturbed)


def test_a_run_that_was_ended_goes_on_with_more_patience_only() -> None:
    best = BestSoFar(1, 3.0, 2)
    assert drawing(Feed(WITH_PATIENCE, Position(6), best=best)) == "Stop"
    goes_on = Feed(replace(WITH_PATIENCE, patience=2), Position(6), best=best)
    assert isinstance(next(iter(goes_on)), TrainBatch)


def test_whoever_feeds_waits_for_the_report_of_a_test() -> None:
    feed, looked = Feed(WITH_PATIENCE, Position()), list[int]()

    def look() -> None:
        looked.append(len(looked))
        if len(looked) == 3:
            feed.hear(BestSoFar(1, 3.0, 1))

    feed.wait_for_report(EndEvaluation(1), look)
    assert looked == [0, 1, 2]
    for item in (EndEvaluation(1), EndEvaluation(0), EndEpoch(2), Snapshot(6, 2, True)):
        feed.wait_for_report(item, look)
    Feed(DRAWN, Position()).wait_for_report(EndEvaluation(1), look)  # nothing depends on it
    assert looked == [0, 1, 2]


@pytest.mark.parametrize(("tests", "last"), [(1, EndEvaluation(1)), (0, EndEpoch(1))])
def test_a_judge_is_waited_for_after_each_epoch_and_may_end_the_run(tests: int, last: Item) -> None:
    feed = Feed(replace(DRAWN, eval_every_epochs=tests), Position(), is_judged=True)
    fed: list[Item] = []
    looked: list[int] = []

    def judge() -> None:
        looked.append(len(fed))
        feed.hear(BestSoFar(), judged=1, ended=True)

    for item in feed:
        fed.append(item)
        feed.wait_for_report(item, judge)
    assert looked == [fed.index(last) + 1]
    assert fed[looked[0] :] == [Snapshot(DRAWN.steps_per_epoch, 1, True), Stop()]
    assert feed.ended_early


def test_no_report_is_waited_for_after_an_interruption_or_where_none_will_come() -> None:
    feed = Feed(WITH_PATIENCE, Position())

    def called_off() -> None:
        raise CalledOffError("the feed is called off")

    with pytest.raises(CalledOffError):
        feed.wait_for_report(EndEvaluation(1), called_off)
    feed.wait_for_report(EndEvaluation(1), feed.interrupt)
    assert feed.interrupted


def test_to_go_on_without_the_report_of_a_test_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="its report comes first"):
        list(Feed(WITH_PATIENCE, Position()))
