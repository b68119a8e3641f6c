"""A worker's share of a card, or of its node's memory: told on its node, and kept to."""
