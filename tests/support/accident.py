"""The command `maskrcnn` in a process that ends, or stops, at a step: a program for torchrun.

ACCIDENT is "kill:RANK:STEP" or "stop:RANK:STEP", and happens before torchrun restarts anything.
"""

import os
import signal

from accelerated.command_line.cli import main
from accelerated.engine.run import Run


def step_of(run, batch, waited, step=Run.step):
    kind, rank, iteration = os.environ["ACCIDENT"].split(":")
    here = os.environ["RANK"] == rank and run.iteration == int(iteration)
    if here and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[kind])
    return step(run, batch, waited)


if os.environ.get("ACCIDENT"):
    Run.step = step_of
if __name__ == "__main__":
    main()
