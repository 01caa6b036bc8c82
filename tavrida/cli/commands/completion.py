# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``tavrida completion``: what a shell needs to complete the commands and their options."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tavrida.cli.application import TavridaCommand

#: What completes the value of an option, by its name.
_PATHS = {"--config-file": "-f", "--config-dir": "-d"}

_HEADS = {
    "bash": "# Put this into ~/.bashrc: source <(tavrida completion bash)",
    "zsh": "# Put this into ~/.zshrc: source <(tavrida completion zsh)\n"
    "autoload -U +X compinit && compinit -u\n"
    "autoload -U +X bashcompinit && bashcompinit",
}

_SCRIPT = """\
_tavrida() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} last=${{COMP_WORDS[COMP_CWORD-1]}}
    local command='' i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "${{command:+$command }}${{COMP_WORDS[i]}}" in
            {known})
                command="${{command:+$command }}${{COMP_WORDS[i]}}" ;;
        esac
    done
    COMPREPLY=()
    case "$command $last" in
{values}
    esac
    local words=''
    case "$command" in
{words}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -F _tavrida tavrida"""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a command takes: its options, and of those with a choice, the values."""

    options: list[str]
    choices: dict[str, list[str]] = field(default_factory=dict)


class Completion(TavridaCommand):
    """Print the script by which a shell completes commands: source <(tavrida completion bash)"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("shell", choices=sorted(_HEADS), help="which shell reads it")
        return parser

    def take_action(self, args: argparse.Namespace) -> None:
        print(_HEADS[args.shell])
        print(script(dict(self.offers())))

    def offers(self) -> Iterator[tuple[str, Offer]]:
        """Give every command with what it takes; one that cannot be loaded has no options."""
        manager = self.app.command_manager
        yield "", offer_of(self.app.parser)
        for name in sorted(manager.commands):
            try:
                factory, _, _ = manager.find_command(name.split())
                parser = factory(self.app, None).get_parser(name)
            except Exception:  # a stranger's; the others shall be completed all the same
                yield name, Offer([])
            else:
                yield name, offer_of(parser)


def offer_of(parser: argparse.ArgumentParser) -> Offer:
    """Return what a command with this parser takes."""
    options, choices = [], {}
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to tell
        if action.help == argparse.SUPPRESS:
            continue
        options += [name for name in action.option_strings if name.startswith("--")]
        if action.choices is not None:
            values = [str(each) for each in action.choices]
            choices.update(dict.fromkeys(action.option_strings or [""], values))
    return Offer(options, choices)


def script(offers: dict[str, Offer]) -> str:
    """Return the function of a shell that completes these commands."""
    groups: dict[str, set[str]] = {}
    for name in offers:
        words = name.split()
        for depth, word in enumerate(words):
            groups.setdefault(" ".join(words[:depth]), set()).add(word)
    known = sorted({*groups, *offers} - {""})
    values = [
        _case(f'*" {option}"', f'COMPREPLY=($(compgen {how} -- "$word")); return')
        for option, how in _PATHS.items()
    ]
    words = []
    for name in ("", *known):
        offer = offers.get(name, Offer([]))
        for option, choices in offer.choices.items():
            if option:
                reply = f'COMPREPLY=($(compgen -W {_quoted(choices)} -- "$word")); return'
                values.append(_case(_quoted([f"{name} {option}"]), reply))
        listed = [*sorted(groups.get(name, ())), *offer.choices.get("", ()), *offer.options]
        words.append(_case(_quoted([name]), f"words={_quoted(listed)}"))
    return _SCRIPT.format(
        known="|".join(_quoted([name]) for name in known),
        values="\n".join(values),
        words="\n".join(words),
    )


def _case(pattern: str, action: str) -> str:
    return f"        {pattern}) {action} ;;"


def _quoted(words: Iterable[str]) -> str:
    return "'" + " ".join(words).replace("'", "'\\''") + "'"
