"""Tab completion: what may follow the words of a command line, and the shell's side of it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

NAME = "completion"
TEXT = "print what makes bash or zsh complete commands and options"
SCRIPT = """\
# s2vfast: tab completion. In ~/.bashrc or ~/.zshrc: eval "$(s2vfast completion)"
if [ -n "$ZSH_VERSION" ]; then autoload -Uz bashcompinit && bashcompinit; fi
_s2vfast() {
  local IFS=$'\\n'
  COMPREPLY=($(s2vfast completion --line "${COMP_LINE:0:COMP_POINT}" 2>/dev/null))
}
complete -o default -F _s2vfast s2vfast
"""


def add(parser: Any) -> None:
    """Give the command its options."""
    parser.add_argument("--line", metavar="TEXT", help="print what may follow, a word a line; the script asks this")


def following(line: str, commands: Mapping[str, Any]) -> list[str]:
    """What may stand in place of the last word of a command line; nothing where files may.

    Args:
        line: from the program's name to the cursor.
        commands: of `s2vfast.cli`, by name.
    """
    *before, prefix = line.split()[1:] if not line[-1:].isspace() else [*line.split()[1:], ""]
    name = next((" ".join(before[:length]) for length in (2, 1) if " ".join(before[:length]) in commands), None)
    if name is None:
        group = f"{before[0]} " if before else ""
        words = sorted({other.removeprefix(group).split()[0] for other in commands if other.startswith(group)})
    elif before[-1] == "--config":
        from s2vfast import presets

        words = presets.names()
    elif before[-1] in ("--model", "models"):
        from s2vfast import models

        words = list(models.SHIPPED)
    elif prefix.startswith("-"):
        words = _options(commands[name])
    else:
        words = []
    return [word for word in words if word.startswith(prefix)]


def _options(command: Any) -> list[str]:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--plugin")
    command.add(parser)
    if command.sections is not None:
        command.sections(parser)
    return sorted(option for option in parser._option_string_actions if option.startswith("--"))
