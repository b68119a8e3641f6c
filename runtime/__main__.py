"""``python -m runtime``: the same as ``tandem``."""

from runtime.cli import main

main(prog_name="tandem")
