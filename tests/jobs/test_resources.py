from pathlib import Path

import pytest

from jobs.command import ray_session
from jobs.resources import lacking
from safeclip.config import load_config

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("sets", "wanting"),
    [
        ([], []),
        (["train.resources.actors=4"], ["train.resources: 4 CPUs"]),
        (["train.resources={actors: 3, cpus: 0.5, gpus: 1}"], ["train.resources: 3 GPUs"]),
        (["train.resources.actors=4", "train.min_workers=2"], []),
        (["toxifier.resources.actors=3"], ["toxifier.resources: 3 CPUs"]),
        (["generate.toxify.resources.actors=9"], []),  # those for which there is room do all the work
        (["generate.illustrate.resources.cpus=3"], ["generate.illustrate.resources: 3 CPUs"]),
        (
            ["evaluate.resources.gpus=1", "evaluate.text_to_image.resources.gpus=1"],
            ["evaluate.resources: 1 GPU", "evaluate.text_to_image.resources: 1 GPU"],
        ),
        (["evaluate.image_to_text=null"], []),
    ],
)
def test_what_a_job_reserves_at_once_is_compared_with_what_there_is(sets, wanting):
    sections = ["toxifier", "generate", "train", "evaluate"]
    assert lacking(load_config(ROOT / "ray_config.yaml", sets=sets), sections, [{"CPU": 2.0}]) == wanting


@pytest.mark.parametrize(
    ("sets", "machines", "wanting"),
    [
        (["train.resources={actors: 4, cpus: 6, gpus: 1}"], 8, ["train.resources: no machine has 6 CPUs and 1 GPU"]),
        (["generate.toxify.resources={cpus: 0, gpus: 2}"], 4, ["generate.toxify.resources: no machine has 2 GPUs"]),
        (
            ["train.resources={actors: 4, cpus: 3}"],
            3,
            ["train.resources: machines have room for 3 of 4 with 3 CPUs"],
        ),
        (["train.resources={actors: 4, cpus: 3}", "train.min_workers=3"], 3, []),
        (["train.resources={actors: 3, cpus: 4, gpus: 1}"], 3, []),
        (["train.resources={actors: 30, cpus: 0.1, gpus: 0.1}"], 3, []),
    ],
)
def test_each_actor_or_worker_has_room_on_one_machine(sets, machines, wanting):
    config = load_config(ROOT / "ray_config.yaml", sets=sets)
    assert lacking(config, ["generate", "train"], [{"CPU": 4.0, "GPU": 1.0}] * machines) == wanting


def test_cpus_of_a_machine_without_gpus_are_of_no_use_to_one_with_few():
    config = load_config(ROOT / "ray_config.yaml", "full")
    there = [{"CPU": 32.0}, *[{"CPU": 4.0, "GPU": 1.0}] * 8]
    assert lacking(config, ["train"], there) == ["train.resources: no machine has 6 CPUs and 1 GPU"]


def test_a_cluster_is_waited_for_in_one_line(ray_cluster, capsys):
    sets = ["train.resources.actors=9", "evaluate.resources.gpus=1"]
    with ray_session(load_config(ROOT / "ray_config.yaml", sets=sets), "train", "evaluate"):
        pass
    said = capsys.readouterr().out
    assert said.startswith("the cluster has 8 CPUs and ")
    assert said.endswith(" at once: train.resources: 9 CPUs, evaluate.resources: 1 GPU\n")
