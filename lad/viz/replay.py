"""A recorded run as a player for a page without a kernel: one string of HTML, nothing loaded.

Every frame is drawn beforehand by `lad.viz.html`, so what this player shows is what the widgets show,
escaped by the same code; a few lines of script choose which frame is visible. Where scripts do not
run, as in a mail or on GitHub, the last frame and the answer are there all the same. Nothing moves
before Play is pressed.

Keys: each part is a button, a slider, a list or a box, so Tab reaches it; arrows move the slider.
"""

from __future__ import annotations

from collections.abc import Mapping

from lad.diffusion.trace import Trace
from lad.viz.html import answer_html, caption_html, draft_html, escape, legend_html, page_html
from lad.viz.tokens import frames

__all__ = ["replay_html", "replays_html"]

PACES = (("slow", 2.0), ("normal", 0.7), ("fast", 0.2))  # seconds between two frames

STYLE = """
.lad-replay { border: 1px solid #8a8a8a; border-radius: 4px; padding: 0.3em 0.8em;
  margin: 0.5em 0; }
.lad-replay .lad-bar { display: flex; flex-wrap: wrap; gap: 0.3em 0.8em; align-items: center; }
.lad-replay .lad-bar[hidden], .lad-replay [data-frame][hidden] { display: none; }
.lad-replay .lad-bar input[type=range] { flex: 1 1 12em; min-width: 8em; }
.lad-replay .lad-bar button, .lad-replay .lad-bar select { font: inherit; padding: 0.1em 0.7em; }
.lad-replay .lad-frames { min-height: 9em; }
.lad-replay .lad-key-sure, .lad-replay .lad-by-confidence .lad-key-state { display: none; }
.lad-replay .lad-by-confidence .lad-key-sure { display: block; }
@media print { .lad-replay .lad-bar { display: none; } }
"""

# It looks for nothing outside the element it stands in, so any number of players share a page.
SCRIPT = """
(() => {
  const root = document.currentScript.parentElement;
  const part = (name) => root.querySelector('[data-part="' + name + '"]');
  const shown = [...root.querySelectorAll('[data-frame]')];
  const slider = part('slider'), play = part('play'), pace = part('pace');
  let timer = null;
  const show = (at) => {
    at = Math.min(Math.max(at, 0), shown.length - 1);
    shown.forEach((frame, number) => { frame.hidden = number !== at; });
    slider.value = at;
    slider.setAttribute('aria-valuetext', shown[at].firstElementChild.textContent);
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    play.textContent = 'Play';
  };
  const start = () => {
    if (Number(slider.value) === shown.length - 1) show(0);
    play.textContent = 'Pause';
    timer = setInterval(() => {
      show(Number(slider.value) + 1);
      if (Number(slider.value) === shown.length - 1) stop();
    }, 1000 * Number(pace.value));
  };
  play.addEventListener('click', () => { if (timer) stop(); else start(); });
  part('back').addEventListener('click', () => { stop(); show(Number(slider.value) - 1); });
  part('on').addEventListener('click', () => { stop(); show(Number(slider.value) + 1); });
  slider.addEventListener('input', () => { stop(); show(Number(slider.value)); });
  pace.addEventListener('change', () => { if (timer) { stop(); start(); } });
  part('sure').addEventListener('change', (event) => {
    part('body').classList.toggle('lad-by-confidence', event.target.checked);
  });
  part('bar').hidden = false;
  show(shown.length - 1);
})();
"""


def replay_html(trace: Trace) -> str:
    """A trace as a player of its own: play, pause, step, scrub, pace, colour by confidence."""
    steps = frames(trace)
    last = len(steps) - 1
    drawn = "".join(
        f"<div data-frame{'' if number == last else ' hidden'}>"
        f"{caption_html(trace, row, phase)}{draft_html(trace, row, phase, 'either')}</div>"
        for number, (row, phase) in enumerate(steps)
    )
    paces = "".join(
        f'<option value="{seconds}"{" selected" * (name == "normal")}>{name}</option>'
        for name, seconds in PACES
    )
    bar = (
        '<div class="lad-bar" data-part="bar" role="group" aria-label="player" hidden>'
        '<button type="button" data-part="play">Play</button>'
        '<button type="button" data-part="back" title="one step back">Back</button>'
        '<button type="button" data-part="on" title="one step on">Next</button>'
        f'<input type="range" data-part="slider" aria-label="Step" min="0" max="{last}" '
        f'value="{last}">'
        f'<label>Pace <select data-part="pace">{paces}</select></label>'
        '<label><input type="checkbox" data-part="sure"> colour by confidence</label></div>'
    )
    keys = (
        f'<div class="lad-key-state">{legend_html(trace)}</div>'
        f'<div class="lad-key-sure">{legend_html(trace, "confidence")}</div>'
    )
    return page_html(
        f'<style>{STYLE}</style><div class="lad-replay"><div><strong>{escape(trace.prompt)}'
        f'</strong></div>{bar}<div data-part="body"><div class="lad-frames">{drawn}</div>{keys}'
        f"</div>{answer_html(trace)}<script>{SCRIPT}</script></div>"
    )


def replays_html(traces: Mapping[str, Trace]) -> str:
    """Several runs, each folded away behind its name; the first is open."""
    return "".join(
        f"<details{' open' * (number == 0)}><summary>{escape(name)}</summary>"
        f"{replay_html(trace)}</details>"
        for number, (name, trace) in enumerate(traces.items())
    )
