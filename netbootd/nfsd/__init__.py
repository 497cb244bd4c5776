"""NFS exports of the root trees: an embedded read-only NFSv3 server.

Read from the inside out: xdr and rpc (the wire), handles, posixacl and attributes (values), tree (the index of what is
exported), v3, acl, mount and portmap (the programs, all of them without sockets), exports and files (what is held
open), connection, datagrams, listeners and server (asyncio), rpcbind (the host's own port mapper).
"""
