"""Turns the exported trees of an image into one that many machines boot over the network: read-only, shared, diskless.

`survey` looks, `apply` changes and tells of each change. What an image is like is found in its files (config.txt's
filters, the initramfs, the units), never by the name or version of a distribution.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from netbootd.formats import cmdline
from netbootd.formats.initramfs import Contents
from netbootd.formats.treeattributes import TreeAttributes
from netbootd.images.originals import Originals
from netbootd.images.patches import bootpart, network, ramdisk, system
from netbootd.images.patches.tree import Patch, Tree
from netbootd.model.facts import ImageFacts
from netbootd.model.network import ServerAddress

REVISION = 3
"""Part of a generation's id: raised whenever the same image would be patched differently."""

__all__ = ["REVISION", "Parameters", "Patch", "apply", "survey"]


@dataclass(frozen=True, slots=True)
class Parameters:
    """What an image is patched with.

    `server` is how nodes reach us, `root_path` the absolute path of the root tree as the server exports it; the
    operator's `cmdline_append` is one line of kernel arguments, `config_append` lines of config.txt.
    """

    server: ServerAddress
    root_path: str
    cmdline_append: str = ""
    config_append: str = ""


def survey(boot: Path, root: Path, record: TreeAttributes | None = None) -> ImageFacts:
    """What the image is like, before anything is changed.

    :param boot: the exported boot partition
    :param root: the exported root file system
    :param record: where the attributes of `root` are kept; None: on disk
    :raises FormatError: it can't be booted by a Raspberry Pi's firmware, or a file of it is broken or hostile
    """
    with Tree(boot, "boot") as boot_tree, Tree(root, "root", record) as root_tree:
        layout = bootpart.survey(boot_tree)
        release = system.os_release(root_tree)
        # Without what is in them: together they may be larger than memory.
        ramdisks = [replace(ramdisk.look(boot_tree, path), contents=Contents({})) for path in layout.initramfs]
        main, *others = layout.cmdlines
        return ImageFacts(
            os_id=release.get("ID", ""),
            os_version=release.get("VERSION_ID", ""),
            cmdline_path=main,
            cmdline_base=bootpart.base_of(boot_tree, main),
            other_cmdlines={path: bootpart.base_of(boot_tree, path) for path in others},
            overlay=ramdisk.overlay_of(ramdisks, root_tree),
            kernels=layout.kernels,
            initramfs=layout.initramfs,
            cloud_init_version=system.cloud_init_version(root_tree),
            initramfs_generator=next((found.generator for found in ramdisks if found.generator), ""),
            network_manager=network.manager_of(root_tree),
            extra={f"unread {found.path}": found.unread for found in ramdisks if found.unread},
        )


def apply(
    boot: Path,
    root: Path,
    facts: ImageFacts,
    parameters: Parameters,
    record: TreeAttributes | None = None,
    originals: Originals | None = None,
) -> list[Patch]:
    """Patch both trees; what was changed, path by path. Done twice it changes nothing more.

    :param facts: what `survey` found in these trees
    :param record: where the attributes of `root` are kept, and kept right; None: on disk
    :param originals: where to keep what gives way
    :raises ConfigError: the command line gets too long, or an appended line can't be read by the firmware
    :raises FormatError: something stands where an operating system has a file
    """
    with (
        Tree(boot, "boot", originals=originals) as boot_tree,
        Tree(root, "root", record, originals) as root_tree,
    ):
        layout = bootpart.survey(boot_tree)
        bases = {facts.cmdline_path: facts.cmdline_base, **facts.other_cmdlines}
        lines = {path: shared_line(facts, base, parameters) for path, base in bases.items()}
        bootpart.apply(boot_tree, layout, lines, parameters.config_append)
        system.apply(root_tree, cloud_init=bool(facts.cloud_init_version))
        network.apply(root_tree)
        for path in layout.initramfs:
            ramdisk.extend(boot_tree, root_tree, ramdisk.look(boot_tree, path), facts.overlay)
        return [*boot_tree.patches, *root_tree.patches]


def shared_line(facts: ImageFacts, base: str, parameters: Parameters) -> str:
    """The command line for whoever asks: as it is rendered for a node, but for the node's identity.

    Its seed is the server's top folder, which tells a node by its address.
    """
    return (
        cmdline.render(
            base,
            server=parameters.server,
            root=parameters.root_path,
            overlay=facts.overlay,
            seed=f"{parameters.server.http_base}/",
            datasource=facts.datasource,
            append=parameters.cmdline_append,
        )
        + "\n"
    )
