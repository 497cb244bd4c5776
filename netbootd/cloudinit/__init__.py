"""cloud-init documents: merging of base, overlays and node, and the NoCloud seed that a node reads."""
