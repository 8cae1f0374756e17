"""What every command needs: the option --config, errors told as one sentence each, the exit codes."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from schemas.keys import RawHour
from schemas.settings import EXIT_CONFIG, SettingsError

EXIT_FAILED, EXIT_TEMPORARY = 1, 75
"""75 is EX_TEMPFAIL of sysexits.h: trying again later is enough."""

_YEARS = range(2006, 2100)
"""In which X may have answered: its first post is of 2006."""


class _RawHour(click.ParamType[str]):
    """A raw hour, as its text."""

    name = "hour"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            hour = RawHour.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if hour.date.year not in _YEARS:
            self.fail(f"X had no posts in the year {hour.date.year}", param, ctx)
        return str(hour)


RAW_HOUR = _RawHour()


def _or_in_front(context: click.Context, _option: click.Parameter, named: Path | None) -> Path | None:
    """The file named here, or else in front of the command's name."""
    return named if named is not None or context.parent is None else context.parent.params["config"]


with_config = click.option(
    "--config",
    type=click.Path(path_type=Path),
    callback=_or_in_front,
    help="Settings file. Default: $TWEETLAKE_CONFIG, then /etc/tweetlake/tweetlake.toml.",
)


@contextmanager
def errors_told() -> Iterator[None]:
    """Every error as one sentence, with the exit code that says whether trying again helps."""
    try:
        yield
    except SettingsError as error:
        say(error)
        sys.exit(EXIT_CONFIG)
    except OSError as error:  # this machine's disk; S3's troubles have names of their own
        say(error)
        sys.exit(EXIT_FAILED)
    except Exception as error:
        from compaction_dags.compaction.errors import CompactionError

        if not isinstance(error, CompactionError):
            raise
        say(error)
        sys.exit(exit_code(error))


def say(error: Exception) -> None:
    """One line on standard error."""
    click.echo(f"tweetlake-compact: {error}", err=True)


def exit_code(error: Exception) -> int:
    """Whether trying again helps, as an exit code."""
    from compaction_dags.compaction.errors import ConflictError, LakeUnreachableError, StaleHoursError

    passing = ConflictError | LakeUnreachableError | StaleHoursError
    return EXIT_TEMPORARY if isinstance(error, passing) else EXIT_FAILED


def worst(errors: Iterable[Exception]) -> int:
    """The exit code for all of them together: one that has to be mended counts more than one that passes. 0 for none."""
    return max(map(exit_code, errors), key=(0, EXIT_TEMPORARY, EXIT_FAILED).index, default=0)
