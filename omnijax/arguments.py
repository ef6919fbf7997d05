"""Parsers of the `omnijax` command, and of its sub-commands."""

import argparse
import functools
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
  """Errors are one line, as all errors of this command are."""

  def __init__(self, **kwargs: Any):
    wide = functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=28, width=100)
    super().__init__(formatter_class=wide, allow_abbrev=False, **kwargs)

  def error(self, message: str) -> NoReturn:
    self.exit(2, f"omnijax: error: {message} (see {self.prog} --help)\n")


def command(commands: Any, name: str, function: Any, text: str, *,
             fields: bool = False) -> argparse.ArgumentParser:
  """A sub-command; one that takes fields of a dataclass shows them in its own help."""
  first = text.split(". ")[0].split(".\n")[0].replace("\n", " ")
  parser = commands.add_parser(name, help=first, description=text, add_help=not fields)
  if fields:
    parser.add_argument("-h", "--help", action="store_true", help="show this help")
    parser.add_argument("--FIELD", dest="_", metavar="VALUE", help="a field to change")
  parser.set_defaults(function=function, takes_fields=fields, parser=parser)
  return parser
