"""The running service: all sockets first, then everything under one task group."""
