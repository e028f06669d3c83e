"""One module per group of commands; `lad/__main__.py` puts them together."""
