"""The end of a training that has stopped to get better, by the evaluations in its log."""

from accelerated.engine import log
from accelerated.engine.callbacks import Callback
from accelerated.engine.run import Run


def evaluations_since_best(lines: list[dict]) -> int:
    """Count the evaluations in the lines of a log after the best one; without one, all."""
    evaluations = [line for line in lines if "evaluation" in line]
    best = evaluations[-1]["best"] if evaluations else None
    return sum(line["iteration"] > (best or 0) for line in evaluations)


class EarlyStopping(Callback):
    """Stops a run after `limit` evaluations without a better average precision.

    Only the log decides. So a resumed run counts what it did before, and ends at once if it ended
    by the same limit.
    """

    def __init__(self, limit: int):
        self.limit = limit

    def on_start(self, run: Run) -> None:
        self.on_evaluation(run)

    def on_evaluation(self, run: Run) -> None:
        count = evaluations_since_best(log.read(run.folder / "log.jsonl"))
        if count >= self.limit:
            run.stop(f"no better average precision in {count} evaluations")
