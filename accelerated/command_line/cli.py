"""The command line, `maskrcnn`: its commands, and what happens to errors.

Exit codes: 0 success; 1 a comparison failed, or `inspect` found problems; 2 bad input, explained
in one line (MASKRCNN_DEBUG=1 shows the traceback); 128 + N ended by signal N, such as 130 by
Ctrl-C. Modules that are slow to import are imported inside the commands, so that `--help` is quick.
"""

import inspect
import io
import os
import sys
from typing import Annotated

import typer

import accelerated
from accelerated.command_line import (
    check_commands,
    checkpoint_commands,
    data_commands,
    evaluate_command,
    experiment_commands,
    loading,
    predict_command,
    report_command,
    train_command,
)

COMMANDS = {
    "demo": experiment_commands.run_demo,
    "import": data_commands.import_data,
    "inspect": data_commands.inspect_data,
    "train": train_command.train_model,
    "evaluate": evaluate_command.evaluate_model,
    "report": report_command.write_report,
    "predict": predict_command.draw_predictions,
    "weights": checkpoint_commands.list_weights,
    "convert": checkpoint_commands.convert_checkpoint,
    "export": checkpoint_commands.export_model,
    "verify": check_commands.verify_model,
    "ablate": experiment_commands.run_ablation,
    "benchmark": experiment_commands.run_benchmark,
    "doctor": check_commands.examine_machine,
}

# Those whose work several processes share.
SHARED = ("train", "evaluate", "predict")

app = typer.Typer(
    name="maskrcnn",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for name, function in COMMANDS.items():
    # A paragraph is a line, to be wrapped as wide as the terminal is.
    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    app.command(name, help="\n\n".join(" ".join(text.split()) for text in paragraphs))(function)


def main() -> None:
    """Run the command line; expected errors become one line on stderr and exit code 2."""
    # Threads that wait longer before they sleep slow training tenfold where cores are shared.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
    # A name with characters that the terminal cannot show is no reason to stop.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        # Also under `python -m accelerated`: completion is installed for the program of this name.
        app(prog_name="maskrcnn")
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("MASKRCNN_DEBUG"):
            raise
        text = " ".join(_said(error).split()) or type(error).__name__
        process = os.environ.get("RANK", "0")
        prefix = "maskrcnn" if process == "0" else f"maskrcnn, process {process}"
        print(f"{prefix}: {text if len(text) < 600 else text[:600] + ' ...'}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _said(error):
    """Say an error in words; the system's without its number."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"maskrcnn {accelerated.__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Train, evaluate and verify Mask R-CNN: PyTorch with Triton kernels, checked against NumPy."""
    if context.invoked_subcommand not in SHARED:
        loading.require_one_process()
