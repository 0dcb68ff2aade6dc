"""Which tinygrad the rewrite was written for. Imports nothing of it: another may lack what strategies.graph needs."""

TINYGRAD = "0.14"
"""Its releases 0.14.x: see docs/adr/."""
