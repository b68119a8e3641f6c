"""Nodes and GPUs: environments, the local Ray cluster, Ray's job and Serve interfaces."""
