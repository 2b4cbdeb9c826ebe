"""What the views show: fed with events, read back as text."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pytest
from rich.console import Console

from launch.display.format import count_text, lr_text, markdown, number_text, size_text
from launch.display.live_view import LiveView
from launch.display.plain_view import PlainView
from launch.display.view import can_redraw, open_view, reading_shown
from pipeline.run.events import (
    CheckpointWritten,
    EpochDone,
    Event,
    Note,
    Progress,
    RunStarted,
    StageProgress,
    Waiting,
    ignore,
)
from pipeline.schedule.reports import Tally

if TYPE_CHECKING:
    from collections.abc import Sequence


class Clock:
    """A clock that moves only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def a_console(width: int = 80, height: int = 24, terminal: bool = True) -> Console:
    return Console(
        file=StringIO(), width=width, height=height, force_terminal=terminal, color_system=None
    )


def written(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def shown(view: LiveView, width: int = 80, height: int = 24) -> list[str]:
    console = a_console(width, height, terminal=False)
    console.print(view)
    return written(console).splitlines()


def a_start(stages: Sequence[Sequence[str]], step: int = 0) -> RunStarted:
    block = count()
    placed = tuple(
        (f"cuda:{i % 4}", tuple((next(block), name) for name in names))
        for i, names in enumerate(stages)
    )
    return RunStarted("digits-mlp", Path("/srv/runs/digits-mlp-1"), placed, 10, 469, step)


def one_each(count: int) -> list[list[str]]:
    return [[f"conv {i}→{i + 1}"] for i in range(count)]


def a_stage(stage: int, *tallies: Tally, busy: float = 0.97) -> StageProgress:
    return StageProgress(stage, 940 + stage, "train", busy, 2, tallies)


def a_progress(*stages: StageProgress, step: int = 938) -> Progress:
    return Progress(3, step, 5e-4, 7812.4, stages)


def an_epoch(
    epoch: int = 3, test_error: float | None = 2.98, part: str = "test", **changed: Any
) -> EpochDone:
    metrics = {
        "event": "epoch",
        "epoch": epoch,
        "step": 469 * epoch,
        "lr": 5e-4,
        "train": {"loss": 0.123, "error_pct": 3.21},
        part: None if test_error is None else {"loss": 0.1, "error_pct": test_error},
        "blocks": [{"block": 0, "loss": 0.4321, "error_pct": None}],
        "images_per_s": 7812.4,
        "seconds": 12.34,
        "stages": [],
    }
    return EpochDone({**metrics, **changed})


def a_view(*events: Event, clock: Clock | None = None) -> LiveView:
    view = LiveView(a_console(), clock or Clock())
    for event in events:
        view(event)
    return view


class TestLive:
    def test_a_row_per_block_with_its_stage_in_the_first(self) -> None:
        tallies = (Tally(1, 100, 12.345, 7), Tally(2, 100, 50.0, None))
        progress = a_progress(a_stage(0, Tally(0, 10, 20.0, 9)), a_stage(1, *tallies, busy=0.5))
        view = a_view(a_start([["conv 3→8"], ["linear 8→4", "output 4→2"]]), progress)
        lines = [" ".join(line.split()) for line in shown(view, 90)]
        assert lines[0] == "digits-mlp /srv/runs/digits-mlp-1"
        assert lines[5:9] == [
            "stage device block loss error % busy queue batch activity",
            "0 cuda:0 conv 3→8 2.0000 90.00 ━━━━━╸ 97 % 2 940 train",
            "1 cuda:1 linear 8→4 0.1235 7.00 ━━━ 50 % 2 941 train",
            "output 4→2 0.5000 –",
        ]

    def test_replicas_show_the_scores_of_their_own_block(self) -> None:
        start = a_start([["conv"], ["output"]])
        one, last = start.stages
        blocks = [
            {"block": at, "loss": loss, "error_pct": 1.0} for at, loss in ((0, 0.5), (1, 0.25))
        ]
        view = a_view(replace(start, stages=(one, one, last)), an_epoch(blocks=blocks))
        lines = [line.split() for line in shown(view, 90)]
        named = [line for line in lines if "conv" in line or "output" in line]
        assert [line[3] for line in named] == ["0.5000", "0.5000", "0.2500"]

    @pytest.mark.parametrize(
        ("width", "left_out"),
        [
            (40, ["device", "queue", "batch", "activity", "receives"]),
            (60, ["queue", "batch", "receives"]),
            (80, []),
        ],
    )
    def test_a_narrow_terminal_gets_fewer_columns(self, width: int, left_out: list[str]) -> None:
        start = replace(a_start(one_each(3)), received_bytes=(197_632, 201_327_616, 512))
        lines = shown(a_view(start, a_progress(a_stage(0))), width)
        all_columns = "stage device block loss error % busy queue batch activity receives"
        shown_columns = [word for word in all_columns.split() if word not in left_out]
        assert lines[5].split() == shown_columns
        assert all(f"conv {i}→{i + 1}" in lines[6 + i] for i in range(3))
        sizes = ["193 KiB", "192 MiB", "512 B"]
        assert "receives" in left_out or [line[-9:].strip() for line in lines[6:9]] == sizes

    @pytest.mark.parametrize(
        ("width", "legend"),
        [
            (20, "busy: time at work"),
            (50, "loss, error: in this epoch   busy: time at work"),
            (80, "loss, error: in this epoch   busy: time at work   queue: batches waiting"),
            (
                120,
                "loss, error: in this epoch   busy: time at work   queue: batches waiting   "
                "batch: the last",
            ),
        ],
    )
    def test_a_line_says_what_columns_mean_that_are_shown(self, width: int, legend: str) -> None:
        assert shown(a_view(a_start(one_each(2))), width)[8] == legend

    def test_that_line_is_left_out_before_a_block_is(self) -> None:
        start = replace(a_start(one_each(15)), received_bytes=(512,) * 15)
        assert "busy:" not in "\n".join(shown(a_view(start), 160, 24))
        assert "receives: with a batch" in "\n".join(shown(a_view(start), 160, 25))

    def test_nothing_crosses_in_single_mode(self) -> None:
        assert "receives" not in "\n".join(shown(a_view(a_start(one_each(2)))))

    @pytest.mark.parametrize(("count", "rows"), [(15, 15), (16, 14), (100, 14)])
    def test_what_does_not_fit_is_counted(self, count: int, rows: int) -> None:
        lines = shown(a_view(a_start(one_each(count)), an_epoch()))
        assert len(lines) == 23
        assert sum("cuda:" in line for line in lines) == rows
        assert (f"and {count - rows} more blocks" in lines) is (rows < count)
        assert lines[-1].startswith("test error 2.98 %")

    @pytest.mark.parametrize(("width", "height"), [(20, 10), (40, 24), (80, 24), (120, 40)])
    @pytest.mark.parametrize("stages", [one_each(2), one_each(40), [["x" * 200] * 9], [[]], []])
    def test_never_wider_than_the_terminal(
        self, width: int, height: int, stages: list[list[str]]
    ) -> None:
        huge = Progress(10**9, 10**15, 1e-300, 1e300, (a_stage(0, Tally(0, 1, 1e300, 10**9)),))
        view = a_view(Waiting(("stage 3",) * 9, 1e9), a_start(stages), huge, an_epoch())
        assert all(len(line) <= width for line in shown(view, width, height))

    def test_progress_speed_and_time_left(self) -> None:
        clock = Clock()
        view = a_view(a_start(one_each(2), step=900), clock=clock)
        for step in (950, 1000):  # 50 steps took 9.5 s, 3690 are to come
            clock.now += 9.5
            view(a_progress(step=step))
        clock.now += 1.0
        lines = shown(view)
        assert lines[1].startswith("epoch  3 of 10 ━")
        assert lines[1].endswith(" 62/469")
        assert lines[2].endswith("1000/4690")
        assert lines[3] == "7812 images/s   left 0:11:42   elapsed 0:00:20   lr 5e-04"
        clock.now += 360_000.0
        assert "elapsed 4 days, 4:00:20" in shown(view)[3]

    def test_last_and_best_test(self) -> None:
        view = a_view(a_start(one_each(1)), an_epoch(1, 2.5), an_epoch(2, 3.5), an_epoch(3, None))
        assert shown(view)[-1] == "test error 3.50 % after epoch 2   best 2.50 % after epoch 1"

    def test_a_validation_share_is_no_test(self) -> None:
        epochs = [an_epoch(epoch, 3.0 - epoch, "validation") for epoch in (1, 2)]
        last = shown(a_view(a_start(one_each(1)), *epochs))[-1]
        assert last == "validation error 1.00 % after epoch 2   best 1.00 % after epoch 2"

    def test_an_epoch_brings_losses_and_never_goes_back(self) -> None:
        lines = shown(a_view(a_start(one_each(1)), a_progress(step=2000), an_epoch(3)))
        assert lines[2].endswith("2000/4690")
        assert "0.4321" in "\n".join(lines)

    def test_a_pass_without_images_keeps_the_last_loss(self) -> None:
        begun = a_progress(a_stage(0, Tally(0, 0, 0.0, 0)))
        view = a_view(a_start(one_each(1)), a_progress(a_stage(0, Tally(0, 2, 3.0, 1))), begun)
        assert "1.5000" in "\n".join(shown(view))

    def test_a_test_before_training(self) -> None:
        untrained = an_epoch(0, 90.1, train=None, lr=None, images_per_s=None, blocks=None)
        view = a_view(a_start(one_each(1)), untrained)
        assert "90.10 % after epoch 0" in shown(view)[-1]
        assert shown(view)[1].startswith("epoch  1 of 10")

    def test_waiting_until_there_is_progress(self) -> None:
        view = a_view(Waiting(("stage 3 on cuda:2",), 18.2))
        assert shown(view) == ["waiting for stage 3 on cuda:2 (18 s)"]
        view(a_start(one_each(1)))
        view(Waiting(("a", "b", "c", "d", "e"), 2.0))
        assert shown(view)[3] == "waiting for a, b, c and 2 more (2 s)"
        view(a_progress())
        assert "waiting for" not in "\n".join(shown(view))

    def test_zero_steps_and_numbers_that_are_none(self) -> None:
        empty = RunStarted("x", Path("r"), (("cpu", ((0, "b"),)),), 0, 0, 0)
        nan = Progress(0, 0, float("nan"), float("inf"), (a_stage(0, busy=float("nan")),))
        assert any("nan" in line for line in shown(a_view(empty, nan)))

    def test_brackets_are_not_markup(self) -> None:
        assert "[bold]" in "\n".join(shown(a_view(a_start([["[bold]"]]))))

    def pictures(self, *events: Event) -> tuple[str, str]:
        """All that is written, and the last picture of it."""
        console = a_console()
        with open_view("live", console, Clock()) as see:
            for event in (a_start(one_each(2)), *events):
                see(event)
        before, picture, last = written(console).rpartition("digits-mlp  ")
        return before, picture + last

    def test_the_last_picture_stays_below_notes(self) -> None:
        checkpoint = CheckpointWritten(Path("checkpoints/step-00000469"), 469)
        before, last = self.pictures(Note("no peer access [cuda:3]"), checkpoint, an_epoch())
        assert "no peer access [cuda:3]" in before
        assert "checkpoint step-00000469" in before
        assert "2.98 % after epoch 3" in last
        assert "checkpoint" not in last

    def test_the_last_picture_says_nothing_that_is_over(self) -> None:
        progress = a_progress(a_stage(0, Tally(0, 1, 1.25, 0)), a_stage(1))
        _, last = self.pictures(progress, Waiting(("the disk",), 2.0))
        assert "1.2500" in last
        assert not [word for word in ("97 %", "940", "train", "the disk") if word in last]


class TestPlain:
    def lines(self, *events: Event) -> list[str]:
        console = a_console(80, terminal=False)
        with open_view("plain", console, Clock()) as see:
            for event in events:
                see(event)
        return written(console).splitlines()

    def test_start_names_stages_and_devices(self) -> None:
        start, resumed = a_start(one_each(2)), a_start(one_each(1), step=9)
        plan = "2 stages on cuda:0 cuda:1  10 epochs of 469 steps"
        assert self.lines(start) == [f"digits-mlp  /srv/runs/digits-mlp-1  {plan}"]
        assert self.lines(resumed)[0].endswith("1 stage on cuda:0  10 epochs of 469 steps, "
                                               "going on after step 9")  # fmt: skip
        assert self.lines(replace(start, epochs=1))[0].endswith("cuda:1  1 epoch of 469 steps")

    def test_an_epoch_is_one_line_however_narrow_the_console(self) -> None:
        assert self.lines(a_start(one_each(1)), an_epoch())[1:] == [
            "epoch 3/10  step 1407  lr 5e-04  train loss 0.1230  train error 3.21 %  "
            "test error 2.98 %  7812 images/s  12.3 s"
        ]

    def test_a_validation_share_is_no_test(self) -> None:
        (line,) = self.lines(an_epoch(3, 2.98, "validation"))
        assert "  validation error 2.98 %  " in line
        assert "test" not in line

    def test_numbers_that_are_predicted_have_a_loss_and_no_error(self) -> None:
        (line,) = self.lines(an_epoch(3, None, test={"loss": 0.25, "error_pct": None}))
        assert "  test loss 0.2500  7812 images/s" in line

    def test_what_is_not_known_is_left_out(self) -> None:
        untrained = an_epoch(0, 90.1, train=None)
        sim = an_epoch(1, None, train={"loss": 0.5, "error_pct": None})
        start = "epoch 0  step 0  lr 5e-04  test error 90.10 %  "
        assert self.lines(untrained)[0].startswith(start)
        assert self.lines(sim)[0].startswith("epoch 1  step 469  lr 5e-04  train loss 0.5000  7812")

    def test_checkpoints_and_notes_are_lines(self) -> None:
        events = (CheckpointWritten(Path("a/step-00000469"), 469), Note("resumed [x]"))
        assert self.lines(*events) == ["checkpoint step-00000469", "resumed [x]"]

    def test_progress_is_said_every_ten_seconds(self) -> None:
        said: list[str] = []
        view = PlainView(said.append, clock := Clock())
        view(a_start(one_each(2)))
        for _ in range(25):
            clock.now += 1.0
            view(a_progress(a_stage(0), a_stage(1, busy=0.5)))
        line = "epoch 3/10  step 938/4690  lr 5e-04  7812 images/s  busy 97 50 %"
        assert said[1:] == [line, line]

    def test_waiting_is_said_every_ten_seconds(self) -> None:
        said: list[str] = []
        view = PlainView(said.append, clock := Clock())
        for second in range(19):
            view(Waiting(("stage 3 on cuda:2",), float(second)))
            clock.now += 1.0
        assert said == ["waiting for stage 3 on cuda:2 (10 s)"]


@pytest.mark.parametrize(("kind", "lines"), [("quiet", 0), ("plain", 2), ("live", None)])
def test_how_far_the_reading_of_a_data_set_is(kind: Any, lines: int | None) -> None:
    console, clock = a_console(terminal=kind == "live"), Clock()
    with reading_shown(kind, console, clock) as read:
        for done in range(0, 301, 64):
            read("looking at images", done, 300)
            clock.now += 6.0
    assert lines is None or written(console).count("\n") == lines
    assert ("looking at images" in written(console)) is (kind != "quiet")


class TestChoice:
    def test_quiet_says_nothing(self) -> None:
        console = a_console()
        with open_view("quiet", console) as see:
            assert see is ignore
        assert not written(console)

    def test_auto_is_live_on_a_terminal_only(self) -> None:
        terminal, file = a_console(terminal=True), a_console(terminal=False)
        assert can_redraw(terminal)
        assert not can_redraw(file)
        dumb = Console(file=StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
        assert not can_redraw(dumb)
        with open_view("auto", file) as see:
            assert isinstance(see, PlainView)
        with open_view("auto", terminal) as see:
            assert not isinstance(see, PlainView)

    @pytest.mark.parametrize("view", [LiveView(a_console()), PlainView(print)])
    def test_every_event_is_understood(self, view: LiveView | PlainView) -> None:
        assert set(view._handlers) == set(get_args(Event))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (count_text(1_331_000), "1.33 M"),
        (count_text(9), "9"),
        (size_text(201_326_592), "192 MiB"),
        (lr_text(5e-4), "5e-04"),
        (lr_text(1.25e-4), "1.25e-04"),
        (number_text(None, ".2f"), "–"),
        (number_text(123456.0, ".4f", 100), "1.235e+05"),
    ],
)
def test_numbers_as_people_read_them(text: str, expected: str) -> None:
    assert text == expected


def test_a_bar_in_a_cell_divides_no_column() -> None:
    rows = markdown(["name", "n"], [["a|b", "3"]], ["name"]).splitlines()
    assert rows == ["| name | n |", "| --- | ---: |", r"| a\|b | 3 |"]
