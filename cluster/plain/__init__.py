"""Clusters of machines without Kubernetes: one has the head, the others join it, each by a command."""
