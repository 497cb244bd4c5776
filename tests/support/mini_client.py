"""A netboot client of one small initramfs: Debian's own kernel modules, static busybox, and a script as init.

It boots in seconds where a whole distribution takes minutes, and does on the wire what that does: DHCP, the root by
NFSv3, the four NoCloud documents, phone-home. What it is told on the kernel command line:

``ip=dhcp``                          udhcpc on eth0
``nfsroot=ADDR:/PATH[,OPTIONS]``     mount it read-only (NFSv3, TCP, no lock manager)
``ds=nocloud;s=URL``                 read the seed there (``ds=nocloud-net;s=URL`` too), then phone home
``lab.read=FILE``                    the sha256 of that file below the root
``lab.stat=ID,ID``                   stat(2) of every name below the root (mode in hex, uid, gid, device numbers in hex,
                                     size, path), and whether users of these ids may read /etc/shadow
``lab.report=URL``                   POST all that was found to URL/<mac>, at the end
``lab.gate=URL``                     with the file open and its first block read: POST "WAITING" to the report's URL,
                                     wait until URL/<mac> is there, forget what is cached, and read on
"""

from __future__ import annotations

import gzip
import lzma
import re
from pathlib import Path

from tests.support.imageparts.bootpart import cpio_newc
from tests.support.imageparts.debian import debian_package

_EPOCH = 1754352000
_MODULES = ("virtio_pci", "virtio_mmio", "virtio_net", "nfsv3", "af_packet")
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")

_INIT = r"""#!/bin/busybox sh
/bin/busybox --install -s /bin; export PATH=/bin
mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev
for module in $(cat /modules/order); do insmod /modules/$module.ko || echo "insmod $module failed"; done
arg() { tr ' ' '\n' < /proc/cmdline | sed -n "s/^$1=//p" | tail -1; }
report=$(arg lab.report) nfsroot=$(arg nfsroot) read=$(arg lab.read) gate=$(arg lab.gate)
mac=$(cat /sys/class/net/eth0/address)
post() { wget -q -O /dev/null --header 'Content-Type: text/plain' --post-file="$1" "$report/$mac"; }
seed=$(arg ds | sed -n 's/^nocloud.*;s=//p')
ifconfig lo up; ifconfig eth0 up
udhcpc -i eth0 -n -q -t 10 -s /bin/lease
{
    echo "KERNEL $(uname -r) $(uname -m)"
    echo "CMDLINE $(cat /proc/cmdline)"
    echo "MAC $mac"
    echo "ADDRESS $(ifconfig eth0 | sed -n 's/.*inet addr:\([0-9.]*\).*/\1/p')"
    options=$(echo "${nfsroot#*,}" | sed 's/^v3\b/vers=3/; s/,v3\b/,vers=3/; s/,tcp\b/,proto=tcp/')
    if mount -t nfs -o "ro,nolock,$options" "${nfsroot%%,*}" /root; then echo "NFS mounted"; else echo "NFS failed"; fi
    echo "ROOT $(ls /root | tr '\n' ' ')"
    if [ -n "$read" ] && [ -f "/root/$read" ]; then
        exec 3< "/root/$read"
        dd bs=4096 count=1 <&3 > /first 2> /dev/null
        if [ -n "$gate" ]; then
            echo WAITING > /waiting
            post /waiting
            until wget -q -O /dev/null "$gate/$mac" 2> /dev/null; do sleep 0.2; done
            echo 3 > /proc/sys/vm/drop_caches
        fi
        echo "DIGEST $(cat /first - <&3 | sha256sum | cut -d' ' -f1)"
        exec 3<&-
    fi
    for id in $(arg lab.stat | tr ',' ' '); do
        echo "u$id:x:$id:$id::/:/bin/sh" >> /etc/passwd
        if start-stop-daemon -S -n none -c "u$id:$id" -a /bin/cat -- /root/etc/shadow > /dev/null
        then echo "SHADOW-$id read"; else echo "SHADOW-$id refused"; fi
    done
    [ -z "$(arg lab.stat)" ] || find /root -exec stat -c 'STAT %f %u %g %t %T %s %n' {} +
    if [ -n "$seed" ]; then
        for name in meta-data user-data vendor-data network-config; do
            if wget -q -O /$name "$seed$name"; then echo "SEED $name $(wc -c < /$name)"; else echo "NO-SEED $name"; fi
        done
        sed 's/^/META /' /meta-data
        echo hostname=$(sed -n 's/^local-hostname: *//p' /meta-data) > /phone
        home=$(echo "$seed" | sed 's,/nocloud/,/phone-home/,; s,/$,,')
        if wget -q -O /dev/null --post-file=/phone "$home"; then echo "PHONE ok"; else echo "PHONE failed"; fi
    fi
} > /report 2>&1
cat /report
[ -z "$report" ] || post /report
sleep 1; poweroff -f
"""

_LEASE = """#!/bin/sh
[ "$1" = bound ] || exit 0
ifconfig "$interface" "$ip" netmask "$subnet"
for gateway in $router; do route add default gw "$gateway"; done
"""


def initramfs(cache: Path, arch: str = "arm64") -> bytes:
    """A gzipped cpio archive. The packages come into `cache`, a folder of the image maker."""
    busybox = Path(debian_package(str(cache), "busybox-static", arch))
    kernel = Path(debian_package(str(cache), f"linux-image-{arch}", arch))
    (program,) = (path for path in busybox.rglob("bin/busybox") if path.is_file() and not path.is_symlink())
    files = dict.fromkeys(("bin", "dev", "etc", "modules", "proc", "root", "sys"), (16877, b""))
    files |= {"bin/busybox": (0o100755, program.read_bytes()), "bin/sh": (0o120777, b"busybox")}
    files |= {"init": (0o100755, _INIT.encode()), "bin/lease": (0o100755, _LEASE.encode())}
    modules = _modules(kernel)
    files |= {f"modules/{name}.ko": (0o100644, data) for name, data in modules.items()}
    files["modules/order"] = (0o100644, "\n".join(modules).encode())
    return gzip.compress(cpio_newc(files, _EPOCH), 1, mtime=0)


def _modules(kernel: Path) -> dict[str, bytes]:
    """The wanted modules and what they depend on, in the order of loading. What is built in is left out."""
    paths = {path.name.split(".ko")[0].replace("-", "_"): path for path in kernel.rglob("*.ko*")}
    found: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in found or name not in paths:
            return
        data = paths[name].read_bytes()
        data = lzma.decompress(data) if paths[name].suffix == ".xz" else data
        match = _DEPENDS.search(data)
        for other in match[1].decode().replace("-", "_").split(",") if match else ():
            add(other)
        found[name] = data

    for name in _MODULES:
        add(name)
    return found
