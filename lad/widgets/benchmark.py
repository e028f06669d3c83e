"""Browse questions and the recorded traces of their answers; their text is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ipywidgets as widgets

from lad.diffusion.trace import Trace
from lad.evaluation.tasks import LETTERS, Question, parse_letter, parse_text
from lad.utils import InvalidInput
from lad.viz.html import escape
from lad.viz.tokens import count
from lad.widgets.controls import SPACED
from lad.widgets.player import TracePlayer

OUTCOMES = ("right", "wrong", "unparsable")


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
        """One of `OUTCOMES`."""
        if self.choice is None:
            return "unparsable"
        return "right" if self.choice == self.question.gold else "wrong"


def answered_html(one: Answered) -> str:
    """Question, options with the right and the chosen one marked in words, and the answer."""
    question = one.question
    lines = []
    for place, line in enumerate(question.lines):
        text, marks = escape(line), []
        if place == question.gold:
            text, marks = f"<strong>{text}</strong>", ["right answer"]
        if place == one.choice:
            text, marks = f"<u>{text}</u>", [*marks, "chosen"]
        lines.append(f"<li>{text} ({', '.join(marks)})</li>" if marks else f"<li>{text}</li>")
    verdict = {
        "right": "The leading letter is right.",
        "wrong": f"The leading letter is wrong: {LETTERS[question.gold]} is right.",
        "unparsable": "No option's letter leads the answer: it counts as wrong.",
    }[one.outcome]
    text = parse_text(one.trace.answer, question)
    whose = "right" if text == question.gold else "no option's" if text is None else "another's"
    verdict += f" The text behind the letter is {whose}."
    return (
        f"<div dir='auto'><p>{escape(question.item.question)}</p>"
        f"<ul style='list-style:none;padding-left:1em'>{''.join(lines)}</ul>"
        f"<p>Answer: “{escape(one.trace.answer) or '<em>(empty)</em>'}” {verdict}</p></div>"
    )


class ItemBrowser:
    """Questions one at a time, at least one, with a player of the answer's trace below."""

    def __init__(self, answered: Sequence[Answered]) -> None:
        if not answered:
            raise InvalidInput("no answered question: expected at least one to look at")
        self._all = self._listed = list(answered)
        counts = {kind: sum(x.outcome == kind for x in answered) for kind in OUTCOMES}
        labels = [("all", "all")] + [(f"{kind} ({n})", kind) for kind, n in counts.items() if n]
        self.shown = widgets.Dropdown(options=labels, value="all", description="Show")
        self.slider = widgets.IntSlider(value=1, min=1, max=len(answered), description="Question")
        self.slider.layout.width = "22em"
        self.back = widgets.Button(description="Previous", tooltip="The question before this one")
        self.forth = widgets.Button(description="Next", tooltip="The question after this one")
        self.caption, self.page, self.player = widgets.HTML(), widgets.HTML(), TracePlayer()
        self.player.head.layout.display = "none"  # the page has the question
        self.back.on_click(lambda _: self._go(-1))
        self.forth.on_click(lambda _: self._go(1))
        self.slider.observe(lambda _: self._draw(), "value")
        self.shown.observe(lambda _: self._filter(), "value")
        bar = widgets.HBox([self.shown, self.back, self.slider, self.forth], layout=SPACED)
        self.widget = widgets.VBox([bar, self.caption, self.page, self.player.widget])
        self._draw()

    def _go(self, step: int) -> None:
        self.slider.value = min(max(self.slider.value + step, 1), self.slider.max)

    def _filter(self) -> None:
        self._listed = [x for x in self._all if self.shown.value in ("all", x.outcome)]
        self.slider.value = 1
        self.slider.max = len(self._listed)
        self._draw()

    def _draw(self) -> None:
        one = self._listed[self.slider.value - 1]
        where = f"<strong>Question {self.slider.value} of {len(self._listed)}</strong>"
        name = escape(f"{one.question.item.task} {one.question.item.id}")
        self.caption.value = f"{where}, {name}: {one.outcome}, {count(one.trace.nfe, 'iteration')}"
        self.page.value = answered_html(one)
        self.player.load(one.trace)
