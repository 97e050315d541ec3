"""The numbers of a training for TensorBoard, in RUN/tensorboard."""

from importlib.util import find_spec

from accelerated.engine.callbacks import Callback
from accelerated.engine.run import Run
from accelerated.engine.validation import OVER


def check() -> None:
    """Raise ValueError if TensorBoard is not installed."""
    if find_spec("tensorboard") is None:
        raise ValueError(
            'train --tensorboard needs TensorBoard: pip install "maskrcnn-triton[tensorboard]"'
        )


class TensorBoard(Callback):
    """Writes losses, rates and speed, metrics and validation losses, at the steps of the log."""

    def on_start(self, run: Run) -> None:
        # Slow to import.
        from torch.utils.tensorboard import SummaryWriter

        # What a killed run has written of later steps is hidden, as in the log.
        self.writer = SummaryWriter(
            str(run.folder / "tensorboard"), purge_step=run.iteration + 1 if run.iteration else None
        )

    def on_log(self, run: Run) -> None:
        for name, value in run.values.items():
            group = "loss" if name in (*OVER, "loss") else "training"
            self.writer.add_scalar(f"{group}/{name}", value, run.iteration)

    def on_evaluation(self, run: Run) -> None:
        for branch, metrics in (run.metrics or {}).items():
            for name, value in metrics.items():
                if name.startswith("A") and value is not None:
                    self.writer.add_scalar(f"{branch}/{name}", value, run.iteration)
        for name, value in (run.validation or {}).items():
            if value is not None:
                self.writer.add_scalar(f"validation_loss/{name}", value, run.iteration)

    def on_checkpoint(self, run: Run) -> None:
        self.writer.flush()

    def on_end(self, run: Run) -> None:
        self.writer.close()
