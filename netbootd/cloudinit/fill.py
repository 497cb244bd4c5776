"""The contract's three substitutions: ``${file:PATH}``, ``${env:NAME}`` and ``${node:FIELD}``.

``$${`` is a literal ``${``; anything else with a dollar stays as it is, so that shell scripts pass. What is filled in
is text and stays inside its value: it can't add keys. A file's last line break is left out.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from netbootd.cloudinit.tree import Place, combined, fault
from netbootd.errors import ConfigError

_REFERENCE = re.compile(r"\$\$\{|\$\{(file|env|node):([^{}\n]*)\}")
_MAX_BYTES = 1 << 20


def has_references(text: str) -> bool:
    """Whether filling in would change the text."""
    return _REFERENCE.search(text) is not None


def has_secrets(text: str) -> bool:
    """Whether a file or an environment variable is to be filled in."""
    return any(match[1] in ("file", "env") for match in _REFERENCE.finditer(text))


@dataclass(frozen=True, slots=True)
class Filler:
    """Fills in texts for one node.

    :param base: what the paths of ``${file:…}`` are relative to
    :param fields: what ``${node:…}`` can name
    :param escape: applied to what is filled in
    """

    base: Path
    fields: Mapping[str, str]
    escape: Callable[[str], str] = str

    def __call__(self, text: str, place: Place) -> str:
        """The text with everything filled in.

        :raises ConfigError: something that it names is not there; all that is not, at once
        """
        faults: list[ConfigError] = []

        def value(match: re.Match[str]) -> str:
            if match[1] is None:
                return "${"
            try:
                return self.escape(self._value(match[1], match[2].strip(), place))
            except ConfigError as error:
                faults.append(error)
                return ""

        filled = _REFERENCE.sub(value, text)
        if faults:
            raise combined(faults, str(place))
        return filled

    def _value(self, kind: str, name: str, place: Place) -> str:
        if kind == "node":
            if name in self.fields:
                return self.fields[name]
            near = difflib.get_close_matches(name, self.fields, n=1)
            hint = f"Did you mean ${{node:{near[0]}}}?" if near else f"A node has {', '.join(sorted(self.fields))}."
            raise fault(place, f"${{node:{name}}}: a node has no such field.", hint)
        if kind == "env":
            try:
                return os.environ[name]
            except (KeyError, ValueError):
                hint = "Set it for the service, for example with EnvironmentFile= in its systemd unit."
                raise fault(place, f"${{env:{name}}}: the environment variable is not set.", hint) from None
        return self._file(name, place)

    def _file(self, name: str, place: Place) -> str:
        what = f"${{file:{name}}}"
        try:
            path = self.base / Path(name).expanduser()
            if not path.is_file():
                raise fault(place, f"{what}: {path} {'is no file' if path.exists() else 'is not there'}.")
            with path.open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
        except (OSError, ValueError, RuntimeError) as error:
            raise fault(place, f"{what} can't be read: {getattr(error, 'strerror', None) or error}.") from None
        if len(data) > _MAX_BYTES:
            raise fault(place, f"{what} is larger than {_MAX_BYTES >> 10} KiB.")
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            raise fault(place, f"{what} is not UTF-8 text.", "Encode it, for example with base64.") from None
        return text[:-1].removesuffix("\r") if text.endswith("\n") else text
