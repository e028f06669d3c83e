"""Traces and results as figures, HTML and text. No model runs in here.

style: size, colours, titles, PNG and SVG; tokens: a draft as token spans; html, terminal: spans as
HTML and text; word_corruption: the forward process on words; gallery: what is drawn from
figures/data/. In the other modules one pure function draws one figure: data in, `Figure` out. To
add a figure, write such a function; `gallery.DRAWN` lists those of `lad figures`.
"""
