"""What is rendered for one node: its kernel command line."""

from __future__ import annotations

from netbootd.formats import cmdline
from netbootd.model.facts import ImageFacts
from netbootd.model.network import ServerAddress
from netbootd.model.node import Node


def command_line(facts: ImageFacts, node: Node, server: ServerAddress, root: str, token: str = "") -> str:
    """The content of cmdline.txt for `node`, one line with a newline.

    :param root: the path of the root tree on the server
    :param token: what the seed's address holds, "" where tokens are not in use
    :raises ConfigError: it would be longer than the firmware takes
    """
    folder = f"/nocloud/{node.id}/" if node.id else "/"
    if token and node.id:
        folder += f"{token}/"
    line = cmdline.render(
        facts.cmdline_base,
        server=server,
        root=root,
        overlay=facts.overlay,
        machine_id=cmdline.machine_id(node.key) if node.id else "",
        seed=server.http_base + folder,
        datasource=facts.datasource,
        append=" ".join(filter(None, (facts.cmdline_append, node.cmdline_append))),
    )
    return line + "\n"
