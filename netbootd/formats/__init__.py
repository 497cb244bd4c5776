"""Bytes to values and back: partition tables, file systems, and the small text files of a Pi's boot partition."""
