"""``netbootd images``: generations of images, and switching between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from netbootd.cli.common import Program, json_option, pass_program
from netbootd.cli.output import emit_json, note, say, size_text, table
from netbootd.errors import FormatError, NotFoundError
from netbootd.model.image import Generation

if TYPE_CHECKING:
    from netbootd.service.usage import Usage
    from netbootd.store.archives import Archive


@click.group()
def command() -> None:
    """List generations of images; activate, roll back, prune."""


@command.command("list")
@json_option
@pass_program
def list_(program: Program, as_json: bool) -> None:
    """List every image and its generations, oldest first."""
    rows = [_row(program, generation) for name in program.generations.names() for generation in _all(program, name)]
    if as_json:
        emit_json({"images": rows})
    elif rows:
        shown = [{**row, "current": "current" if row["current"] else ""} for row in rows]
        columns = [("name", "IMAGE"), ("generation", "GENERATION"), ("created", "CREATED")]
        say(table(shown, [*columns, ("current", ""), ("verified", "VERIFIED"), ("url", "SOURCE")]))
    else:
        say("No image is prepared yet; netbootd prepare builds one.")


@command.command(short_help="Show what the current generation is made of.")
@click.argument("name")
@json_option
@pass_program
def show(program: Program, name: str, as_json: bool) -> None:
    """Show what the current generation of image NAME was made of, and what was patched."""
    generation = program.generations.current(name)
    if generation is None:
        _all(program, name)
        raise NotFoundError(f"Image {name} has no current generation.", hint=f"netbootd images activate {name} ID")
    manifest = program.generations.manifest(generation)
    if as_json:
        emit_json(manifest)
        return
    source = manifest.get("source", {})
    say(f"image       {name}")
    say(f"generation  {generation.id}")
    say(f"path        {generation.path}")
    say(f"created     {manifest.get('created', '-')}")
    say(f"source      {source.get('url', '-')}")
    say(f"sha256      {source.get('sha256', '-')}")
    say(f"verified    {_verified(source)}")
    if manifest.get("unprivileged"):
        say(
            f"attributes  {generation.attributes}, by which netbootd's own NFS server serves (made with --unprivileged)"
        )
    for patch in manifest.get("patches", []):
        say(f"patched     {patch.get('path')}: {patch.get('why')}")


@command.command(short_help="List what the publishers offer.")
@click.option("--mirror", metavar="URL", help="ask here instead (http, https, file or a folder; or an index, ….json)")
@json_option
@pass_program
def releases(program: Program, mirror: str | None, as_json: bool) -> None:
    """List what the publishers offer, by the names that prepare's --release takes.

    Both publishers are asked; where one can't be reached, that is said, and the other's images are listed.
    """
    import asyncio
    from dataclasses import asdict

    from netbootd.images.catalog import list_offers
    from netbootd.images.catalog.publishers import Publishers
    from netbootd.images.documents import Documents

    found = asyncio.run(list_offers(Publishers.at(Documents(tell=note), mirror)))
    for problem in found.problems:
        note(f"netbootd: {problem}")
    rows = [asdict(offer) for offer in found.offers]
    if as_json:
        emit_json({"releases": rows})
    elif rows:
        shown = [{**row, "size": size_text(row["size"]) if row["size"] else ""} for row in rows]
        columns = [("name", "RELEASE"), ("version", "VERSION"), ("arch", "ARCH"), ("date", "DATE"), ("size", "SIZE")]
        say(table(shown, [*columns, ("title", "TITLE")]))
    else:
        say("Nothing is offered there.")


@command.command(short_help="Make another generation current.")
@click.argument("name")
@click.argument("generation")
@pass_program
def activate(program: Program, name: str, generation: str) -> None:
    """Make GENERATION of image NAME the one that new boots get."""
    _all(program, name)
    chosen = program.generations.get(name, generation)
    program.generations.activate(chosen)
    say(f"{name}: {chosen.id} is current; nodes get it at their next boot.")


@command.command(short_help="Go back to the generation before.")
@click.argument("name")
@pass_program
def rollback(program: Program, name: str) -> None:
    """Make the generation before the current one of image NAME current."""
    _all(program, name)
    chosen = program.generations.rollback(name)
    say(f"{name}: back to {chosen.id}; nodes get it at their next boot.")


@command.command()
@click.option("--keep", type=click.IntRange(min=1), default=2, show_default=True, help="so many of the newest stay")
@click.option("--force", is_flag=True, help="also those that a node still runs from")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@pass_program
def prune(program: Program, keep: int, force: bool, as_json: bool) -> None:
    """Delete old generations of every image, and downloaded archives that none is made of any more.

    The current one always stays, and so does one that a node booted from until the node is seen on another. All stay
    while a client of which nothing is recorded is connected to NFS. Of the archives the newest stays too, and what is
    still being downloaded.
    """
    from contextlib import ExitStack

    gone = []
    with ExitStack() as locks:  # all at once: an archive may be what a build has just fetched
        for name in program.generations.places():
            locks.enter_context(program.generations.locked(name, f"Pruning {name}"))
        usage = None if force else _usage(program)
        for name in program.generations.names():
            every = [generation.id for generation in program.generations.all(name)]
            gone += program.generations.prune(name, keep, usage.in_use(name, every) if usage else ())
        archives = _prune_archives(program)
    if as_json:
        emit_json(
            {
                "pruned": [{"name": old.name, "generation": old.id} for old in gone],
                "archives": [{"sha256": old.sha256, "path": str(old.path), "size": old.size} for old in archives],
            }
        )
        return
    for old in gone:
        say(f"deleted {old.name} {old.id}")
    for archive in archives:
        say(f"deleted {archive.path.name} ({size_text(archive.size)}), of which no image is made")
    if not gone and not archives:
        say("Nothing to delete.")


def _prune_archives(program: Program) -> list[Archive]:
    """Delete the archives that no generation is made of. Where one can't be asked, all stay."""
    from netbootd.store.archives import Archives

    generations = program.generations
    every = (generation for name in generations.names() for generation in generations.all(name))
    try:
        needed = {str(generations.manifest(generation)["source"]["sha256"]) for generation in every}
    except (FormatError, LookupError, TypeError) as error:
        note(f"netbootd: the downloads stay as they are, since an image does not say what it is made of: {error}")
        return []
    return Archives(program.layout).prune(needed)


def _usage(program: Program) -> Usage:
    from netbootd.service.usage import connected_clients, usage_of

    database = program.open_database()
    try:
        records = database.nodes() if database is not None else []
    finally:
        if database is not None:
            database.close()
    usage = usage_of(records, connected_clients(program.config.nfs.port))
    if usage.strangers:
        who = ", ".join(usage.strangers[:5]) + (" and others" if len(usage.strangers) > 5 else "")
        note(f"netbootd: {who} may be reading any generation, so all stay; --force deletes old ones nonetheless.")
    return usage


def _all(program: Program, name: str) -> list[Generation]:
    found = program.generations.all(name)
    if not found:
        have = ", ".join(program.generations.names()) or "none"
        raise NotFoundError(f"There is no image {name}.", hint=f"Prepared images: {have}.")
    return found


def _row(program: Program, generation: Generation) -> dict[str, Any]:
    current = program.generations.current(generation.name)
    row: dict[str, Any] = {
        "name": generation.name,
        "generation": generation.id,
        "path": str(generation.path),
        "current": current == generation,
    }
    try:
        manifest = program.generations.manifest(generation)
    except FormatError:
        return row
    source = manifest.get("source", {})
    row |= {"created": manifest.get("created"), "url": source.get("url"), "verified": _verified(source)}
    return {**row, "unprivileged": manifest.get("unprivileged") is True}


def _verified(source: dict[str, Any]) -> str:
    if not source.get("verified"):
        return "no"
    return f"by key {source['key']}" if source.get("key") else "by sha256"
