"""Every card of the cluster and every share on it; who waits for one, and who may start."""
