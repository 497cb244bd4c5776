"""What the publishers offer: a release's name to the one archive that is meant, and how it is known to be genuine.

Ubuntu's images are found and verified by its SHA256SUMS and the signature beside it, Raspberry Pi OS by the list of
Raspberry Pi Imager. Left out: daily images, other publishers (an index of one's own with `--mirror` takes any image).
"""

from netbootd.images.catalog.offers import Offer, list_offers
from netbootd.images.catalog.resolve import resolve

__all__ = ["Offer", "list_offers", "resolve"]
