"""What the explorers need of the page they are shown on: a script and a few styles.

A slider's handle and a progress bar have no trait for a name, for screen readers: the script copies
the description that stands beside them (`lad/assets/accessibility.js`). With it Ctrl-Enter runs and
space plays.
"""

from IPython.display import HTML

from lad.viz.html import ASSETS


def name_controls() -> HTML:
    """An output with what the page it is shown on needs; it serves later controls too."""
    names = "accessibility.js", "controls.css"
    script, style = ((ASSETS / name).read_text(encoding="utf-8") for name in names)
    return HTML(f"<style>{style}</style><script>{script}</script>")
