"""Browse questions and the recorded traces of their answers; their text is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lad.diffusion.trace import Trace
from lad.evaluation.tasks import LETTERS, Question, parse_letter, parse_text
from lad.viz.html import Page, chooser_html, escape, replay_html
from lad.viz.tokens import count

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


def browse(answered: Sequence[Answered]) -> Page:
    """Questions, at least one, in a menu by outcome, each with a player of its answer's trace."""
    groups: dict[str, list[Answered]] = {}
    for kind in OUTCOMES:
        found = [one for one in answered if one.outcome == kind]
        groups |= {f"{kind} ({len(found)})": found} if found else {}
    titles = {group: [_title(one) for one in found] for group, found in groups.items()}
    pages = [_page(one) for found in groups.values() for one in found]
    players = {str(number): page for number, page in enumerate(pages)}
    return Page(chooser_html({"Question": titles}, players))


def _title(one: Answered) -> str:
    return f"{one.question.item.task} {one.question.item.id}: {one.question.item.question}"


def _page(one: Answered) -> str:
    cost = f"<p>{one.outcome}, {count(one.trace.nfe, 'iteration')}</p>"
    return replay_html(one.trace, answered_html(one) + cost)
