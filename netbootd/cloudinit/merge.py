"""One cloud-init document out of those of several folders, and which folder each value came from.

Folders merge in order. Mappings are merged key by key, however deep; lists are joined; anything else is replaced by
what the later folder says. A tag between a key and its value says otherwise for that key: ``!replace`` takes the new
value alone (and with no value takes the key out), ``!append`` joins, which for texts means one behind the other.

``## template: jinja`` (cloud-init's own templates, rendered on the node) passes untouched: where one folder's document
has that first line, so has the result, and braces of the others' values are written such that they come out of Jinja
as they are. A document that only Jinja can read, or one that is not #cloud-config at all, can't be merged: it passes
if it is the only one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from netbootd.cloudinit.tree import APPEND, NULL, REPLACE, STRING, Listing, Mapping, Place, Scalar, Tree, fault, parse
from netbootd.errors import ConfigError

CLOUD_CONFIG = "#cloud-config"
JINJA = "## template: jinja"

_OTHER_KINDS = re.compile(
    r"#!|#include|#cloud-boothook|#part-handler|#upstart-job|#cloud-config-archive|#cloud-config-jsonp"
    r"|(?:content-type|mime-version):|\x1f\x8b",
    re.IGNORECASE,
)
"""How user-data begins that is something else to cloud-init (cloudinit/handlers/__init__.py, INCLUSION_TYPES_MAP)."""

_JINJA_OPENS = re.compile(r"\{(?=[{%#])")
_JINJA_BRACE = "{{ {}|string|first }}"
"""Jinja for one opening brace, without a quote that YAML could double."""


@dataclass(frozen=True, slots=True)
class Part:
    """One folder's document. What can't be merged has `text` instead of a `tree`, and `why` it can't."""

    source: str
    tree: Mapping | None
    jinja: bool = False
    text: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Merged:
    """The result: a tree, or as `text` the whole of the one part that could not be merged with others."""

    tree: Mapping | None
    jinja: bool
    text: Scalar | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """Where one value of a merged document came from: ``write_files[1]`` from line 12 of a file."""

    key: str
    place: Place


def read_part(data: bytes, source: str, *, cloud_config: bool) -> Part:
    """A folder's document.

    :param cloud_config: it is user-data or vendor-data, which may be other things than YAML
    :raises ConfigError: it is faulty; by file and line
    """
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise fault(Place(source, 0), f"not UTF-8 text (at byte {error.start}).") from None
    if not cloud_config:
        return Part(source, parse(text, source))
    first, _, rest = text.partition("\n")
    jinja = re.match(r"##\s*template:\s*jinja\s*\Z", first, re.IGNORECASE) is not None
    if _OTHER_KINDS.match(rest if jinja else text):
        return Part(
            source, None, jinja, text, f"is not {CLOUD_CONFIG} but begins with {(rest if jinja else first)[:20]!r}"
        )
    if not jinja:
        return Part(source, parse(text, source))
    try:
        tree = parse(text, source)
    except ConfigError as error:
        return Part(source, None, True, text, f"can't be read before Jinja has rendered it ({error.message})")
    inside = sum(scalar.value.count("{%") for scalar in _texts(tree))
    if inside != text.count("{%"):
        return Part(source, None, True, text, "has Jinja statements ({% … %}) outside of values")
    return Part(source, tree, True)


def merge(parts: Sequence[Part]) -> Merged:
    """The parts as one document, later ones over earlier ones.

    :raises ConfigError: they can't be merged
    """
    for part in parts:
        if part.text:
            others = [other.source for other in parts if other is not part and (other.tree or other.text)]
            if others:
                raise ConfigError(
                    f"{part.source}: it {part.why}, so it can't be merged with {others[0]}.",
                    hint="Put a script under write_files and runcmd, and Jinja into values.",
                )
            return Merged(None, part.jinja, Scalar(part.text, STRING, None, Place(part.source, 0)))
    jinja = any(part.jinja for part in parts)
    result = Mapping({}, False, Place("", 0))
    for part in parts:
        if part.tree is not None:
            tree = part.tree if part.jinja or not jinja else map_texts(part.tree, for_jinja, keys=True)
            result = _over(result, tree)
    return Merged(result if result.entries else None, jinja)


def _over(lower: Mapping, upper: Mapping) -> Mapping:
    entries = {} if upper.directive == REPLACE else dict(lower.entries)
    for identity, (key, value) in upper.entries.items():
        below = entries.get(identity)
        if value.directive == REPLACE and isinstance(value, Scalar) and value.tag == NULL:
            entries.pop(identity, None)
            continue
        entries[identity] = (below[0] if below else key, _combined(below[1] if below else None, value))
    return Mapping(entries, lower.flow and upper.flow if lower.entries else upper.flow, upper.place)


def _combined(lower: Tree | None, upper: Tree) -> Tree:
    if upper.directive == REPLACE or lower is None or (isinstance(lower, Scalar) and lower.tag == NULL):
        lower = None
    if isinstance(upper, Mapping):
        if isinstance(lower, Mapping):
            return _over(lower, upper)
        alone = _over(Mapping({}, upper.flow, upper.place), upper)
        return _appended(lower, alone) if upper.directive == APPEND and lower is not None else alone
    if isinstance(upper, Listing) and isinstance(lower, Listing):
        return Listing(lower.items + upper.items, lower.flow and upper.flow, upper.place)
    if upper.directive == APPEND and lower is not None:
        return _appended(lower, upper)
    return replace(upper, directive="")


def _appended(lower: Tree, upper: Tree) -> Tree:
    if isinstance(lower, Listing):
        return Listing((*lower.items, replace(upper, directive="")), lower.flow, upper.place)
    if isinstance(lower, Scalar) and isinstance(upper, Listing):
        return Listing((lower, *upper.items), upper.flow, upper.place)
    if isinstance(lower, Scalar) and isinstance(upper, Scalar) and lower.tag == upper.tag == STRING:
        value = lower.value + upper.value
        return Scalar(value, STRING, "|" if "\n" in value else '"', upper.place)
    raise _cannot_append(lower, upper)


def _cannot_append(lower: Tree, upper: Tree) -> ConfigError:
    kinds = {Mapping: "a mapping", Listing: "a list", Scalar: "a single value"}
    return fault(upper.place, f"{kinds[type(upper)]} can't be appended to {kinds[type(lower)]} ({lower.place}).")


def map_texts(tree: Mapping, change: Callable[[Scalar], Scalar], *, keys: bool) -> Mapping:
    """The tree with `change` applied to every value, and to every key if `keys`."""

    def below(item: Tree) -> Tree:
        if isinstance(item, Mapping):
            return map_texts(item, change, keys=keys)
        if isinstance(item, Listing):
            return replace(item, items=tuple(map(below, item.items)))
        return change(item)

    entries = {
        identity: (change(key) if keys else key, below(value)) for identity, (key, value) in tree.entries.items()
    }
    return replace(tree, entries=entries)


def for_jinja(scalar: Scalar) -> Scalar:
    """A value that Jinja renders to what it is now."""
    return replace(scalar, value=escape_jinja(scalar.value)) if scalar.tag == STRING else scalar


def escape_jinja(text: str) -> str:
    """A text that Jinja renders to what it is now."""
    return _JINJA_OPENS.sub(lambda _: _JINJA_BRACE, text)


def origins(tree: Mapping, prefix: str = "") -> Iterator[Origin]:
    """Where each value came from: mappings key by key, lists item by item."""
    for key, value in tree.entries.values():
        path = f"{prefix}.{key.value}" if prefix else key.value
        if isinstance(value, Mapping) and value.entries:
            yield from origins(value, path)
        elif isinstance(value, Listing) and value.items:
            for number, item in enumerate(value.items):
                yield Origin(f"{path}[{number}]", item.place)
        else:
            yield Origin(path, value.place)


def _texts(tree: Mapping | None) -> Iterator[Scalar]:
    """Every key and value."""
    stack: list[Tree] = [tree] if tree else []
    while stack:
        item = stack.pop()
        if isinstance(item, Mapping):
            stack += [part for entry in item.entries.values() for part in entry]
        elif isinstance(item, Listing):
            stack += item.items
        else:
            yield item
