"""NFS by the kernel's own server (nfsd), managed by us: no package of NFS programs is needed.

Two processes share the work. The privileged one (`netbootd nfs-kernel`, systemd/netbootd-nfs.service) starts and stops
the kernel's server, answers what its caches ask, and gives out file handles; `netbootd serve`, without rights, answers
MOUNT and the port mapper, and asks the other one over a Unix socket.

Read from the inside out: messages and control (generic netlink), procfs (older kernels), caches (the text lines of the
kernel's export caches), book (what is exported) and upcalls (who answers the caches), exportfs (where rpc.mountd does),
registrar (a stand-in for rpcbind), manager (all of it reconciled); protocol, part and client (the two ends of the
socket); mount and server (the unprivileged side); findings (for `netbootd doctor`).
"""
