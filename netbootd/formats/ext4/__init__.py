"""Reads ext2, ext3 and ext4 file systems out of an image: no mount, no root, nothing written.

`Ext4` is the whole of it; what it meets is checked before it is handed out, as images come from strangers. Sources: the
kernel's fs/ext4 and fs/jbd2, Documentation/filesystems/ext4, and e2fsprogs as the judge where they are silent.
"""

from netbootd.formats.ext4.claims import BlockClaims
from netbootd.formats.ext4.directory import DirEntry
from netbootd.formats.ext4.extents import Extent
from netbootd.formats.ext4.filesystem import ROOT, Ext4
from netbootd.formats.ext4.inode import Inode, Kind
from netbootd.formats.ext4.walk import Entry

__all__ = ["ROOT", "BlockClaims", "DirEntry", "Entry", "Ext4", "Extent", "Inode", "Kind"]
