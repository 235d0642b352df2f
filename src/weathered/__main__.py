"""The command line's entry: errors a user can mend become one sentence and exit code 2."""

import errno
import sys
import warnings
from typing import Any, cast

STOPPED = 130


def main() -> None:
    """Run `weathered` with the arguments of the process."""
    import typer
    from rich.console import Console
    from rich.text import Text

    from weathered.cli import app
    from weathered.core.errors import WeatheredError

    def complain(sentence: str) -> None:
        # file names may hold anything, and a terminal obeys control characters
        safe = "".join(char if char.isprintable() else repr(char)[1:-1] for char in sentence)
        text = Text(safe, overflow="fold")
        Console(stderr=True, soft_wrap=True).print(Text("error: ", style="bold red"), text, sep="", end="\n")

    # typer carries its own copy of click in newer releases, so the class is found through what it exports
    family = [kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"]
    usage_error = cast(type[Exception], family[0])
    warnings.formatwarning = lambda message, *_, **__: f"note: {message}\n"
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        code = app(args=arguments, standalone_mode=False, prog_name="weathered") or 0
        if code == STOPPED:
            raise KeyboardInterrupt
        sys.exit(code)
    except usage_error as error:
        message = cast(Any, error).format_message()
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(message, err=True)
        else:
            complain(message)
        sys.exit(2)
    except (typer.Abort, KeyboardInterrupt):
        if "train" in arguments[:1]:
            complain("stopped; the same command with --resume goes on from the last checkpoint, or begins without one.")
        else:
            complain("stopped; the same command goes on from here.")
        sys.exit(STOPPED)
    except WeatheredError as error:
        if debug:
            raise
        complain(str(error))
        sys.exit(2)
    except OSError as error:
        if debug:
            raise
        advice = " Free some space or choose another --out." if error.errno == errno.ENOSPC else ""
        place = f": {error.filename}" if error.filename else ""
        complain(f"{error.strerror or error}{place}.{advice}")
        sys.exit(2)


if __name__ == "__main__":
    main()
