"""YAML as a tree that remembers how each value was written and where (YAML 1.1 by PyYAML, as cloud-init reads it).

A value stays the text that the operator wrote: ``0644``, ``yes`` and ``"{{ v1.region }}"`` come out as they went in.
Aliases are written out, merge keys (``<<``) resolved, comments lost. Refused: keys that occur twice, keys that are not
scalars, tags other than YAML's own and ours, and trees that grow beyond bounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import yaml

from netbootd.errors import ConfigError

REPLACE: Final = "!replace"
APPEND: Final = "!append"

_CORE = "tag:yaml.org,2002:"
STRING: Final = _CORE + "str"
NULL: Final = _CORE + "null"
_MERGE = _CORE + "merge"
_SCALAR_TAGS = frozenset(_CORE + name for name in ("str", "int", "float", "bool", "null", "timestamp", "binary"))
_LIST_TAG, _MAP_TAG = _CORE + "seq", _CORE + "map"

MAX_BYTES = 1 << 20
MAX_VALUES = 50_000
MAX_DEPTH = 60

_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_NO_WIDTH = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Place:
    """A file (or another source, by name) and a line in it, from 1; 0 where there are no lines."""

    source: str
    line: int

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value as text. `tag` is its resolved YAML type, `style` how it was written (``|``, ``'``, ``"`` or None)."""

    value: str
    tag: str
    style: str | None
    place: Place
    directive: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """A YAML sequence. `flow` tells that it was written in brackets."""

    items: tuple[Tree, ...]
    flow: bool
    place: Place
    directive: str = ""


@dataclass(frozen=True, slots=True)
class Mapping:
    """A YAML mapping; its keys are scalars, told apart by type and text, in the order in which they were written."""

    entries: Entries
    flow: bool
    place: Place
    directive: str = ""


Tree = Scalar | Listing | Mapping
Entries = dict[tuple[str, str], tuple[Scalar, Tree]]
"""By type and text of the key: the key as written, and the value."""


def fault(place: Place, problem: str, hint: str = "") -> ConfigError:
    """The error that names a file and a line of it; control characters of the document show as escapes."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in f"{place}: {problem}")
    return ConfigError(text, hint=hint)


def combined(errors: Sequence[ConfigError], subject: str) -> ConfigError:
    """Several faults as one error with a line each; a single one as it is.

    :param subject: what is faulty, for the message
    """
    if len(errors) == 1:
        return errors[0]
    lines = [line for error in errors for line in fault_lines(error)]
    return ConfigError(f"{subject} has {len(lines)} faults:", details=dict.fromkeys(lines))


def fault_lines(error: ConfigError) -> tuple[str, ...]:
    """Each fault of an error on a line, its hint behind it."""
    return error.details or (" ".join(part for part in (error.message, error.hint) if part),)


def parse(text: str, source: str, *, lines: bool = True) -> Mapping | None:
    """The tree of a document that is a mapping; None for one that is empty.

    :param lines: whether the source has lines that mean something to the operator
    :raises ConfigError: anything that the first lines of this module refuse, by file and line
    """
    try:
        loader = yaml.SafeLoader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise fault(Place(source, line), f"not YAML: the character #x{error.character:02x} is not allowed.") from None
    loader.name = source
    try:
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        hint = "Quote a value with ${…} or {{…}} inside [ ] and { }." if "${" in text or "{{" in text else ""
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise fault(Place(source, mark.line + 1 if mark else 0), f"not YAML: {problem}.", hint) from None
    except yaml.YAMLError as error:
        raise fault(Place(source, 0), f"not YAML: {str(error).splitlines()[0]}.") from None
    except RecursionError:
        raise fault(Place(source, 0), "nested too deeply.") from None
    finally:
        loader.dispose()
    if node is None or (isinstance(node, yaml.ScalarNode) and node.tag == NULL):
        return None
    tree = _Reader(source, loader, lines=lines).read(node, 0, directives=True)
    if not isinstance(tree, Mapping):
        raise fault(tree.place, "a mapping is expected, lines of the form KEY: VALUE.")
    return tree


class _Reader:
    """Turns PyYAML's nodes into a tree and counts what it makes, since aliases multiply."""

    def __init__(self, source: str, loader: yaml.SafeLoader, *, lines: bool) -> None:
        self._source = source
        self._lines = lines
        self._loader = loader
        self._count = 0

    def read(self, node: yaml.Node, depth: int, *, directives: bool = False) -> Tree:
        place = self._place(node)
        self._count += 1
        if self._count > MAX_VALUES or depth > MAX_DEPTH:
            raise fault(place, "too many or too deeply nested values (an alias within itself?).")
        directive = ""
        if node.tag in (REPLACE, APPEND):
            if not directives:
                raise fault(place, f"{node.tag} goes between a key and its value, and not within a list.")
            directive = node.tag
        elif not _allowed(node):
            raise fault(place, f"the tag {node.tag.replace(_CORE, '!!')} is not known here.")
        if isinstance(node, yaml.SequenceNode):
            items = tuple(self.read(item, depth + 1) for item in node.value)
            return Listing(items, bool(node.flow_style), place, directive)
        if isinstance(node, yaml.MappingNode):
            entries = self._entries(node, depth, directives=directives)
            return Mapping(entries, bool(node.flow_style), place, directive)
        style: str | None = getattr(node, "style", None)
        tag: str = node.tag
        if directive:  # the tag was ours, so the type is told as if there were none
            resolve: Any = self._loader.resolve
            tag = resolve(yaml.ScalarNode, node.value, (style is None, style is not None))
        return Scalar(node.value, tag, "|" if style == ">" else style, place, directive)

    def _entries(self, node: yaml.MappingNode, depth: int, *, directives: bool) -> Entries:
        own: Entries = {}
        merged: Entries = {}
        for key_node, value_node in node.value:
            place = self._place(key_node)
            if key_node.tag == _MERGE:
                for mapping in self._merged(value_node, depth):
                    for identity, entry in mapping.entries.items():
                        merged.setdefault(identity, entry)
                continue
            if not isinstance(key_node, yaml.ScalarNode) or not _allowed(key_node):
                raise fault(place, "a key must be a plain word.")
            key = Scalar(key_node.value, key_node.tag, key_node.style, place)
            identity = (key.tag, key.value)
            if identity in own:
                first = own[identity][0].place.line
                raise fault(place, f"the key {key.value} is here twice; the first is in line {first}.")
            own[identity] = (key, self.read(value_node, depth + 1, directives=directives))
        return {**{identity: entry for identity, entry in merged.items() if identity not in own}, **own}

    def _place(self, node: yaml.Node) -> Place:
        return Place(self._source, node.start_mark.line + 1 if self._lines else 0)

    def _merged(self, node: yaml.Node, depth: int) -> Iterator[Mapping]:
        """The mappings behind ``<<``: one, or a list of them, the first wins."""
        for each in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            tree = self.read(each, depth + 1)
            if not isinstance(tree, Mapping):
                raise fault(tree.place, "<< is followed by an alias of a mapping.")
            yield tree


def _allowed(node: yaml.Node) -> bool:
    if isinstance(node, yaml.ScalarNode):
        return node.tag in _SCALAR_TAGS
    return bool(node.tag == (_LIST_TAG if isinstance(node, yaml.SequenceNode) else _MAP_TAG))


def dump(tree: Mapping) -> str:
    """The tree as YAML text: keys in order, no line folded."""
    if not tree.entries:
        return ""
    text: str = yaml.serialize(_node(replace(tree, flow=False)), Dumper=_Dumper, width=_NO_WIDTH, allow_unicode=True)
    return text


def _node(tree: Tree) -> yaml.Node:
    if isinstance(tree, Mapping):
        pairs = [(_node(key), _node(value)) for key, value in tree.entries.values()]
        return yaml.MappingNode(_MAP_TAG, pairs, flow_style=tree.flow)
    if isinstance(tree, Listing):
        return yaml.SequenceNode(_LIST_TAG, [_node(item) for item in tree.items], flow_style=tree.flow)
    return yaml.ScalarNode(tree.tag, tree.value, style=tree.style)


def scalars(tree: Tree) -> Iterator[Scalar]:
    """Every value, and no key."""
    if isinstance(tree, Mapping):
        for _, value in tree.entries.values():
            yield from scalars(value)
    elif isinstance(tree, Listing):
        for item in tree.items:
            yield from scalars(item)
    else:
        yield tree
