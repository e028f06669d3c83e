"""Names for what ipywidgets leaves nameless, so that a screen reader can say what a control is.

Most ipywidgets tie their description to their input. A slider's handle, the buttons of Play and a
progress bar have none, and no trait to give them one: a script in the page copies the description
that stands beside them (`lad/assets/accessibility.js`).
"""

from __future__ import annotations

from importlib.resources import files

from IPython.display import HTML


def name_controls() -> HTML:
    """An output that names the controls of the page it is shown on, now and later."""
    script = files("lad").joinpath("assets", "accessibility.js").read_text(encoding="utf-8")
    return HTML(f"<script>{script}</script>")
