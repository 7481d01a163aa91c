import math

import numpy as np
import pytest

from safeclip.encoder.progress import Progress, best_epochs, figure
from tests.encoder.plans import config_for


def test_training_stops_when_neither_loss_nor_recall_gets_better():
    train = config_for("unused", "train.epochs=50", "train.patience=2").train
    progress = Progress()
    better = [(1.0, 2.0), (0.9, 1.9), (0.95, 2.5), (0.95, 2.4), (0.96, 2.5)]
    kept = []
    for epoch, (loss, recall) in enumerate(better, 1):
        assert not progress.is_over(train)
        progress.epoch = epoch
        kept.append(progress.note({"epoch": epoch, "validation": {"total": loss}, "recall_sum": recall}))
    assert kept == [True, True, False, False, False]
    assert progress.is_over(train)
    assert progress.best_epoch == 2


def test_the_epoch_of_the_highest_recall_can_be_the_one_that_is_kept():
    progress = Progress()
    measured = [(1.0, 2.0), (0.9, 1.9), (0.95, 2.5), (0.96, 2.5), (0.97, 2.4)]
    records = [{"epoch": n, "validation": {"total": a}, "recall_sum": b} for n, (a, b) in enumerate(measured, 1)]
    assert [progress.note(record, "recall") for record in records] == [True, False, True, True, False]
    assert (progress.best_epoch, progress.waited) == (4, 2)


@pytest.mark.parametrize("select", ["loss", "recall"])
def test_the_best_epochs_are_those_that_few_others_beat(select):
    random = np.random.default_rng(0)

    def beats(one, other):
        a, b = (figure(record, select) for record in (one, other))
        if select == "loss":
            return a < b or (a == b and one["epoch"] < other["epoch"])
        return a > b or (a == b and one["epoch"] > other["epoch"])

    for _ in range(100):
        history, progress, before = [], Progress(), set()
        count = int(random.integers(1, 5))
        for epoch in range(1, int(random.integers(2, 12))):
            loss, recall = random.choice([1.0, 2.0, 3.0, math.nan, math.inf]), float(random.integers(4))
            history.append({"epoch": epoch, "validation": {"total": loss}, "recall_sum": recall})
            progress.note(history[-1], select)
            numbers = [record for record in history if math.isfinite(figure(record, select))]
            beaten = {record["epoch"]: sum(beats(other, record) for other in numbers) for record in numbers}
            expected = sorted((epoch for epoch in beaten if beaten[epoch] < count), key=beaten.get)
            found = best_epochs(history, select, count)
            assert found == expected
            assert progress.best_epoch == (found[0] if found else 0)
            assert set(found) <= before | {epoch}, "the weights of the others are gone"
            before = set(found)
