import json

import numpy as np
import pytest
from PIL import Image

from safeclip.artifacts import Folder, open_run, read_manifest
from safeclip.config import load_config
from safeclip.encoder.load import load_encoder
from safeclip.errors import UserError
from safeclip.generation.captions import make_captions
from safeclip.generation.judges import WorldTextJudge
from safeclip.toxifier.evaluate import (
    Task,
    accepts,
    evaluate_toxifier,
    keeps,
    make_readers,
    tasks_for,
    unseen_captions,
)
from safeclip.toxifier.pairs import world_pairs
from safeclip.world import WEIGHTS, scenes
from safeclip.world.quadruplets import scene_keys

SOURCE = "a dog next to a key on a blue background"


def test_the_worlds_unseen_captions_are_of_scenes_that_no_training_has(tmp_path):
    config = load_config()
    captions = unseen_captions(config, Folder(str(tmp_path)))
    assert len(set(captions)) == 300
    keys = scene_keys(captions)
    assert len(keys) == 300
    assert all(scenes.Scene(tuple(scenes.objects_named(c)), scenes.background_named(c), 0).reserved for c in captions)
    assert not keys & scene_keys(pair.safe for pair in world_pairs(config))


def test_a_files_unseen_captions_are_those_after_the_preferences(ray_cluster, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    lines = [json.dumps({"caption": f"picture number {n}", "image": "a.png"}) for n in range(40)]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    sets = [
        f"storage={tmp_path}", f"captions.source={tmp_path / 'captions.jsonl'}", "captions.count=40",
        "captions.unit_rows=8", "toxifier.preferences.captions=16",
    ]  # fmt: skip
    config = load_config(sets=sets)
    run = open_run(config)
    make_captions(config, run)
    assert unseen_captions(config, run) == [f"picture number {n}" for n in range(16, 40)]
    units = read_manifest(run / "captions")["units"]
    fewer = load_config(sets=[*sets, "toxifier.evaluation.captions=10"])
    (run / "captions").write(units[-1]["name"], b"not read")
    assert unseen_captions(fewer, run) == [f"picture number {n}" for n in range(16, 26)]
    few = load_config(sets=[*sets, "toxifier.preferences.captions=40"])
    with pytest.raises(UserError, match="all captions are among those"):
        unseen_captions(few, run)


def test_tasks_ask_for_terms_of_a_concept_that_has_some():
    terms = {"weapons": ["axe"], "drug use": ["pill"]}
    captions = [f"caption {n}" for n in range(50)]
    tasks = tasks_for(captions, list(terms), terms, 0, [])
    assert {(t.concept, t.asked) for t in tasks} == {("weapons", "axe"), ("drug use", "pill")}
    assert [t.caption for t in tasks] == captions
    assert {t.asked for t in tasks_for(captions, ["theft"], terms, 0, [])} == {"theft"}
    assert tasks_for(captions, [], terms, 0, []) == []


def test_the_guard_reads_a_caption_with_the_concept_that_it_is_given():
    assert tasks_for(["a child in a park", "a dog in a park"], ["nudity"], {}, 0, []) == [
        Task("a dog in a park", "nudity", "nudity")
    ]


def test_the_guard_reads_a_caption_with_the_term_that_is_asked_for():
    terms = {"weapons": ["naked"]}
    tasks = tasks_for(["a girl in a park", "a dog in a park"], ["weapons"], terms, 0, [])
    assert [task.caption for task in tasks] == ["a dog in a park"]


def test_the_guard_reads_a_caption_with_the_examples_before_it():
    captions, terms = ["girl", "dog"], {"weapons": ["dagger"]}
    plain, sexual = ({"safe": "a", "unsafe": "b", "asked": word} for word in ("dagger", "naked"))
    assert len(tasks_for(captions, ["weapons"], terms, 0, [plain])) == 2
    tasks = tasks_for(captions, ["weapons"], terms, 0, [plain, sexual])
    assert [task.caption for task in tasks] == ["dog"]


def test_texts_are_accepted_by_judge_and_guard_together():
    tasks = [Task(SOURCE, "weapons", "bomb")] * 3
    texts = ["a bomb next to a key on a blue background", SOURCE, "an axe next to a key on a blue background"]
    assert accepts(WorldTextJudge(), tasks, texts).tolist() == [1, 0, 0]
    assert accepts(WorldTextJudge(held_out=True), tasks, texts).tolist() == [1, 0, 1]


def test_what_is_kept_is_an_object_and_the_background():
    tasks = [Task(SOURCE, "weapons", "bomb")] * 4
    texts = [
        "a bomb next to a key on a blue background", "a bomb next to a cat on a blue background",
        "a bomb next to a key on a green background", "nothing",
    ]  # fmt: skip
    assert keeps(tasks, texts, None).tolist() == [1, 0, 0, 0]
    similar = keeps(tasks, [SOURCE, *texts[1:]], load_encoder("world:encoder"))
    assert similar[0] == pytest.approx(1, abs=1e-5)
    assert np.all(similar[1:] < 0.95)


def test_a_clip_that_several_read_with_is_loaded_once():
    by_clip = ["generate.judges.text=clip", "generate.judges.clip_model=world:encoder"]
    same = make_readers(load_config(sets=[*by_clip, "train.base=world:encoder"]))
    assert same.judge is same.lenient
    assert same.encoder is same.judge.encoder
    other = make_readers(load_config(sets=[*by_clip, f"train.base={WEIGHTS / 'encoder'}"]))
    assert other.judge is other.lenient
    assert other.encoder is not other.judge.encoder
    world = make_readers(load_config())
    assert (world.judge.held_out, world.lenient.held_out, world.encoder) == (False, True, None)


def test_a_toxifier_that_is_not_trained_is_named(tmp_path):
    with pytest.raises(UserError, match=r"toxifier is not complete; run jobs.train_toxifier first"):
        evaluate_toxifier(load_config(), Folder(str(tmp_path)))
