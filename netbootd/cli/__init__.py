"""The command line. A module a command, loaded when it is called."""
