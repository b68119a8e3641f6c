"""Clusters on Kubernetes: a cluster spec becomes manifests (pure), and these are checked and applied."""
