"""Draws schedules.svg: `python docs/pictures/schedules.py`. A test compares the two.

Both pictures come from the order in which a stage works, and one rule: work begins as soon as the
stage is free and what it needs has arrived. A batch's forward pass takes 4 units of time on every
stage, its backward pass 8; local heads and transport take none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PICTURE = Path(__file__).with_name("schedules.svg")
STAGES, MICRO_BATCHES, FORWARD, BACKWARD = 4, 4, 4, 8
END = 48
"""The pictures are cut off here."""

X, UNIT, ROW, GAP = 70, 16, 24, 4
HUES = [
    ("#9cc7f0", "#1f5f9e"),
    ("#f5c48d", "#a3560a"),
    ("#a5d6ae", "#2a6e3f"),
    ("#cfb8ea", "#6a429a"),
]
"""Of batch after batch: forward, backward."""
GREY = "#77808a"
"""Readable on white and on black."""


@dataclass(frozen=True)
class Work:
    stage: int
    batch: int
    part: int
    """Which micro-batch of it; 0 where it is whole."""
    is_forward: bool
    begin: int = 0
    end: int = 0


def one_f_one_b(stage: int) -> Iterator[Work]:
    """What a stage does under 1F1B: as many forward passes as stages come after it, then one
    forward and one backward in turn. The last backward pass of a batch updates the weights."""
    for batch in range(END // FORWARD):
        ahead = min(STAGES - 1 - stage, MICRO_BATCHES)
        forwards = [Work(stage, batch, part, True) for part in range(MICRO_BATCHES)]
        backwards = [Work(stage, batch, part, False) for part in range(MICRO_BATCHES)]
        yield from forwards[:ahead]
        for forward, backward in zip(forwards[ahead:], backwards, strict=False):
            yield from (forward, backward)
        yield from backwards[MICRO_BATCHES - ahead :]


def local_losses(stage: int) -> Iterator[Work]:
    """What a stage does with local losses: pass a batch on, learn from it, take the next."""
    for batch in range(END // FORWARD):
        yield from (Work(stage, batch, 0, True), Work(stage, batch, 0, False))


def timed(order: Callable[[int], Iterator[Work]], parts: int, *, is_global: bool) -> list[Work]:
    """When everything happens, with batches in so many parts."""
    waiting = [list(order(stage)) for stage in range(STAGES)]
    free = [0] * STAGES
    ends: dict[tuple[int, int, int, bool], int] = {}
    found: list[Work] = []
    while any(waiting):
        for stage, work in ((stage, works[0]) for stage, works in enumerate(waiting) if works):
            needs = (stage - 1, work.batch, work.part, True) if work.is_forward else None
            if is_global and not work.is_forward:
                needs = (stage + 1, work.batch, work.part, False)
            if needs and 0 <= needs[0] < STAGES and needs not in ends:
                continue
            begin = max(free[stage], ends.get(needs, 0) if needs else 0)
            free[stage] = begin + (FORWARD if work.is_forward else BACKWARD) // parts
            ends[stage, work.batch, work.part, work.is_forward] = free[stage]
            found.append(Work(stage, work.batch, work.part, work.is_forward, begin, free[stage]))
            waiting[stage].pop(0)
    return [work for work in found if work.begin < END]


def box(work: Work, top: int, label: str) -> str:
    x, y = X + UNIT * work.begin, top + (ROW + GAP) * work.stage
    width = UNIT * (min(work.end, END) - work.begin)
    fill = HUES[work.batch % len(HUES)][0 if work.is_forward else 1]
    ink = "#1b1f24" if work.is_forward else "#ffffff"
    return (
        f'<rect x="{x + 0.5}" y="{y}" width="{width - 1}" height="{ROW}" rx="2" fill="{fill}"/>'
        f'<text x="{x + width / 2:g}" y="{y + 16}" fill="{ink}" text-anchor="middle">{label}</text>'
    )


def text(x: int, y: int, words: str, style: str = "") -> str:
    return f'<text x="{x}" y="{y}" fill="{GREY}" {style}>{words}</text>'


def panel(works: list[Work], top: int, title: str, label: Callable[[Work], str]) -> Iterator[str]:
    """Four stages over time; what is left open between boxes is idle."""
    yield text(X, top - 10, title, 'font-size="14" font-weight="bold"')
    for stage in range(STAGES):
        y = top + (ROW + GAP) * stage
        yield text(4, y + 16, f"stage {stage}")
        yield (
            f'<rect x="{X + 0.5}" y="{y + 0.5}" width="{UNIT * END - 1}" height="{ROW - 1}" rx="2" '
            f'fill="url(#idle)" stroke="{GREY}" stroke-opacity="0.5"/>'
        )
    yield from (box(work, top, label(work)) for work in works)


def picture() -> str:
    height, right = (ROW + GAP) * STAGES, X + UNIT * END
    second = 34 + height + 50
    bottom = second + height + 24
    backprop = timed(one_f_one_b, MICRO_BATCHES, is_global=True)
    local = timed(local_losses, 1, is_global=False)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right + 10} {bottom + 10}" '
        'font-family="sans-serif" font-size="12">',
        '<defs><pattern id="idle" width="7" height="7" patternUnits="userSpaceOnUse" '
        f'patternTransform="rotate(45)"><path d="M0 0V7" stroke="{GREY}" stroke-opacity="0.45"/>'
        "</pattern></defs>",
        *panel(
            backprop,
            34,
            "Global backprop, 1F1B with 4 micro-batches: idle (hatched) until the update",
            lambda work: ("" if work.is_forward else str(work.batch + 1)) + "abcd"[work.part],
        ),
        *panel(
            local,
            second,
            "Local losses: pass the batch on, learn from it, take the next",
            lambda work: f"{work.batch + 1} {'forward' if work.is_forward else 'learn'}",
        ),
        text(X, bottom, "time → · light: forward pass · dark: backward pass, then the update · "
             "one colour: one batch"),
        "</svg>",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
