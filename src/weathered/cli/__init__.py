"""The command line: one verb, no nesting. Importing it does not import torch."""

import typer

from weathered.cli.catalogue import list_methods, show
from weathered.cli.commands import advise, audit, compare, demo, report, select, train, verify
from weathered.cli.reviewing import review

app = typer.Typer(
    name="weathered",
    help="Train models on data nobody can fully trust, and prove how they behave.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Add --debug to any command to see the traceback of an error.",
)
app.command("demo")(demo)
app.command("list")(list_methods)
app.command("show")(show)
app.command("train")(train)
app.command("compare")(compare)
app.command("audit")(audit)
app.command("select")(select)
app.command("advise")(advise)
app.command("report")(report)
app.command("review")(review)
app.command("verify")(verify)
