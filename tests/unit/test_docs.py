"""The documentation against the code: commands, options, keys and statuses are described, links lead somewhere.

What stands in `docs/reference` is compared with what the program has; shell snippets and commands in the text may name
only what exists.
"""

from __future__ import annotations

import configparser
import dataclasses
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from netbootd import errors
from netbootd.cli.main import COMMANDS, INTERRUPTED, cli
from netbootd.cloudinit.seed import DOCUMENTS, fields_of
from netbootd.config import loader, schema, show
from netbootd.model.event import Outcome, Stage
from netbootd.model.network import ServerAddress
from netbootd.model.node import Node
from netbootd.service.metrics import Metrics, Sources

ROOT = Path(__file__).parent.parent.parent
REFERENCE = ROOT / "docs" / "reference"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "tests" / "README.md"]

_TABLES = {
    "[server]": schema.ServerConfig,
    "[tftp]": schema.TftpConfig,
    "[http]": schema.HttpConfig,
    "[nfs]": schema.NfsConfig,
    "[dhcp]": schema.DhcpConfig,
    "[defaults]": schema.DefaultsConfig,
    "[[image]]": schema.ImageConfig,
    "[[node]]": schema.NodeConfig,
    "[vm]": schema.VmConfig,
}


def names(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


# ---------------------------------------------------------------- what pages consist of


def sections(text: str) -> dict[str, str]:
    """The text below each heading, by the heading without its marks."""
    parts = re.split(r"^#+ (.+)$", _without_fences(text), flags=re.MULTILINE)
    return {heading.strip(): body for heading, body in zip(parts[1::2], parts[2::2], strict=True)}


def rows(text: str) -> list[list[str]]:
    """The cells of every table row but headings."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    rules = {number for number, row in enumerate(cells) if all(re.fullmatch(r":?-+:?", cell) for cell in row)}
    return [row for number, row in enumerate(cells) if number not in rules and number + 1 not in rules]


def code(text: str) -> Iterator[str]:
    """Every line of a shell snippet (indented, or in a fence without a language or of a shell), and every code span."""
    fence: str | None = None
    for line in text.splitlines():
        if line.startswith("```"):
            fence = line[3:].strip() if fence is None else None
        elif fence in ("", "sh", "console") or (fence is None and line.startswith("    ")):
            yield line.strip()
    joined = " ".join(_without_fences(text).split())
    yield from re.findall(r"`([^`]+)`", joined)


def _without_fences(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def first_code(cell: str) -> str:
    match = re.search(r"`([^`]+)`", cell)
    return match[1] if match else ""


# ---------------------------------------------------------------- the command line


def commands() -> dict[tuple[str, ...], click.Command]:
    """Every command by its words; the program itself is the empty tuple."""
    context = click.Context(cli)
    found: dict[tuple[str, ...], click.Command] = {(): cli}
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        found[(name,)] = command
        if isinstance(command, click.Group):
            found.update({(name, below): inner for below, inner in command.commands.items()})
    return found


EVERY = commands()


def options(command: click.Command) -> set[str]:
    """Its options as one writes them, help's aside."""
    given = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    return {word for option in given for word in (*option.opts, *option.secondary_opts)} - {"--help", "-h"}


@pytest.mark.parametrize("words", EVERY, ids=lambda words: " ".join(words) or "netbootd")
def test_every_command_and_option_is_in_the_reference(words: tuple[str, ...]) -> None:
    text = (REFERENCE / "command-line.md").read_text()
    chapters = {heading.partition(" [")[0]: body for heading, body in sections(text).items()}
    chapter = chapters[" ".join(("netbootd", *words[:1]))] if words else chapters["The command line"]
    if len(words) == 2:
        described = [first_code(row[0]) for row in rows(chapter)]
        assert any(re.match(rf"netbootd {' '.join(words)}\b", cell) for cell in described)
    cells = {word for row in rows(chapter) for word in re.findall(r"`(--?[a-z][a-z0-9-]*)", row[0])}
    assert options(EVERY[words]) <= cells
    below = {option for path, command in EVERY.items() if path[:1] == words[:1] for option in options(command)}
    assert cells - {"--help", "-h"} <= below, "an option is described that does not exist"


def called(text: str) -> Iterator[tuple[str, list[str]]]:
    """(program, arguments) of every call of one of our programs in a page."""
    for line in code(text):
        line = re.sub(r"(^|\s)#.*|[|&;].*|  .*| 2?> .*", "", line.replace("\\|", "|")).strip()
        try:
            words = shlex.split(line)
        except ValueError:
            continue
        while words and (words[0] in ("sudo", "$", "nice") or re.fullmatch(r"[A-Z_]+=\S*", words[0])):
            words = words[1:]
        if words and (match := re.fullmatch(r"(?:\S*/)?(netbootd|quickstart|tests/run)", words[0])):
            yield match[1], words[1:]


def faults_of_call(arguments: list[str]) -> Iterator[str]:
    """What a call of netbootd names that does not exist."""
    path: tuple[str, ...] = ()
    known = options(cli)
    valued = _valued(cli)
    skip = False
    for word in arguments:
        if skip:
            skip = False
        elif word.startswith("-") and word != "-":
            name = word.partition("=")[0]
            if name not in known | {"--help", "-h"}:
                yield " ".join((*path, name))
            skip = name in valued and "=" not in word
        elif (*path, word) in EVERY:
            path = (*path, word)
            known |= options(EVERY[path])
            valued |= _valued(EVERY[path])
        elif isinstance(EVERY[path], click.Group) and re.fullmatch(r"[a-z][a-z-]+", word):
            yield " ".join((*path, word))
            return


def _valued(command: click.Command) -> set[str]:
    given = [option for option in command.params if isinstance(option, click.Option)]
    return {name for option in given if not option.is_flag and not option.count for name in option.opts}


def test_a_call_that_does_not_exist_would_be_found() -> None:
    calls = dict.fromkeys(["    sudo netbootd serve --nonsense 1", "`netbootd card up`", "`netbootd -q images lst`"])
    found = [list(faults_of_call(words)) for line in calls for _, words in called(line)]
    assert found == [["serve --nonsense"], ["card"], ["images lst"]]


@pytest.mark.parametrize("name", names(PAGES))
def test_snippets_name_what_exists(name: str) -> None:
    for program, arguments in called((ROOT / name).read_text()):
        if program == "netbootd":
            assert list(faults_of_call(arguments)) == [], arguments
        elif program == "quickstart":
            at = arguments.index("--") if "--" in arguments else len(arguments)
            assert list(faults_of_call(["prepare", *arguments[:at]])) == []
            assert list(faults_of_call(["serve", *arguments[at + 1 :]])) == []
        else:
            usage = subprocess.run(
                [ROOT / "tests" / "run", "--help"], capture_output=True, text=True, check=True
            ).stdout
            at = arguments.index("--") if "--" in arguments else len(arguments)
            assert all(word in usage for word in arguments[:at]), arguments


def test_quickstart_describes_itself_with_options_that_exist() -> None:
    done = subprocess.run([ROOT / "quickstart", "--help"], capture_output=True, text=True, check=True)
    calls = [
        line.split("  ")[0].split() for line in re.findall(r"\./quickstart (.*)", done.stdout) if "OPTION" not in line
    ]
    assert calls
    for arguments in calls:
        at = arguments.index("--") if "--" in arguments else len(arguments)
        assert list(faults_of_call(["prepare", *arguments[:at]])) == []
        assert list(faults_of_call(["serve", *arguments[at + 1 :]])) == []


@pytest.mark.parametrize(("words", "heading"), [(Stage, "stage"), (Outcome, "outcome")])
def test_stages_and_outcomes_are_described(words: Any, heading: str) -> None:
    described = {first_code(row[0]) for row in rows((REFERENCE / "command-line.md").read_text())}
    assert {str(word) for word in words} <= described, heading


# ---------------------------------------------------------------- the configuration


@pytest.mark.parametrize("table", _TABLES)
def test_every_key_is_described_with_its_default(table: str) -> None:
    described = {first_code(row[0]): row for row in rows(sections((REFERENCE / "configuration.md").read_text())[table])}
    keys = {field.name: field for field in dataclasses.fields(_TABLES[table])}
    assert list(described) == list(keys)
    for key, field in keys.items():
        default = described[key][2]
        value = _default(table, field)
        if value in (None, "", []) and not default.startswith("`"):
            assert default, key  # decided later, or nothing: in words
        else:
            assert tomllib.loads(f"x = {first_code(default)}")["x"] == value, key


def _default(table: str, field: dataclasses.Field[Any]) -> Any:
    """A key's default as `config show` has it, None where there is none."""
    shown = show.as_dict(schema.Config(None, Path("/")))
    if table.startswith("[["):
        return None if field.default is dataclasses.MISSING else _plain(field.default)
    value = shown[table.strip("[]")][field.name]
    if (table, field.name) == ("[defaults]", "cloud_init"):
        return [path[path.index("cloud-init/") :] for path in value]
    return value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", ["README.md", *names(sorted((ROOT / "docs").rglob("*.md")))])
def test_configurations_in_the_text_are_without_fault(name: str, tmp_path: Path) -> None:
    for number, text in enumerate(
        re.findall(r"^```toml\n(.*?)^```$", (ROOT / name).read_text(), re.MULTILINE | re.DOTALL)
    ):
        for folder in re.findall(r"\"((?:cloud-init|boot)/[^\"]+)\"", text):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for key in re.findall(r"\"(keys/[^\"]+)\"", text):
            (tmp_path / "keys").mkdir(exist_ok=True)
            (tmp_path / key).write_text(
                "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBmVVTWZ4NjaDqyhQ0B9B1u0mUuCPq9yx5xY7pXrJr5N a@b\n"
            )
        file = tmp_path / f"{number}.toml"
        file.write_text(text)
        loader.load(file)


def test_the_example_configuration_is_without_fault() -> None:
    text = (ROOT / "netbootd.toml").read_text()
    config = loader.load(ROOT / "netbootd.toml")
    assert [image.name for image in config.images] == ["noble"]
    everything = re.sub(r"^# (?=\[|[a-z_]+ = )", "", text, flags=re.MULTILINE)
    assert set(tomllib.loads(everything)) == {"server", "defaults", "image", "node"}


# ---------------------------------------------------------------- statuses, fields, metrics, links


def test_every_exit_status_is_described() -> None:
    described = {int(row[0]): row[1] for row in rows((REFERENCE / "exit-status.md").read_text())}
    classes = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.NetbootdError)
    ]
    assert set(described) == {0, INTERRUPTED, *(kind.exit_status for kind in classes)}


def test_every_field_that_can_be_filled_in_is_described() -> None:
    text = sections((REFERENCE / "cloud-init.md").read_text())["What is filled in"]
    described = {word for row in rows(text) for word in re.findall(r"`([a-z_]+)`", row[0])}
    assert described == set(fields_of(Node("n", "i", "h"), ServerAddress("192.0.2.1"), "x"))


def test_every_document_is_described() -> None:
    text = (REFERENCE / "cloud-init.md").read_text()
    assert all(f"`{name}`" in text for name in DOCUMENTS)


def test_every_metric_is_described() -> None:
    connections = dict.fromkeys(("open", "accepted_connections", "refused_connections"), 0)
    sources = Sources(
        tftp=dict,
        http=lambda: {**connections, "timed_out_connections": 0},
        nfs=lambda: {**connections, "broken_connections": 0, "calls": 0, "sent_bytes": 0},
        stages=list,
    )
    told = set(re.findall(r"^# TYPE (\S+)", Metrics(sources).render()[0].decode(), re.MULTILINE))
    table = rows(sections((REFERENCE / "addresses.md").read_text())["Metrics"])
    described = {word for row in table for word in re.findall(r"`([a-z_]+)`", row[0])}
    created = {name for name in told if name.endswith("_created")}
    assert described == told - created


def test_every_environment_variable_is_described() -> None:
    described = set(re.findall(r"`([A-Z_]+)`", (REFERENCE / "environment.md").read_text()))
    read = {
        name
        for path in (ROOT / "netbootd").rglob("*.py")
        for name in re.findall(r"(?:environ(?:\.get\(|\[)|envvar=)\"([A-Z_]+)\"", path.read_text())
    }
    assert {"NETBOOTD_STATE", "SUDO_USER"} <= read <= described


@pytest.mark.parametrize("name", names(PAGES))
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", _without_fences(page.read_text()).replace("\n", " ")):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert ROOT in there.parents
        if anchor:
            assert anchor in {_anchor(heading) for heading in sections(there.read_text())}, target


def _anchor(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-")


def test_every_page_can_be_reached_from_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / target).resolve() for target in re.findall(r"\]\(([^)#\s]+)\)", index.read_text())}
    assert {page for page in (ROOT / "docs").rglob("*.md") if page != index} <= linked


def test_the_readme_says_pure_python_first() -> None:
    assert "pure-Python" in (ROOT / "README.md").read_text().splitlines()[0]


def test_the_architecture_has_every_package_in_its_layer() -> None:
    text = (ROOT / "docs" / "explanation" / "architecture.md").read_text()
    described = {word for row in rows(sections(text)["The packages"]) for word in re.findall(r"`([a-z]+)`", row[0])}
    code_of = {path.name.removesuffix(".py") for path in (ROOT / "netbootd").iterdir() if not path.name.startswith("_")}
    assert described == code_of - {"py.typed"}
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / "setup.cfg")
    layers = contracts["importlinter:contract:layers"]["layers"].replace("netbootd.", "").split("\n")
    drawn = [line.strip() for line in sections(text)["Who may import whom"].splitlines() if line.startswith("    ")]
    assert drawn == [layer.strip() for layer in layers if layer.strip()]
