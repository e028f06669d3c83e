"""Frozen language models: names, downloads, loading, tokenizer, chat template."""
