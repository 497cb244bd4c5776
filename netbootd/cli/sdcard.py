"""``netbootd prepare --target sdcard``: what is asked for, and the documents that go onto a card."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from netbootd.cli.output import emit_json, say, size_text
from netbootd.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from netbootd.cli.common import Program
    from netbootd.cloudinit.cards import CardDocuments
    from netbootd.config.schema import Config
    from netbootd.model.image import ImageSpec
    from netbootd.model.network import ServerAddress
    from netbootd.model.node import Node

_ONLY_CARDS = ("output", "compress", "node")


def check_options(values: dict[str, Any]) -> None:
    """Refuse options of the other target.

    :raises UsageError: they don't go together
    """
    if values["target"] == "sdcard":
        if values["output"] is None:
            raise UsageError("--target sdcard writes a file, and --output FILE is missing.", hint="Say which.")
        if values["unprivileged"]:
            raise UsageError(
                "--unprivileged goes with --target netboot.", hint="A card image takes no privileges: leave it out."
            )
        return
    for option in _ONLY_CARDS:
        if values[option] is not None:
            raise UsageError(f"--{option} goes with --target sdcard.", hint="A netboot image is for all nodes.")


def run(
    program: Program, names: tuple[str, ...], values: dict[str, Any], server: Callable[[], ServerAddress], as_json: bool
) -> None:
    """Make one card image.

    :param server: finds out how nodes reach the server; asked only where a document says so
    :raises NetbootdError: by the table of the operator's contract
    """
    import asyncio

    from netbootd.cli.progress import reporter
    from netbootd.images.sdcard import CardOptions, make_card

    node = _node(program, values["node"])
    spec = _spec(program, names, values, node)
    documents = documents_for(program.config, spec, node, server)
    options = CardOptions(
        output=values["output"].resolve(),
        compress=values["compress"] == "xz",
        private=documents.uses_secrets,
        mirror=values["mirror"],
        keyring=values["keyring"],
        skip_verify=values["insecure_skip_verify"],
        dry_run=values["dry_run"],
    )
    with reporter(spec.name, quiet=program.quiet) as progress:
        card = asyncio.run(make_card(spec, documents.files, program.layout.downloads, options, progress))
    whose = f"a card of {spec.name} for {node.name if node else 'any node'}"
    if as_json:
        row: dict[str, Any] = {"name": spec.name, "generation": "", "path": str(options.output), "changed": True}
        row["node"] = node.name if node else ""
        if card:
            row |= {"size": card.size, "sha256": card.sha256}
        emit_json({"images": [row]})
    elif card is None:
        say(f"{options.output}: would be {whose}")
    else:
        say(f"{options.output}: {whose}, {size_text(card.size)}")


def documents_for(
    config: Config, spec: ImageSpec, node: Node | None, server: Callable[[], ServerAddress]
) -> CardDocuments:
    """The documents of a card for `node`, or for any.

    :raises ConfigError: a document is faulty, or what it refers to is not there
    :raises HostError: a document has the server's address, which can't be found out
    """
    from netbootd import assets
    from netbootd.cloudinit.cards import OVERLAY, CardSeeds
    from netbootd.model.network import ServerAddress
    from netbootd.model.node import Node

    seeds = CardSeeds(config, assets.find("cloud-init", "overlays", OVERLAY))
    if node is None:
        name = hostname(spec.name)
        node = Node(name=name, image=spec.name, hostname=name)
    return seeds.build(node, server() if seeds.names_server(node) else ServerAddress(""))


def with_staged_cards(config: Config, specs: list[ImageSpec], server: Callable[[], ServerAddress]) -> list[ImageSpec]:
    """The images to build; those with ``sd_image`` bring the documents of the card image to be staged.

    :raises ConfigError: a document is faulty, or has a secret, which everybody could fetch
    """
    wanted = {image.name for image in config.images if image.sd_image}
    found = []
    for spec in specs:
        if spec.name in wanted:
            documents = documents_for(config, spec, None, server)
            if documents.uses_secrets:
                raise ConfigError(
                    f"[[image]] {spec.name}: sd_image offers a card image to everybody, and its cloud-init has a file"
                    " or environment variable filled in.",
                    hint="Move ${file:…} and ${env:…} into the folders of nodes, or make cards with --target sdcard.",
                )
            spec = replace(spec, card=tuple(documents.files.items()))
        found.append(spec)
    return found


def hostname(name: str) -> str:
    """What a card for any node is called: the image's name, as a host's (RFC 1123 section 2.1)."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:63].strip("-") or "node"


def _node(program: Program, text: str | None) -> Node | None:
    if text is None:
        return None
    from netbootd.service.inspect import Inspector

    return Inspector(program.config, program.layout).node(text)


def _spec(program: Program, names: tuple[str, ...], values: dict[str, Any], node: Node | None) -> ImageSpec:
    """The one image to write.

    :raises UsageError: there are several
    """
    from netbootd.cli.prepare import choose
    from netbootd.service.defaults import default_image

    configured = [image.name for image in program.config.images]
    if not names and not values["release"] and not values["source"] and len(configured) > 1:
        wanted = node.image if node else default_image(program.config, program.generations)
        names = (wanted,) if wanted in configured else ()
    specs = choose(program.config, names, values)
    if len(specs) != 1:
        raise UsageError(
            f"A card has one image, and {len(specs)} are meant: {', '.join(spec.name for spec in specs)}.",
            hint="Name one of them.",
        )
    return specs[0]
