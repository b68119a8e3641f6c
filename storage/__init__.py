"""Bytes at an address: the store, its model versions, datasets and runs."""
