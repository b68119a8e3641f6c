"""Runs in the train environment: the only place that imports LLaMA-Factory, DeepSpeed and torch."""
