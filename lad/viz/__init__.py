"""One pure function a figure: data in, matplotlib Figure out. No model runs in here.

    style        size, colours, second cues, PNG and SVG; every other module starts from it
    numbers      recorded numbers that turn out to be something else
    noise        the schedule, the kinds of noise, expected against drawn damage
    attention    the masks, what the answer's last token reaches, the size of the adapter's update
    training     loss over steps, validation by share masked
    ablation     what each choice in training does, measured one change at a time
    study        quality, convergence, calibration and settling, over many answers
    refinement   filmstrip, heatmaps of confidence and of settling, settled share
    recorded     which of these are drawn again from runs and numbers in figures/data/

A title states what the data show and is computed from them, so other data give another title.
"""
