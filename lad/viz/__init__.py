"""Traces and results as figures, HTML and text. No model runs in here.

    style            size, colours, second cues, titles, PNG and SVG
    tokens           a draft as token spans, each in one state; sentences about a trace
    html, terminal   token spans as HTML and plain text, the player of a page, the live view
    word_corruption  the forward process on a sentence of words
    gallery          the figures and runs that are drawn from figures/data/
    noise, attention, training, refinement, convergence, benchmarks, ablation, throughput
                     one pure function a figure: data in, matplotlib Figure out

To add a figure, write a function in one of the last modules; `gallery.DRAWN` lists those that
`lad figures` draws from recorded data. The title of a figure is its finding, on one line.
"""
