"""A merged document ready to be filled in for one node after the other: what is the same for all is written once."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from netbootd.cloudinit.fill import Filler, has_references, has_secrets
from netbootd.cloudinit.merge import CLOUD_CONFIG, JINJA, Merged, Origin, escape_jinja, map_texts, origins
from netbootd.cloudinit.tree import STRING, Mapping, Scalar, combined, dump, fault, scalars
from netbootd.errors import ConfigError

_FRAGILE = re.compile(r"\{\{.*?\}\}|\{%.*?%\}")


@dataclass(frozen=True, slots=True)
class Template:
    """One document. `chunks` are its top-level keys in order: as text, or where something is to be filled in as a tree.

    A document that is not YAML has one `Scalar` instead. `source` is the whole text before anything is filled in: the
    same source makes the same document for a node.
    """

    chunks: tuple[str | Mapping | Scalar, ...]
    source: str
    jinja: bool
    uses_secrets: bool
    origins: tuple[Origin, ...]

    def takes(self, key: str) -> bool:
        """Whether a top-level key can be added: the document is cloud-config, and does not have it."""
        names = (chunk.entries if isinstance(chunk, Mapping) else () for chunk in self.chunks)
        if not self.chunks or isinstance(self.chunks[0], Scalar) or any((STRING, key) in name for name in names):
            return False
        return not any(origin.key == key or origin.key.startswith((f"{key}.", f"{key}[")) for origin in self.origins)

    def fill(self, filler: Filler) -> bytes:
        """The document for one node; empty where there is nothing to say.

        :raises ConfigError: something that it refers to is not there; all that is not, at once
        """
        faults: list[ConfigError] = []
        if self.jinja:
            filler = replace(filler, escape=escape_jinja)

        def filled(scalar: Scalar) -> Scalar:
            if scalar.tag != STRING or not has_references(scalar.value):
                return scalar
            try:
                value = filler(scalar.value, scalar.place)
            except ConfigError as error:
                faults.append(error)
                return scalar
            return replace(scalar, value=value, style="|" if "\n" in value else scalar.style)

        texts = []
        for chunk in self.chunks:
            if isinstance(chunk, Mapping):
                texts.append(dump(map_texts(chunk, filled, keys=False)))
            else:
                texts.append(filled(chunk).value if isinstance(chunk, Scalar) else chunk)
        if faults:
            raise combined(faults, "The document")
        return "".join(texts).encode()


def make_template(merged: Merged, *, cloud_config: bool) -> Template:
    """The template of a merged document; `cloud_config` gives it the header that cloud-init goes by.

    :raises ConfigError: a Jinja expression can't be written as it was
    """
    if merged.text:
        text = merged.text.value
        origin = Origin("(all)", merged.text.place)
        return Template((merged.text,), text, merged.jinja, has_secrets(text), (origin,))
    if merged.tree is None:
        return Template((), "", False, False, ())
    header = (f"{JINJA}\n" if merged.jinja else "") + (f"{CLOUD_CONFIG}\n" if cloud_config else "")
    chunks: list[str | Mapping] = [header]
    source = [header]
    for identity, entry in merged.tree.entries.items():
        chunk = Mapping({identity: entry}, False, merged.tree.place)
        text = dump(chunk)
        source.append(text)
        if merged.jinja:
            _check_jinja(chunk, text)
        dynamic = any(has_references(scalar.value) for scalar in scalars(chunk) if scalar.tag == STRING)
        chunks.append(chunk if dynamic else text)
    secrets = any(has_secrets(scalar.value) for scalar in scalars(merged.tree) if scalar.tag == STRING)
    return Template(tuple(chunks), "".join(source), merged.jinja, secrets, tuple(origins(merged.tree)))


def _check_jinja(chunk: Mapping, text: str) -> None:
    """Jinja comes before YAML on the node, so a quote in an expression must not have been doubled or escaped."""
    for scalar in scalars(chunk):
        for expression in _FRAGILE.findall(scalar.value):
            if expression not in text:
                raise fault(
                    scalar.place,
                    f"{expression} would be changed by YAML's quoting.",
                    "Write the value as a block (|) without spaces at line ends.",
                )
