"""A pure-Python netboot server suite: prepares images and boots diskless Raspberry Pis over TFTP, HTTP and NFS."""

__version__ = "0.1.0"
