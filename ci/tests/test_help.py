"""Every command's --help: an example, and of each option what it is, its default and where it belongs."""

import argparse
import importlib
import re
import sys
from pathlib import Path

from common.cli import CommandParser

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("ci", "common", "projects", "results", "weights_convert")
UNGROUPED = 5  # so many options are seen at a glance; more are grouped


def commands():
    """Every file that ends as a command does, as users name it."""
    for path in sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        name = path.relative_to(ROOT)
        if not {"tests", "faults"} & set(name.parts) and "    run_command(main)" in path.read_text():
            yield pytest.param(name, [], id=str(name))
    lists = Path("common/create_dataset_list.py")
    for word in ("check", "stats"):
        yield pytest.param(lists, [word], id=f"{lists} {word}")


def parser_of(name, words, monkeypatch, capsys):
    """The parser that --help of a command shows, and what it prints."""
    folder = ROOT / "projects" if name.parts[0] == "projects" else ROOT
    monkeypatch.syspath_prepend(str(ROOT))
    module = importlib.import_module(".".join((ROOT / name).relative_to(folder).with_suffix("").parts))
    shown = []
    print_help = CommandParser.print_help
    monkeypatch.setattr(CommandParser, "print_help", lambda self, *a: (shown.append(self), print_help(self, *a))[1])
    monkeypatch.setattr(sys, "argv", [name.name, *words, "--help"])
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert not ended.value.code
    (parser,) = shown
    return parser, capsys.readouterr().out


@pytest.mark.parametrize(("name", "words"), commands())
def test_help_says_what_a_newcomer_needs(name, words, monkeypatch, capsys):
    parser, text = parser_of(name, words, monkeypatch, capsys)
    assert re.search(rf"^ {{4}}.*{re.escape(name.name)}", parser.description, re.MULTILINE), "no example"
    groups = [group for group in parser._action_groups if group.title not in ("positional arguments", "options")]
    grouped = {id(action) for group in groups for action in group._group_actions}
    options = [a for a in parser._actions if a.option_strings and a.dest != "help" and a.help != argparse.SUPPRESS]
    for option in options:
        where = f"{option.option_strings[0]} in {name} --help"
        assert option.help, f"{where}: says nothing"
        if option.nargs != 0 and not option.required:
            assert "default" in option.help, f"{where}: its default is not said"
        if option.nargs != 0:
            assert option.metavar or option.choices, f"{where}: prints its own name as the value"
        if len(options) > UNGROUPED:
            assert id(option) in grouped, f"{where}: in no group"
    assert max(map(len, text.splitlines())) <= 120
