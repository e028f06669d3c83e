"""Browse through questions, their options, and how each answer came about.

Nothing runs here: the answers are recorded traces, and the player steps through them. What a
question or an answer says reaches the page escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ipywidgets as widgets

from lad.diffusion.trace import Trace
from lad.evaluation.generation import parse_letter
from lad.evaluation.questions import LETTERS, Question
from lad.utils import InvalidInput
from lad.viz.html import escape
from lad.widgets.controls import ROW
from lad.widgets.player import TracePlayer

__all__ = ["Answered", "ItemBrowser", "answered_html"]

SHOWN = ("all", "right", "wrong", "unparsable")
_ROW = ROW | {"grid_gap": "0 12px"}


@dataclass(frozen=True)
class Answered:
    """A question with the trace of its answer."""

    question: Question
    trace: Trace

    @property
    def choice(self) -> int | None:
        """The place that the answer's leading letter names; None when it names none."""
        return parse_letter(self.trace.answer, len(self.question.lines))

    @property
    def outcome(self) -> str:
        """One of `SHOWN`, but "all"."""
        if self.choice is None:
            return "unparsable"
        return "right" if self.choice == self.question.gold else "wrong"


def answered_html(one: Answered) -> str:
    """Question, options with what is right and what was chosen in words, and the answer."""
    question = one.question
    rows = []
    for place, line in enumerate(question.lines):
        marks = []
        if place == question.gold:
            marks.append("right answer")
        if place == one.choice:
            marks.append("chosen")
        text = escape(line)
        text = f"<strong>{text}</strong>" if place == question.gold else text
        text = f"<u>{text}</u>" if place == one.choice else text
        told = f" ({', '.join(marks)})" if marks else ""
        rows.append(f"<li>{text}{told}</li>")
    said = escape(one.trace.answer) or "<em>(empty)</em>"
    verdict = {
        "right": "The leading letter is right.",
        "wrong": f"The leading letter is wrong: {LETTERS[question.gold]} is right.",
        "unparsable": "No option's letter leads the answer: it counts as wrong.",
    }[one.outcome]
    return (
        f"<div dir='auto'><p>{escape(question.item.question)}</p>"
        f"<ul style='list-style:none;padding-left:1em'>{''.join(rows)}</ul>"
        f"<p>Answer: “{said}” {verdict}</p></div>"
    )


class ItemBrowser:
    """Questions one at a time, with a player of the answer's trace below.

    Attributes:
        widget: what a notebook cell shows.
        shown: which outcomes to go through.
        slider, back, forth: where to go.
        caption, page: what is shown of the question.
        player: the player of its answer.
    """

    def __init__(self, answered: Sequence[Answered]) -> None:
        """At least one answered question, or InvalidInput."""
        if not answered:
            raise InvalidInput("no answered question: expected at least one to look at")
        self._all = list(answered)
        self._listed = list(self._all)
        counts = {kind: sum(x.outcome == kind for x in self._all) for kind in SHOWN[1:]}
        labels = [("all", "all")] + [(f"{k} ({n})", k) for k, n in counts.items() if n]
        self.shown = widgets.Dropdown(options=labels, value="all", description="Show")
        self.slider = widgets.IntSlider(
            value=1, min=1, max=len(self._all), description="Question",
            layout={"width": "22em"},
        )  # fmt: skip
        self.back = widgets.Button(description="Previous", tooltip="The question before this one")
        self.forth = widgets.Button(description="Next", tooltip="The question after this one")
        self.caption = widgets.HTML()
        self.page = widgets.HTML()
        self.player = TracePlayer()
        self.back.on_click(lambda _: self._go(-1))
        self.forth.on_click(lambda _: self._go(1))
        self.slider.observe(lambda _: self._draw(), "value")
        self.shown.observe(lambda _: self._filter(), "value")
        bar = widgets.HBox(
            [self.shown, self.back, self.slider, self.forth], layout=widgets.Layout(**_ROW)
        )
        self.widget = widgets.VBox([bar, self.caption, self.page, self.player.widget])
        self._draw()

    def _go(self, step: int) -> None:
        self.slider.value = min(max(self.slider.value + step, 1), self.slider.max)

    def _filter(self) -> None:
        kind = self.shown.value
        self._listed = [x for x in self._all if kind in ("all", x.outcome)]
        self.slider.value = 1
        self.slider.max = len(self._listed)
        self._draw()

    def _draw(self) -> None:
        one = self._listed[self.slider.value - 1]
        self.caption.value = (
            f"<strong>Question {self.slider.value} of {len(self._listed)}</strong>, "
            f"{escape(one.question.item.task)} {escape(one.question.item.id)}: {one.outcome}, "
            f"{one.trace.nfe} iterations"
        )
        self.page.value = answered_html(one)
        self.player.load(one.trace)
