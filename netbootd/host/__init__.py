"""This host: links and addresses, systemd, privileges."""
