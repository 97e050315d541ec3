"""What a training calls at its events, for code of your own.

    from accelerated.engine.callbacks import Callback

    class StopAtLoss(Callback):
        def on_log(self, run):
            if run.values["loss"] < 0.5:
                run.stop("the loss is below 0.5")

    train(config, dataset, "run", iterations=1000, callbacks=[StopAtLoss()])

Of several processes the first one alone calls. A callback must not use what all processes do
together, such as `evaluate` or a sum over processes: it would wait for the others forever.
"""

from collections.abc import Iterable
from typing import Any


class Callback:
    """Methods that do nothing, each called at an event with the `run.Run`. Override what you need.

    To be read: run.iteration (steps taken), run.model, run.optimizer, run.rate, run.device,
    run.settings, run.job (data, folder, intervals), run.values (the last line of the log),
    run.metrics and run.validation (of the last evaluation), run.best (the best checkpoint).
    To be called: run.stop("reason"), and run.log.shown.say("text"), which shows a line.
    Whatever else is changed decides numbers that no checkpoint knows of: a resumed run would be
    another one. With `graph`, parameters must stay where they are in memory.
    An exception ends the training as a CallbackError, which names the callback.
    """

    def on_start(self, run: Any) -> None:
        """Is called before the first step, in a resumed run too."""

    def on_step(self, run: Any) -> None:
        """Is called after a step is launched.

        It must not wait for the device, as printing a tensor or `.item()` does: that slows training
        down.
        """

    def on_log(self, run: Any) -> None:
        """Is called after a line of the log: the device has been waited for, all is finite."""

    def on_checkpoint(self, run: Any) -> None:
        """Is called after a checkpoint is written: RUN/last."""

    def on_evaluation(self, run: Any) -> None:
        """Is called after an evaluation; the model has the weights that are trained again."""

    def on_end(self, run: Any) -> None:
        """Is called after the last step and evaluation, or a signal; not after an error."""


class CallbackError(RuntimeError):
    """A callback raised an exception, which is the cause of this one."""


def call(callbacks: Iterable[Callback], event: str, run: Any) -> None:
    """Call the method `event` of each. Raises CallbackError for an exception in one."""
    for callback in callbacks:
        try:
            getattr(callback, event)(run)
        except Exception as error:
            where = f"callback {type(callback).__name__}, {event}, at step {run.iteration}"
            raise CallbackError(f"{where}: {type(error).__name__}: {error}") from error
