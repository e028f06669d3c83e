"""Names for controls that ipywidgets leaves nameless, for screen readers.

A slider's handle, the buttons of Play and a progress bar have no trait for a name: a script in the
page copies the description that stands beside them (`lad/assets/accessibility.js`).
"""

from importlib.resources import files

from IPython.display import HTML


def name_controls() -> HTML:
    """An output that names the controls of the page it is shown on, present and later ones."""
    script = files("lad").joinpath("assets", "accessibility.js").read_text(encoding="utf-8")
    return HTML(f"<script>{script}</script>")
