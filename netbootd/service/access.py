"""Who may read a node's cloud-init documents, and who is given its SSH host keys.

Anyone in the allowed networks may read documents without secrets: they are what a machine that boots here gets anyway.
One with a secret goes only to an address whose MAC, by the neighbour table, is the one configured for that node. With
tokens in use, every document goes only to who knows the token of the node's present boot. Host keys, which are our own
addition, are left out where the asker can't be known as the node: whoever is not listed has to boot all the same.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable

from netbootd.boot.identify import Identities
from netbootd.errors import DeniedError
from netbootd.model.identity import Evidence, MacAddress
from netbootd.model.node import Node


class SeedGate:
    """Checks one request for a document.

    :param token_of: the token of a node's present boot, None where tokens are not in use
    """

    def __init__(
        self,
        identities: Identities,
        mac_of: Callable[[str], MacAddress | None],
        token_of: Callable[[Node], str] | None,
    ) -> None:
        self._identities = identities
        self._mac_of = mac_of
        self._token_of = token_of

    def reconfigure(self, token_of: Callable[[Node], str] | None) -> None:
        """Ask for tokens, or not, from now on."""
        self._token_of = token_of

    def check(self, node: Node, evidence: Evidence, token: str, *, secret: bool) -> None:
        """See `netbootd.httpd.seed.SeedAccess`."""
        doubt = self.doubt(node, evidence, token)
        if self._token_of is not None:
            if doubt:
                raise DeniedError(doubt)
        elif token:
            raise DeniedError("tokens are not in use")
        elif secret and doubt:
            raise DeniedError(f"it holds a secret, and {doubt}")

    def doubt(self, node: Node, evidence: Evidence, token: str) -> str:
        """Why the asker can't be known as `node`; empty where it is."""
        if self._token_of is not None:
            wanted = self._token_of(node)
            if wanted and hmac.compare_digest(wanted.encode(), token.encode("utf-8", "surrogateescape")):
                return ""
            return f"the address lacks the token of {node.name}'s present boot"
        configured = next((known.mac for known in self._identities.configured if known.name == node.name), None)
        if configured is None:
            return f"no mac is configured for {node.name} to know it by"
        if self._mac_of(evidence.address) != configured:
            return f"{evidence.address} is not at {node.name}'s MAC address"
        return ""
