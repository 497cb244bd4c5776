"""NFS exports of the root trees: an embedded read-only NFSv3 server."""
