"""The Multipass virtual machine: what serves the network where the workstation itself can't (Windows, macOS, desktops).

Everything here runs on the workstation and imports nothing that only Linux has.
"""
