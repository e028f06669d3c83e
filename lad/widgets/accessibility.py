"""What the page around the explorers needs: names of controls for screen readers, keys, styles.

A slider's handle, the buttons of Play and a progress bar have no trait for a name: a script in the
page copies the description that stands beside them (`lad/assets/accessibility.js`). With it
Ctrl-Enter runs and space plays.
"""

from importlib.resources import files

from IPython.display import HTML


def name_controls() -> HTML:
    """An output that names the controls of the page it is shown on, present and later ones."""
    assets = files("lad").joinpath("assets")
    script, style = (
        assets.joinpath(name).read_text(encoding="utf-8")
        for name in ("accessibility.js", "controls.css")
    )
    return HTML(f"<style>{style}</style><script>{script}</script>")
