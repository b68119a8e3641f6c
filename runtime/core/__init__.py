"""The ground floor: strict config, errors, logging, lookup by name. Imports nothing of ours."""
