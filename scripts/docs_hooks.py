"""Pages of the documentation site that are made when it is built, for `mkdocs.yml`.

Notable choices:
- The first page is the README up to its tree of files, so that nothing is written twice.
- The page of the command line is what `--help` prints.
"""

from __future__ import annotations

import os
from pathlib import Path

from jsonargparse import ArgumentParser
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from lipdet.cli import VERBS, verb_options
from lipdet.commands import data

README = Path(__file__).resolve().parent.parent / "README.md"
TREE = "## What is where"


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the made pages to those of docs/."""
    os.environ["COLUMNS"] = "90"  # the width of help texts
    for name, text in (("index.md", _index()), ("command-line.md", _command_line())):
        files.append(File.generated(config, name, content=text))
    return files


def _index() -> str:
    text, mark, _ = README.read_text(encoding="utf-8").partition(TREE)
    if not mark:
        raise ValueError(f"{README}: has no heading {TREE!r}; adapt {__file__}.")
    return text.replace("](docs/", "](")


def _command_line() -> str:
    parts = ["# The command line\n", "Every verb with its options, as `--help` prints them."]
    for name in VERBS:
        parser = verb_options(name)
        parts.append(_section(f"lipdet {name}", parser))
        if name == "data":
            data.add_actions(parser)
            actions = parser._subcommands_action.choices
            parts += [_section(f"lipdet {name} {key}", one) for key, one in actions.items()]
    return "\n".join(parts)


def _section(title: str, parser: ArgumentParser) -> str:
    parser.prog = title
    return f"\n## {title}\n\n```text\n{parser.format_help()}```\n"
