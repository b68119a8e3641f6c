"""Will it fit, and on what: from a model's own config and the headers of its files."""
