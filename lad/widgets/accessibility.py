"""What the explorers need of the page they are shown on: two scripts.

A slider's handle, the buttons of Play and a progress bar have no trait for a name, for screen
readers: a script copies the description that stands beside them (`lad/assets/accessibility.js`).
Another shows what stands inside a token that is chosen in a player (`lad/assets/inside.js`).
"""

from importlib.resources import files

from IPython.display import HTML

from lad.viz.html import INSIDE


def name_controls() -> HTML:
    """An output with the scripts of the page it is shown on; they serve later controls too."""
    script = files("lad").joinpath("assets", "accessibility.js").read_text(encoding="utf-8")
    return HTML(f"<script>{script}{INSIDE}</script>")
