import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from safeclip.artifacts import Folder
from safeclip.encoder.load import load_encoder
from safeclip.encoder.model import text_states
from safeclip.encoder.states import held_tokens, state_drift
from safeclip.encoder.student import merge_student, trained_state
from safeclip.encoder.worker import Plan, Worker, learning_rate
from safeclip.errors import UserError
from tests.encoder.plans import config_for, plan_for, write_rows
from tests.processes import work_as_two


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder, with all that a training reads."""
    folder = Folder(str(tmp_path_factory.mktemp("runs") / "demo"))
    write_rows(folder)
    return folder


@pytest.fixture
def plan(run):
    return partial(plan_for, run)


def gradients_of_a_step(worker: Worker) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    for name, parameter in worker.student.named_parameters():
        if "lora_B" in name:  # zero in a fresh adapter, and then so is the other half's gradient
            torch.nn.init.normal_(parameter, std=0.05, generator=random)
    worker.parallel.train()
    worker.take_step(*next(worker.loaded_steps()))
    return {name: p.grad for name, p in worker.student.named_parameters() if p.requires_grad}


def worst_difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest distance of a weight's gradient, relative to the size of what it should be."""
    assert all(gradient.any() for gradient in expected.values())
    return max(float((found[n] - expected[n]).norm() / expected[n].norm()) for n in expected)


@pytest.mark.parametrize("objective", ["safe-clip", "apart"])
def test_small_parts_of_a_step_give_the_gradient_of_the_whole(plan, objective):
    own = f"train.objective={objective}"
    whole = gradients_of_a_step(Worker(plan("whole", own)))
    parts = gradients_of_a_step(Worker(plan("parts", own, "train.micro_batch=3")))  # 24 in a step: 8 + 8 + 8
    assert worst_difference(parts, whole) < 1e-5
    doubled = {name: 2 * gradient for name, gradient in whole.items()}
    assert worst_difference(doubled, whole) == pytest.approx(1)  # the measure can tell


def test_a_resumed_training_ends_where_an_undisturbed_one_does(plan, tmp_path):
    sets = ["train.lora.dropout=0.1", "train.schedule=cosine", "train.average=2"]
    straight = Worker(plan("straight", *sets))
    straight.take_epoch()
    straight.take_epoch()
    first = Worker(plan("first", *sets))
    first.take_epoch()
    first.save(tmp_path)
    second = Worker(plan("second", *sets))
    second.load(tmp_path)
    second.take_epoch()
    expected, found = trained_state(straight.student), trained_state(second.student)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert all(torch.equal(straight.best[name], second.best[name]) for name in expected)
    assert straight.progress.best_loss == second.progress.best_loss
    second.save(tmp_path)
    for resumed in (second, first):
        resumed.load(tmp_path)
        assert resumed.best_weights.keys() == straight.best_weights.keys() == {1, 2}
        for epoch, state in straight.best_weights.items():
            assert all(torch.equal(state[name], resumed.best_weights[epoch][name]) for name in state)


def test_a_training_cut_off_within_an_epoch_ends_where_an_undisturbed_one_does(plan, tmp_path):
    sets = ["train.lora.dropout=0.1", "train.schedule=cosine", "train.warmup=2", "train.checkpoint_steps=2"]
    straight, first, second = (Worker(plan(key, *sets)) for key in ("straight", "first", "second"))
    saved = []
    straight.take_epoch()
    first.take_epoch(lambda: saved.append(first.progress.step) or first.save(tmp_path))
    assert saved == [2]  # of three
    second.load(tmp_path)
    assert (second.progress.epoch, second.progress.step) == (0, 2)
    record = second.take_epoch()
    expected, found = trained_state(straight.student), trained_state(second.student)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert record["loss"] == straight.progress.history[0]["loss"]


def test_all_weights_can_be_trained(plan, tmp_path):
    worker = Worker(plan("all", "train.lora=null", "train.learning_rate=0.0001", "train.gradient_checkpointing=true"))
    before = trained_state(worker.student)
    worker.take_epoch()
    after = trained_state(worker.student)
    assert len(after) > 100
    assert all(not torch.equal(before[name], after[name]) for name in after if "bias" not in name)
    assert worker.progress.history[0]["validation"]["total"] < 1
    worker.save(tmp_path)
    merged = merge_student(worker.student)
    assert merged.state_dict().keys() == load_encoder("world:encoder").model.state_dict().keys()


def test_gradient_checkpointing_compiling_and_bfloat16_change_little(plan):
    as_they_are = "train.views=null"  # in views the teacher is rounded as the student is, so its targets differ
    plain = gradients_of_a_step(Worker(plan("plain", as_they_are)))
    for setting, worst in (("gradient_checkpointing=true", 1e-5), ("dtype=bfloat16", 0.2)):
        found = gradients_of_a_step(Worker(plan("other", as_they_are, f"train.{setting}")))
        assert worst_difference(found, plain) < worst
    eager, compiled = Worker(plan("eager")), Worker(plan("compiled", "train.compile=true"))
    _, batch = next(eager.loaded_steps())
    with torch.no_grad():
        one, other = (w.embed(w.towers, batch) for w in (eager, compiled))
        half = Worker(plan("half", "train.dtype=bfloat16"))
        low = half.embed(half.towers, batch)
    assert (one * other).sum(-1).min() > 1 - 1e-5
    assert (one * low).sum(-1).min() > 1 - 1e-2


def _gradients_of_one_of_two(rank: int, plan: Plan, folder: Path) -> None:
    wrap = torch.nn.parallel.DistributedDataParallel
    for parts in (None, 5):
        own = dataclasses.replace(plan, train=plan.train.model_copy(update={"micro_batch": parts}))
        found = gradients_of_a_step(Worker(own, rank, rank, 2, wrap=wrap))
        if rank == 0:
            torch.save(found, folder / f"{parts}.pt")


def test_two_workers_have_the_gradient_of_one(plan, tmp_path):
    sets = ["train.objective=apart", "train.views={share: 0.5}"]  # states, views and all that is gathered
    whole = gradients_of_a_step(Worker(plan("one", *sets)))
    work_as_two(_gradients_of_one_of_two, tmp_path, plan("two", *sets), tmp_path)
    for parts in (None, 5):
        assert worst_difference(torch.load(tmp_path / f"{parts}.pt"), whole) < 1e-5


def test_averaged_adapters_are_the_mean_of_the_last_epochs_and_training_goes_on_from_its_own(plan):
    sets = ["train.epochs=3", "train.select=recall"]  # recalls are perfect, so the last epoch is kept
    plain, averaging = Worker(plan("plain", *sets)), Worker(plan("average", *sets, "train.average=2"))
    ends = []
    for _ in range(3):
        plain.take_epoch()
        averaging.take_epoch()
        ends.append(trained_state(plain.student))
    for name, value in trained_state(averaging.student).items():
        assert torch.equal(value, ends[-1][name])
    assert averaging.progress.best_epoch == 3
    assert list(averaging.best_weights) == [3, 2]
    for last, state in averaging.best_weights.items():
        for name, value in state.items():
            torch.testing.assert_close(value, (ends[last - 2][name] + ends[last - 1][name]) / 2)
    assert averaging.best is averaging.best_weights[3]


def test_validation_does_not_depend_on_the_batch(plan):
    one, other = Worker(plan("8")), Worker(plan("2", "train.batch=2"))
    assert one.validate() == other.validate()


def test_the_teacher_sees_the_views_of_the_safe_pictures_that_the_student_sees(plan):
    """A student that has not moved yet is where the teacher is, whatever views they have of the pictures."""
    sets = ["train.objective=apart", "train.learning_rate=1.0e-12", "train.micro_batch=5"]
    sets.append("train.weights={redirect states: 0, preserve states: 0}")
    worker = Worker(plan("views", *sets, "train.views={share: 1, zoom: 0.3}"))
    distance = worker.take_epoch()["loss"]["preserve image"]
    assert distance == pytest.approx(0, abs=1e-6)
    worker.teacher = None  # the numbers at hand are of the pictures as they are
    assert worker.take_epoch()["loss"]["preserve image"] > 1e-3


@torch.no_grad()
def test_unsafe_texts_are_held_to_the_teachers_states_of_their_own_safe_texts(run, plan):
    worker = Worker(plan("states", "train.objective=apart"))
    found = worker.validate()["validation"]
    rows = (run / "quadruplets" / "validation").read_table("part-0000.parquet")
    base, expected = load_encoder("world:encoder"), []
    for unsafe, safe in zip(rows["unsafe_caption"].to_pylist(), rows["safe_caption"].to_pylist(), strict=True):
        own, held_to, read = held_tokens(base.tokenizer([unsafe]), base.tokenizer([safe]))
        wanted = text_states(base.model, held_to) * read.unsqueeze(-1)
        expected.append(float(state_drift(text_states(base.model, own), wanted)))
    assert found["redirect states"] == pytest.approx(np.mean(expected), rel=1e-4)
    assert found["preserve states"] == pytest.approx(0, abs=1e-5)


def test_validation_is_of_a_whole_objective_however_far_the_training_is(plan):
    worker = Worker(plan("safer", "train.objective=safer-clip"))
    found = worker.validate()
    worker.progress.epoch = 1
    assert worker.validate() == found


def test_rows_without_the_teachers_embeddings_are_refused(plan):
    whole = plan("of others")
    targets = {unit.split: unit.target for unit in whole.units}
    units = [dataclasses.replace(unit, target=targets["validation"]) for unit in whole.units]
    with pytest.raises(UserError, match="not of these rows; remove"):
        Worker(dataclasses.replace(whole, units=units))


def test_the_cosine_schedule_falls_from_the_rate_to_zero():
    train = config_for("unused", "train.schedule=cosine").train
    rates = [learning_rate(step, 10, train) for step in range(11)]
    assert rates[0] == train.learning_rate
    assert rates[10] == pytest.approx(0)
    assert np.all(np.diff(rates) < 0)
