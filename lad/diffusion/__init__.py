"""The method. To be read in this order:

    corruption   the forward process: structural noise on an answer
    schedule     how many positions are masked again after an iteration
    remasking    which positions: one function a strategy
    denoiser     attention mask, prompt cache, logits of a draft
    sampler      one step from logits to the next input, and the loop around it
    trace        what happened in a run

Beside it: config (every setting), adapter (folders on disk), drafts (repair, infill, checks of
inputs), resume (going on where a trace ends), verified (the backbone decides), lookahead (fewer
positions a pass), numbers (of logits, random ones, copies to the host), trace_file (traces on
disk), reference (the method in plain loops, for the tests).
"""
