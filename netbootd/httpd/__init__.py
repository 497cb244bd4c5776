"""The HTTP server: NoCloud documents per node, boot files, and the progress that nodes report."""
