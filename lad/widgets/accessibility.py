"""What the explorers need of the page they are shown on: two scripts and a few styles.

A slider's handle, the buttons of Play and a progress bar have no trait for a name, for screen
readers: a script copies the description that stands beside them (`lad/assets/accessibility.js`).
With it Ctrl-Enter runs and space plays. Another shows what stands inside a token that is chosen in
a player (`lad/assets/inside.js`).
"""

from importlib.resources import files

from IPython.display import HTML

from lad.viz.html import INSIDE


def name_controls() -> HTML:
    """An output with what the page it is shown on needs; it serves later controls too."""
    assets = files("lad").joinpath("assets")
    script, style = (
        assets.joinpath(name).read_text(encoding="utf-8")
        for name in ("accessibility.js", "controls.css")
    )
    return HTML(f"<style>{style}</style><script>{script}{INSIDE}</script>")
