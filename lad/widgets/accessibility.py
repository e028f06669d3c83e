"""Names for what ipywidgets leaves nameless, so that a screen reader can say what a control is.

Most ipywidgets tie their description to their input. A slider's handle, the buttons of Play and a
progress bar have none, and no trait to give them one: a few lines of script in the page copy the
description that stands beside them. The head of an Accordion gets what a button has, so that it can
be reached and opened from the keyboard. The script watches the page, since widgets come and go.
"""

from __future__ import annotations

from IPython.display import HTML

__all__ = ["SCRIPT", "name_controls"]

SCRIPT = """
(() => {
  if (window.ladNames) return;
  const described = (part) => {
    for (let box = part; box && box !== document.body; box = box.parentElement) {
      const label = box.querySelector(':scope > .widget-label');
      if (label) return label.textContent.trim();
    }
    return '';
  };
  const say = (part, words) => {
    if (words && part.getAttribute('aria-label') !== words) part.setAttribute('aria-label', words);
  };
  const plays = {play: 'play', pause: 'pause', stop: 'back to the start', retweet: 'repeat'};
  const fold = (head) => {
    const open = () => head.parentElement.classList.contains('jupyter-widget-Collapse-open');
    head.setAttribute('aria-expanded', open());
    if (head.getAttribute('role') === 'button') return;
    head.setAttribute('role', 'button');
    head.tabIndex = 0;
    head.addEventListener('keydown', (event) => {
      if (event.key !== 'Enter' && event.key !== ' ') return;
      event.preventDefault();
      head.click();
    });
  };
  const name = () => {
    document.querySelectorAll('.noUi-handle').forEach((handle) => say(handle, described(handle)));
    document.querySelectorAll('.widget-play button i').forEach((icon) => {
      const kind = Object.keys(plays).find((one) => icon.classList.contains('fa-' + one));
      if (kind) say(icon.parentElement, plays[kind]);
    });
    document.querySelectorAll('button[title]').forEach((button) => {
      if (!button.textContent.trim()) say(button, button.title);
    });
    document.querySelectorAll('.widget-hprogress .progress').forEach((bar) => {
      bar.setAttribute('role', 'progressbar');
      say(bar, described(bar) || 'progress of the run');
    });
    document.querySelectorAll('.jupyter-widget-Collapse-header').forEach(fold);
  };
  let waiting = null;
  const soon = () => {
    if (!waiting) waiting = setTimeout(() => { waiting = null; name(); }, 200);
  };
  window.ladNames = new MutationObserver(soon);
  window.ladNames.observe(document.body, {childList: true, subtree: true,
    attributes: true, attributeFilter: ['class']});
  name();
})();
"""


def name_controls() -> HTML:
    """An output that names the controls of the page it is shown on, now and later."""
    return HTML(f"<script>{SCRIPT}</script>")
