"""The one place that decides what a node gets: identify, resolve, render."""
