"""Qt's QCommandLineParser as Multipass uses it (src/client/cli/argparser.cpp): its grammar and its complaints."""

from __future__ import annotations


class Mistake(Exception):
    """What the client prints to stderr before it ends with status 1 (return_codes.h, CommandLineError)."""


def parse(words: list[str], options: dict[str, str], flags: dict[str, str]) -> tuple[list[str], dict[str, list[str]]]:
    """Positional arguments, and values by an option's long name.

    :param options: names that take a value, each to its long name; `flags`: those that take none
    """
    flags = {"h": "help", "help": "help", "v": "verbose", "verbose": "verbose", **flags}
    positional: list[str] = []
    found: dict[str, list[str]] = {}
    unknown: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if word == "--":
            positional += queue
            break
        if not word.startswith("-") or word == "-":
            positional.append(word)
            continue
        dashes = "--" if word.startswith("--") else "-"
        name, equals, value = word[len(dashes) :].partition("=")
        if dashes == "-" and set(name) == {"v"}:
            continue
        if name in flags:
            if equals:
                raise Mistake(f"Unexpected value after '{dashes}{name}'.")  # Qt: qcommandlineparser.cpp
            found.setdefault(flags[name], [])
        elif name in options:
            if not equals:
                if not queue:
                    raise Mistake(f"Missing value after '{dashes}{name}'.")
                value = queue.pop(0)
            found.setdefault(options[name], []).append(value)
        elif dashes == "-" and name[:1] in options:  # a short option with its value attached
            found.setdefault(options[name[0]], []).append(word[2:])
        else:
            unknown.append(name)
    if unknown:
        plural = f"Unknown options: {', '.join(unknown)}." if len(unknown) > 1 else f"Unknown option '{unknown[0]}'."
        raise Mistake(plural)
    return positional, found
