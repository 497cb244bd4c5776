"""The benchmarks: each module is a command that prints one Markdown table."""
