"""``netbootd prepare``: build the images that nodes boot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from netbootd.cli.common import Program, json_option, pass_program
from netbootd.cli.output import emit_json, say
from netbootd.cli.serve import address
from netbootd.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from netbootd.config.schema import Config
    from netbootd.model.image import ImageSpec
    from netbootd.model.network import ServerAddress

_ARCHIVE_SUFFIXES = (".xz", ".zst", ".gz", ".zip", ".tar", ".img", ".raw", ".iso")


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--release", help="build this release, such as noble, 24.04.3 or raspios-trixie-lite")
@click.option("--source", metavar="URL-or-FILE", help="build this image file or archive")
@click.option("--name", help="what to call the image  [the release as given, or the source's file name]")
@click.option("--arch", default=None, help="the nodes' architecture  [arm64]")
@click.option("--sha256", metavar="HEX", help="the digest that the source must have")
@click.option("--mirror", metavar="URL", help="take the publisher's files from here (http, https, file or a folder)")
@click.option(
    "--keyring",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="also trust checksums signed by a key of this OpenPGP keyring",
)
@click.option("--insecure-skip-verify", is_flag=True, help="build even what can't be shown to be authentic")
@click.option(
    "--unprivileged",
    is_flag=True,
    help="keep owners, modes and devices in a file beside the root: netbootd's own NFS serves by it",
)
@click.option(
    "--advertise",
    type=address,
    metavar="ADDR",
    help="the server's address, to be written into the boot files  [the configuration's, else found out]",
)
@click.option(
    "--target",
    type=click.Choice(["netboot", "sdcard"]),
    default="netboot",
    help="what to make: a root for all nodes to boot from, or the image of a card  [netboot]",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="write the card image there (sdcard)",
)
@click.option("--compress", type=click.Choice(["xz"]), help="pack the card image (sdcard)")
@click.option("--node", metavar="NODE", help="write this node's cloud-init onto the card (sdcard)  [any node's]")
@click.option("--force", is_flag=True, help="build again although nothing has changed")
@click.option("--dry-run", is_flag=True, help="say what would be built, and build nothing")
@json_option
@pass_program
def command(program: Program, /, names: tuple[str, ...], as_json: bool, **values: Any) -> None:
    """Build the images of the configuration (all, or the named ones; noble where none is configured).

    Downloads, verifies, reads, exports, patches and publishes; no mounts, no loop devices. --release or --source builds
    one that the configuration need not list. Running it again does nothing unless something has changed.

    A plain user can't make a root file system as it is in the image, and prepare refuses. With --unprivileged what the
    user can't make is noted beside it, and only netbootd's own NFS server, not the kernel's, can serve the result.

    With --target sdcard it writes the publisher's image to a file instead, for a node that boots from a card of its
    own: with the node's cloud-init in the boot partition, and all else as published.
    """
    import asyncio

    from netbootd.cli import sdcard

    sdcard.check_options(values)
    if values["target"] == "sdcard":
        sdcard.run(program, names, values, lambda: _server(program.config, values["advertise"] or ""), as_json)
        return
    specs = choose(program.config, names, values)

    from netbootd.cli.progress import reporter
    from netbootd.images.build import BuildOptions, build_image

    options = BuildOptions(
        mirror=values["mirror"],
        keyring=values["keyring"],
        skip_verify=values["insecure_skip_verify"],
        force=values["force"],
        dry_run=values["dry_run"],
        unprivileged=values["unprivileged"],
    )
    server = _server(program.config, values["advertise"] or "")
    specs = sdcard.with_staged_cards(program.config, specs, lambda: server)
    results = []
    for spec in specs:
        with reporter(spec.name, quiet=program.quiet) as progress:
            result = asyncio.run(build_image(spec, program.generations, server, options, progress))
        results.append(result)
        if not as_json:
            verb = "would be" if options.dry_run else "is now"
            say(
                f"{result.name}: generation {result.generation} {verb} current, in {result.path}"
                if result.changed
                else f"{result.name}: generation {result.generation} is up to date; nothing to do."
            )
    if as_json:
        emit_json(
            {
                "images": [
                    {"name": r.name, "generation": r.generation, "path": str(r.path), "changed": r.changed}
                    for r in results
                ]
            }
        )


def choose(config: Config, names: tuple[str, ...], values: dict[str, Any]) -> list[ImageSpec]:
    """What to build, from the configuration and the command line.

    :raises UsageError: arguments that don't go together
    :raises NotFoundError: a name that isn't configured
    """
    from netbootd.model.image import ImageSpec
    from netbootd.store.layout import check_name

    release, source = values["release"], values["source"]
    if release and source:
        raise UsageError("--release and --source exclude each other.", hint="Give one of them.")
    if names and (release or source):
        raise UsageError(
            f"{names[0]} names an image of the configuration, --release and --source build another.",
            hint="Give --name to choose what the image is called.",
        )
    configured = {image.name: image.spec() for image in config.images}
    if release or source:
        name = check_name(values["name"] or release or _name_of(source))
        base = configured.get(name, ImageSpec(name=name))
        spec = replace(base, release=release or "", source=source or "", sha256=values["sha256"] or "")
        return [replace(spec, arch=values["arch"] or base.arch)]
    for option in ("name", "sha256"):
        if values[option]:
            raise UsageError(f"--{option} goes with --release or --source.", hint="Say which image is meant.")
    unknown = [name for name in names if name not in configured]
    if unknown:
        have = ", ".join(configured) or "none"
        raise NotFoundError(
            f"No [[image]] is called {unknown[0]}.", hint=f"Configured: {have}. Did you mean --release {unknown[0]}?"
        )
    specs = [spec for name, spec in configured.items() if not names or name in names]
    specs = specs or [ImageSpec(name="noble", release="noble")]
    return [replace(spec, arch=values["arch"] or spec.arch) for spec in specs]


def _name_of(source: str) -> str:
    """What an image from a source is called unless --name says: its file's name without the archive's endings."""
    name = source.rstrip("/").rpartition("/")[2].replace("%2B", "+").replace("%2b", "+").partition("?")[0]
    while True:
        stem, dot, ending = name.rpartition(".")
        if not dot or f".{ending.lower()}" not in _ARCHIVE_SUFFIXES:
            return name
        name = stem


def _server(config: Config, advertise: str) -> ServerAddress:
    """The server as it is written into the image."""
    from netbootd.host.links import address_to_advertise
    from netbootd.model.network import ServerAddress

    chosen = address_to_advertise(advertise, str(config.server.address or ""), config.server.interface, ())
    return ServerAddress(
        address=chosen,
        http_port=config.http.port,
        nfs_port=config.nfs.port,
        mount_port=config.nfs.port,
        portmap_port=config.nfs.portmap_port,
    )
