"""`tweetlake-compact completion`: what a shell needs to complete commands and options."""

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script with which a shell completes this program's commands and options.

    \b
    Examples:
      tweetlake-compact completion bash | sudo tee /etc/bash_completion.d/tweetlake-compact
      tweetlake-compact completion zsh > ~/.zfunc/_tweetlake-compact
    """
    kind = get_completion_class(shell)
    assert kind is not None
    program = context.find_root()
    click.echo(kind(program.command, {}, "tweetlake-compact", "_TWEETLAKE_COMPACT_COMPLETE").source())
