"""pipeline-report: the numbers are those of the run, the page needs nothing else, and what can't
be shown is said."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner
from support.heavy_run import heavy_run

import pipeline
from launch.report import curves, report, room
from launch.report.command import main
from launch.report.page import html
from launch.report.pieces import Section
from launch.report.report import page

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.api.fitted import FittedRun

pytestmark = [pytest.mark.usefixtures("torch_settings"), pytest.mark.xdist_group("report")]
SMALL: dict[str, Any] = {"epochs": 1, "batch_size": 32, "gpus": "cpu", "quiet": True}
MLP = {"model.hidden_layers": 2, "model.hidden": 8}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PARTS = (
    "curves", "depth", "similarity", "filters", "confusion", "speed", "timeline", "memory", "plan",
    "settings",
)  # fmt: skip


class Page(HTMLParser):
    """A page, read strictly: every element that is opened is closed again."""

    VOID = ("meta", "link", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.leads: list[str] = []
        self.images = 0
        self.words = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        assert tag != "script"
        given = dict(attributes)
        self.ids += [given["id"]] if "id" in given else []
        self.leads += [given[key] for key in ("src", "href", "xlink:href") if given.get(key)]
        self.images += tag == "img"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: Any) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += data

    @property
    def said(self) -> str:
        return " ".join(self.words.split())


def ask(*arguments: Any) -> tuple[int, str]:
    """Exit status and all output."""
    done = CliRunner().invoke(main, list(map(str, arguments)))
    return done.exit_code, done.output


def text_about(tmp_path: Path, *arguments: Any) -> str:
    out = tmp_path / "out.html"
    status, said = ask(*arguments, "--out", out, "--overwrite")
    assert status == 0, said
    return out.read_text(encoding="utf-8")


def section(text: str, name: str) -> str:
    found = re.search(rf'<section id="{name}">.*?</section>', text, re.DOTALL)
    assert found
    return Page(found[0]).said


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> FittedRun:
    options = {"model.layers": [4, "M", 6], "model.hidden_layers": 1, "model.hidden": 16}
    return pipeline.fit(
        "vgg", "digits", **{**SMALL, "epochs": 2}, options=options, stages=None,
        run_dir=tmp_path_factory.mktemp("runs") / "<i>first & $x_1$",
    )  # fmt: skip


@pytest.fixture(scope="module")
def text(run: FittedRun, tmp_path_factory: pytest.TempPathFactory) -> str:
    return text_about(tmp_path_factory.mktemp("page"), run.path)


def test_it_shows_the_numbers_of_the_run(run: FittedRun, text: str) -> None:
    page, last = Page(text), run.history[-1]
    assert f"{last['test']['error_pct']:.2f} %" in page.said
    for block in last["blocks"]:
        assert f"{block['error_pct']:.2f}" in section(text, "curves")
    own = (
        f"360 examples the last block, 3 output 16→10, gets {last['test']['error_pct']:.2f} % wrong"
    )
    assert own in section(text, "depth")
    assert "0 conv 1→4" in section(text, "depth")
    for stage in last["stages"]:
        assert stage["device"] in section(text, "speed")
    assert "hidden_layers: 1" in section(text, "settings")
    assert "within" in section(text, "similarity")
    assert "all 4, 3×3" in section(text, "filters")


def test_it_needs_nothing_but_itself(text: str) -> None:
    page = Page(text)
    assert all(lead.startswith(("data:", "#")) for lead in page.leads)
    assert {lead[1:] for lead in page.leads if lead.startswith("#")} <= set(page.ids)
    assert len(set(page.ids)) == len(page.ids)
    assert set(PARTS) <= set(page.ids)
    assert set(re.findall(r"https?://[^\"]*", text)) <= {
        "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink",
    }  # fmt: skip
    assert "url(http" not in text
    assert "@import" not in text
    assert len(text.encode()) < 1_000_000
    assert page.images >= 2 + 4 + 3 + 1  # S(y), S(x), of blocks, of maps, filters


def test_pictures_have_colours_for_light_and_dark(text: str) -> None:
    used = set(re.findall(r"var\(--([\w-]+)\)", text))
    light, dark = text.split("@media (prefers-color-scheme: dark)")[:2]
    dark = dark.partition("body {")[0]
    assert used - {"of", "width", "share"} <= set(re.findall(r"--([\w-]+):", light))
    assert set(re.findall(r"--([\w-]+):", light)) == set(re.findall(r"--([\w-]+):", dark))
    assert not re.search(r"#000[12][0-9a-f]{2}\b", text)


def test_names_are_text(run: FittedRun, tmp_path: Path) -> None:
    draws = np.random.default_rng(1)
    y = np.arange(90) % 3
    x = draws.normal(size=(90, 5)).astype(np.float32) + y[:, None]
    classes = ["<script>alert(1)</script>", "$x_1$ & \"'", "日本"]
    np.savez(tmp_path / "own.npz", X=x, y=y, classes=classes)
    own = pipeline.fit(
        "mlp", tmp_path / "own.npz", **SMALL, validation=0.3, options=MLP,
        run_dir=tmp_path / "<b>run",
    )  # fmt: skip
    text = text_about(tmp_path, own.path, run.path)
    page = Page(text)
    assert "<b>run" in page.said
    assert "<i>first & $x_1$" in page.said
    assert "<script>alert(" in section(text, "confusion")
    assert "no images" in section(text, "filters")
    assert "2 runs" in page.said
    assert "validation" not in section(text, "results")


def lines_of(path: Path) -> list[dict[str, Any]]:
    lines = (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def copied(run: FittedRun, to: Path) -> Path:
    return shutil.copytree(run.path, to / "copy")


def test_it_reads_what_later_and_earlier_versions_write(run: FittedRun, tmp_path: Path) -> None:
    path = copied(run, tmp_path)
    lines = lines_of(path)
    for line in lines:
        line["test"]["depths"] = [{"block": 0, "error_pct": 41.5}]
        for block in line["blocks"]:
            block.update(name="a name", cross_entropy=0.3, similarity=None)
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"ev')
    text = text_about(tmp_path, path)
    assert "Cross-entropy of each block" in section(text, "curves")
    assert "Error of each block in tests, %" in section(text, "curves")
    assert "in the end: 0 conv 1→4 41.5" in text
    assert "Similarity loss of each block" not in text
    for name in ("metrics.jsonl", "plan.json", "data.json", "config.yaml"):
        (path / name).write_text("{]")
    text = text_about(tmp_path, path)
    assert "No epoch has come to its end" in section(text, "curves")
    assert "has kept no plan" in section(text, "plan")
    assert "wrong" in section(text, "depth")


def of_numbers(tmp_path: Path) -> FittedRun:
    x = np.random.default_rng(1).normal(size=(60, 4)).astype(np.float32)
    np.savez(tmp_path / "own.npz", x_train=x, y_train=x[:, :1], x_test=x, y_test=x[:, :1])
    given = {**SMALL, "options": MLP, "run_dir": tmp_path / "run"}
    return pipeline.fit("mlp", tmp_path / "own.npz", loss="glob", **given)


def of_objects(tmp_path: Path) -> FittedRun:
    from torch import nn

    x, y = np.random.default_rng(1).normal(size=(60, 4)).astype(np.float32), np.arange(60) % 2
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    return pipeline.fit(network, (x, y), **SMALL, run_dir=tmp_path / "run")


@pytest.mark.parametrize(
    ("loss", "options", "says"),
    [
        ("sim", {}, {"curves": "Loss of each block", "depth": "2 output 8→10"}),
        ("pred", {}, {"similarity": "No block of this run has a similarity loss"}),
        (
            {"rule": "ForwardForward"},
            {},
            {"curves": "No block has an error in training", "similarity": "copies of each example"},
        ),
        ("predsim", {"schedule.greedy": True}, {"curves": "Training error of each block"}),
    ],
)
def test_what_a_loss_does_not_have_is_said(
    loss: Any, options: dict[str, Any], says: dict[str, str], tmp_path: Path
) -> None:
    given = {**SMALL, "options": {**MLP, **options}}
    run = pipeline.fit("mlp", "digits", loss=loss, **given, run_dir=tmp_path / "run")
    text = text_about(tmp_path, run.path)
    for name, words in {**says, "timeline": "This run has no trace.json"}.items():
        assert words in section(text, name)


def test_numbers_have_a_loss_alone(tmp_path: Path) -> None:
    text = text_about(tmp_path, of_numbers(tmp_path).path)
    assert "Network: loss" in section(text, "curves")
    assert "No block answers by itself" in section(text, "depth")
    for name in ("similarity", "confusion"):
        assert "argets are numbers here" in section(text, name)
    assert "One process trained all stages" in section(text, "speed")


def test_objects_leave_what_the_files_say(tmp_path: Path) -> None:
    text = text_about(tmp_path, of_objects(tmp_path).path)
    assert "Training error of each block" in section(text, "curves")
    for name in ("depth", "similarity", "filters", "confusion"):
        assert "is a Python object, which no command has" in section(text, name)


def test_checkpoints_that_are_gone_leave_what_the_files_say(run: FittedRun, tmp_path: Path) -> None:
    path = copied(run, tmp_path)
    shutil.rmtree(path / "checkpoints")
    text = text_about(tmp_path, path)
    assert "What its files say, up to step" in text
    assert "Training error of each block" in section(text, "curves")
    assert "The network can't be read here" in section(text, "depth")
    assert "none: there is no complete one" in section(text, "settings")
    status, said = ask(path, "--checkpoint", "best")
    assert status == 2
    assert "this run has no folder checkpoints, and so no network: bring it back, or" in said
    (path / "config.yaml").write_text(":::{")
    assert "unknown, since its config can not be read, on the data digits" in text_about(
        tmp_path, path
    )
    (path / "metrics.jsonl").unlink()
    assert "this run has no folder checkpoints" in ask(path)[1]


def test_data_that_are_gone_leave_the_rest(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", X=np.eye(60, 4, dtype=np.float32), y=np.arange(60) % 2)
    own = pipeline.fit(
        "mlp", tmp_path / "own.npz", **SMALL, validation=0.3, options=MLP, run_dir=tmp_path / "run"
    )
    (tmp_path / "own.npz").rename(tmp_path / "other.npz")
    text = text_about(tmp_path, own.path)
    assert "The run's examples can't be had here: data.file" in section(text, "confusion")
    assert "Training error of each block" in section(text, "curves")
    text = text_about(tmp_path, own.path, "--data", tmp_path / "other.npz", "--examples", "11")
    assert "Of 11 examples the last block" in section(text, "depth")


def test_it_stays_below_3_megabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """60 blocks and stages, 300 epochs, with the most and the least room of one of ten."""
    first, *_, last = room.rooms(10)
    monkeypatch.setattr(report, "rooms", lambda runs: [first, last])
    monkeypatch.setattr(report, "MOST_BYTES", room.MOST_BYTES // 10)
    shown: list[tuple[str, int, int]] = []
    one_of_ten = page([heavy_run()], 0.9, lambda *told: shown.append(told))
    sections = one_of_ten.count("<section")
    assert shown[sections - 1 :: sections] == [
        ("drawing", sections, sections),
        ("drawing smaller pictures", sections, sections),
    ]
    assert len(one_of_ten.encode()) <= room.MOST_BYTES // 10
    assert "So that this page stays below 3 MB, pictures of a run show at most" in one_of_ten
    for name, words in (
        ("curves", "Of 60 blocks 4 are drawn."),
        ("depth", "Of 60 blocks 6 are shown."),
        ("similarity", "Of 60 blocks 59 before the last are left out."),
        ("speed", "Of 60 stages 6 are shown."),
        ("timeline", "Of 60 rows 6 are shown."),
        ("plan", "Of 60 stages 6 are shown."),
    ):
        assert words in section(one_of_ten, name)


def test_each_of_ten_runs_is_named_beside_its_curve() -> None:
    runs = [heavy_run(k, blocks=2, epochs=3) for k in range(room.MOST_RUNS)]
    card = curves._together(runs, next(room.rooms(len(runs))).points)
    together = Section("curves", "", "", "", [card])  # without one of each, and all else of a page
    text = section(html("ten", [], [], [together], several=True, program="it"), "curves")
    all_of_them = "".join(f"run {k}" for k in range(room.MOST_RUNS))
    assert text.count(all_of_them) == 2, "of training and of tests"


def test_a_page_that_is_too_large_all_the_same_is_not_written(
    run: FittedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "rooms", lambda runs: list(room.rooms(runs))[-2:])
    monkeypatch.setattr(report, "MOST_BYTES", 10_000)
    status, said = ask(run.path, "--out", tmp_path / "out.html")
    assert status == 2
    assert "a page about 1 run takes 0." in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--checkpoint", "7"], "--checkpoint 7: there are checkpoints of steps"),
        (["--data", "nowhere"], "--data nowhere: there is no such file or folder"),
        (["--data", "text.npz"], "--data text.npz: is damaged or no .npz file"),
        (["--out", "there.html"], "--out there.html: is there already: name another, or give"),
        (["--out", "no/there.html"], "--out no/there.html: there is no folder no: make it"),
        (["--out", "."], "--out .: is a folder: name a file in it"),
        (["empty"], "RUN empty: holds no run: name the folder of a run"),
        (["nothing"], "RUN nothing: there is no such folder"),
        (["empty"] * 10, "RUN…: 11 runs; a page shows 10 at most"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    run: FittedRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.html").write_text("mine")
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "empty").mkdir()
    status, said = ask(run.path, *options)
    assert (status, said.count("\n")) == (2, 1)
    assert said.startswith(f"error: {says}")
    assert [path.name for path in tmp_path.glob("*.html")] == ["there.html"]
    assert (tmp_path / "there.html").read_text() == "mine"


def test_without_matplotlib_it_says_what_to_install(
    run: FittedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.report.report.can_draw", lambda: False)
    status, said = ask(run.path, "--out", tmp_path / "out.html")
    assert (status, said.count("\n")) == (2, 1)
    assert "pip install 'local-loss-pipeline[figures]'" in said


_ASKED = """<script>
addEventListener('load', () => {
  const images = [...document.images], drawings = [...document.querySelectorAll('.drawing svg')];
  const frame = document.documentElement;
  const found = {
    missing: images.filter(image => !image.naturalWidth).length,
    images: images.length,
    flat: drawings.filter(svg => svg.getBoundingClientRect().height < 40).length,
    drawings: drawings.length,
    beyond: frame.scrollWidth - frame.clientWidth,
    width: frame.clientWidth,
    colour: getComputedStyle(document.querySelector('.drawing svg text')).fill,
  };
  document.body.innerHTML = '<pre>FOUND' + JSON.stringify(found) + 'END</pre>';
});
</script>"""
"""Put behind a page: what a browser has made of it."""


@pytest.mark.processes
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: the page is not opened in a browser")
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (500, True)])
def test_a_browser_shows_all_of_it(text: str, tmp_path: Path, width: int, dark: bool) -> None:
    (tmp_path / "page.html").write_text(text + _ASKED, encoding="utf-8")
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--hide-scrollbars",
            f"--window-size={width},900", "--enable-logging=stderr", "--dump-dom",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            (tmp_path / "page.html").as_uri(),
        ],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    found = json.loads(done.stdout.partition("<pre>FOUND")[2].partition("END")[0])
    assert "CONSOLE" not in done.stderr
    assert (found["missing"], found["flat"]) == (0, 0)
    assert (found["images"], found["drawings"]) == (text.count("<img "), text.count("<svg "))
    assert (found["beyond"], found["width"]) == (0, width)
    assert found["colour"] == ("rgb(163, 172, 181)" if dark else "rgb(90, 99, 109)")
