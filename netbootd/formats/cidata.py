"""The CIDATA ISO: a NoCloud seed on a disk, for a machine that can't read it over the network.

cloud-init finds it by its volume label ``cidata`` (cloudinit/sources/DataSourceNoCloud.py). Written with Rock Ridge and
Joliet names by pycdlib, since ISO 9660's own names can't hold a dash.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

import pycdlib


def cidata_iso(documents: Mapping[str, bytes]) -> bytes:
    """An ISO 9660 image that holds `documents` (name to content) in its root."""
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    try:
        for number, (name, content) in enumerate(documents.items()):
            iso.add_fp(io.BytesIO(content), len(content), f"/FILE{number}.;1", rr_name=name, joliet_path=f"/{name}")
        image = io.BytesIO()
        iso.write_fp(image)
        return image.getvalue()
    finally:
        iso.close()
