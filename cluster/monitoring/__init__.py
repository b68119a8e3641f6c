"""What Prometheus scrapes, which alerts it raises, and what Grafana draws of it."""
