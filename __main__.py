"""`upgd-ppo train …` and `upgd-ppo evaluate …`: the commands of an installed package."""

from __future__ import annotations

import difflib
import sys
from importlib import import_module
from importlib.metadata import version

COMMANDS = {
    "train": "train one arm: PPO on one environment with one optimizer, many seeds",
    "evaluate": "score trained policies, film them, compare arms",
}

USAGE = "usage: upgd-ppo {train,evaluate} …\n\n" + "\n".join(
    f"  {name:<10}{what}" for name, what in COMMANDS.items()
)


def main(arguments: list[str] | None = None) -> int:
    """Hand the arguments to the command that the first of them names; returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    name = arguments[0] if arguments else ""
    if name in COMMANDS:
        # The command is told its own name, for its help and its messages.
        sys.argv = [f"upgd-ppo {name}", *arguments[1:]]
        return int(import_module(f"upgd_ppo.{name}").main(arguments[1:]))
    if name in ("-h", "--help"):
        print(f"{USAGE}\n\nupgd-ppo COMMAND --help says more.")
        return 0
    if name == "--version":
        print(f"upgd-ppo {version('upgd-ppo')}")
        return 0
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    said = f"{name!r} is no command" if name else "a command is missing"
    print(f"upgd-ppo: error: {said}; give train or evaluate.{hint}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
