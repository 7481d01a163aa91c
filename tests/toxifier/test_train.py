import os
import pickle
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from safeclip.artifacts import Folder, read_manifest
from safeclip.config import load_config
from safeclip.errors import UserError
from safeclip.toxifier.loop import Plan, make_trainer
from safeclip.toxifier.pairs import read_pairs
from safeclip.toxifier.train import check_losses, dpo_rows, sft_rows, train_step, train_toxifier
from tests.processes import train_workers, wait_until
from tests.toxifier.models import save_tiny_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def config_for(tiny, *sets):
    settings = [
        f"generate.toxify.model={tiny}", "toxifier.count=20", "toxifier.dtype=float32", "toxifier.sft.epochs=2",
        "toxifier.dpo.epochs=2", "toxifier.sft.learning_rate=0.01", "toxifier.dpo.learning_rate=0.01",
        "toxifier.sft.batch=4", "toxifier.dpo.batch=4",
    ]  # fmt: skip
    return load_config(sets=[*settings, *sets])


def rows_for(config, method):
    """Training and validation rows; for DPO the unsafe side is chosen and the source itself rejected."""
    pairs = read_pairs(config)
    if method == "sft":
        return sft_rows(pairs)
    preferences = [
        {"id": f"{n:02d}", "safe_caption": p.safe, "asked": p.asked, "chosen": p.unsafe, "rejected": p.safe}
        for n, p in enumerate(pairs.train + pairs.validation)
    ]
    return dpo_rows(preferences, config.toxifier, config.seed)


def test_rows_end_with_the_unsafe_side(tiny):
    config = config_for(tiny)
    train, validation = rows_for(config, "sft")
    assert (len(train), len(validation)) == (16, 4)
    assert [m["role"] for m in train[0]["prompt"]] == ["system", "user"]
    assert train[0]["completion"][0]["role"] == "assistant"
    train, validation = rows_for(config, "dpo")
    assert (len(train), len(validation)) == (16, 4)
    assert train[0]["chosen"] != train[0]["rejected"]


def test_pickled_weights_are_refused(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "pickled")
    weights = tmp_path / "pickled" / "model.safetensors"
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    config = config_for(tmp_path / "pickled")
    plan = Plan("sft", config.generate.toxify.model, None, *rows_for(config, "sft"), config.toxifier, 0)
    with pytest.raises(UserError, match=r"it has no \.safetensors"):
        make_trainer(plan, tmp_path)


def _log_probabilities(model, batch):
    """The plain way: log-softmax of each position, the entry of the token that follows, summed over the answer."""
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
    sums = []
    for row, tokens, answer in zip(logits, batch["input_ids"], batch["completion_mask"], strict=True):
        total = torch.zeros((), dtype=torch.float64)
        for position in range(len(tokens) - 1):
            if answer[position + 1]:
                total += F.log_softmax(row[position].double(), dim=-1)[tokens[position + 1]]
        sums.append(total)
    return torch.stack(sums).chunk(2)


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_the_dpo_loss_is_the_papers_and_its_reference_is_the_policy_without_its_adapter(tiny, tmp_path, weight):
    config = config_for(tiny, "toxifier.dpo.beta=0.3", f"toxifier.dpo.sft_weight={weight}")
    trainer = make_trainer(Plan("dpo", tiny, None, *rows_for(config, "dpo"), config.toxifier, 0), tmp_path)
    torch.manual_seed(1)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    trainer.model.eval()
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        found = trainer.compute_loss(trainer.model, dict(batch))
        policy = _log_probabilities(trainer.model, batch)
        reference = _log_probabilities(AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32), batch)
    # Rafailov et al., 2023, equation 7.
    (chosen, rejected), (ref_chosen, ref_rejected) = policy, reference
    advantage = (chosen - ref_chosen) - (rejected - ref_rejected)
    expected = -torch.log(1 / (1 + torch.exp(-0.3 * advantage))).mean()
    assert abs(float(expected) - 0.6931) > 0.01, "a policy equal to its reference would show nothing"
    tokens = batch["completion_mask"].chunk(2)[0].sum()
    expected = expected - weight * chosen.sum() / tokens  # the mean loss of the chosen side's tokens
    assert float(found) == pytest.approx(float(expected), rel=1e-5, abs=1e-6)


DRIVER = """
import pickle, sys
import ray
from safeclip.toxifier.train import train_step
ray.init(address=sys.argv[2], logging_level="error")
train_step(*pickle.load(open(sys.argv[1], "rb")))
"""


def test_a_killed_driver_and_a_killed_worker_end_where_an_undisturbed_training_does(ray_cluster, tiny, tmp_path):
    """Two workers begin, one goes on, and another takes its place."""
    config = config_for(tiny, "toxifier.dpo.epochs=3")
    folder, rows = Folder(str(tmp_path / "dpo")), rows_for(config, "dpo")
    (tmp_path / "work.pickle").write_bytes(pickle.dumps((config, folder, None, *rows)))
    words = [str(tmp_path / "work.pickle"), ray.get_runtime_context().gcs_address]
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, *words], cwd=ROOT)

    def checkpoints():
        return set(tmp_path.glob("dpo/training-*/checkpoint_*/best/adapter_model.safetensors"))

    first = wait_until(checkpoints, lambda: driver.poll() is None)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert read_manifest(folder) is None, "it was complete before it was killed"
    alone = config_for(tiny, "toxifier.dpo.epochs=3", "toxifier.resources.actors=1")
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(train_step, alone, folder, None, *rows)
        wait_until(lambda: checkpoints() - first, lambda: not training.done())
        (worker,) = train_workers()
        worker.kill()
        manifest = training.result()

    small = config_for(tiny, "toxifier.dpo.epochs=3", "toxifier.dpo.micro_batch=2")  # gradients that add up
    trainer = make_trainer(Plan("dpo", tiny, None, *rows, small.toxifier, 0), tmp_path / "undisturbed")
    trainer.train()
    history = trainer.state.log_history
    losses, validation = ([log[name] for log in history if name in log] for name in ("loss", "eval_loss"))
    assert (len(losses), len(validation)) == (12, 3)
    assert min(validation) < losses[0]
    assert manifest["steps"] == len(losses)
    assert manifest["loss"] == pytest.approx(losses, rel=0.01)
    assert manifest["validation_loss"] == pytest.approx(validation, rel=0.01)
    assert load_file(folder.path("adapter_model.safetensors"))
    assert not [p for p in Path(folder.path()).iterdir() if p.name.startswith("training-")]


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["toxifier.dpo.batch=64"], "toxifier.dpo.batch: 64 is more than the 16 rows"),
        (["toxifier.dpo.batch=9"], "toxifier.dpo.batch: 9 does not divide among 2 workers"),
        (
            ["toxifier.dpo.batch=16", "toxifier.dpo.micro_batch=3"],
            "toxifier.dpo.micro_batch: 3 does not divide a worker's share of the batch, which is 8",
        ),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_before_workers_start(tiny, sets, message):
    with pytest.raises(UserError, match=message):
        rows_for(config_for(tiny, *sets), "dpo")


def test_a_batch_of_preferences_is_checked_before_the_hours_that_they_take(tmp_path):
    run = Folder(str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"toxifier.dpo.batch: 9 does not divide among 2 workers"):
        train_toxifier(load_config(sets=["toxifier.dpo.batch=9"]), run)
    assert not run.exists()


def test_a_loss_that_is_no_number_ends_with_what_to_do(tiny, tmp_path):
    config = config_for(tiny, "toxifier.sft.learning_rate=1.0e+30", "toxifier.sft.epochs=1")
    plan = Plan("sft", tiny, None, *rows_for(config, "sft"), config.toxifier, 0)
    trainer = make_trainer(plan, tmp_path)
    trainer.train()
    with pytest.raises(UserError, match=r"the loss is not a finite number; lower toxifier.sft.learning_rate"):
        check_losses("sft", 1e30, trainer.state.log_history)
