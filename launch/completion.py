"""What a shell completes of `--set KEY=VALUE`: keys of the configuration, and values of those that
list them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click
    from click.shell_completion import CompletionItem


def complete_setting(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """As `shell_complete` of an option."""
    from click.shell_completion import CompletionItem

    from pipeline.config.sections import settings

    key, equals, _ = incomplete.partition("=")
    known = settings()
    if equals:
        words = {f"{key}={value}": "" for value in known[key].choices} if key in known else {}
    else:
        words = {f"{key}=": setting.about for key, setting in known.items()}
    return [
        CompletionItem(word, help=about)
        for word, about in words.items()
        if word.startswith(incomplete)
    ]
