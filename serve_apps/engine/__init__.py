"""What runs in the serve environment: the only place that imports vLLM."""
