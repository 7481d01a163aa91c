from pathlib import Path

import pytest
import yaml

from safeclip.artifacts import TO_QUADRUPLETS, open_run, saved_config
from safeclip.config import Config, Judges, differences, load_config, parse_config, save_config
from safeclip.errors import UserError

SHIPPED = Path(__file__).parents[1] / "ray_config.yaml"
PROFILES = sorted(yaml.safe_load(SHIPPED.read_text())["profiles"])


def refusal(*sets, **options):
    with pytest.raises(UserError) as refused:
        load_config(SHIPPED, sets=list(sets), **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_the_shipped_profiles_are_the_documented_ones():
    assert PROFILES == ["embedded", "full"]
    assert load_config(SHIPPED).profile == "embedded"


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_loads_and_comes_back_from_its_resolved_copy(profile, tmp_path):
    config = load_config(SHIPPED, profile)
    assert config.profile == profile
    copy = tmp_path / "config.yaml"
    copy.write_text(save_config(config))
    assert load_config(copy) == config
    assert not differences(load_config(copy).model_dump(), config.model_dump())


@pytest.mark.parametrize("profile", PROFILES)
def test_no_profile_enables_explicit_concepts(profile):
    config = load_config(SHIPPED, profile)
    assert not config.generate.acknowledge_explicit
    assert not {"sexual", "nudity"} & set(config.generate.concepts)


def test_an_override_takes_the_type_of_its_yaml_value():
    config = load_config(
        SHIPPED,
        sets=["train.epochs=3", "train.learning_rate=0.0005", "captions.images=pictures", "captions.count=null",
              "generate.concepts=[blood, weapons]", "generate.toxify.resources.actors=1"],
    )  # fmt: skip
    assert (config.train.epochs, config.train.learning_rate) == (3, 0.0005)
    assert (config.captions.images, config.captions.count) == ("pictures", None)
    assert config.generate.concepts == ["blood", "weapons"]
    assert config.generate.toxify.resources.actors == 1
    assert config.generate.toxify.resources.cpus == 1, "what stands beside an override stays"


def test_an_empty_mapping_empties_what_was_there():
    config = load_config(SHIPPED, sets=["generate.toxify.terms={}"])
    assert config.generate.toxify.terms == {}
    assert config.generate.toxify.model == "world:llm", "what stands beside it stays"


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 0.001), ("1E-3", 0.001), ("5e-04", 0.0005), ("1.0e-3", 0.001), (".5e1", 5.0)]
)
def test_a_number_may_be_written_with_an_exponent(text, value):
    assert load_config(SHIPPED, sets=[f"train.learning_rate={text}"]).train.learning_rate == value
    file = SHIPPED.read_text().replace("learning_rate: 0.004", f"learning_rate: {text}")
    assert parse_config(file, "mine.yaml").train.learning_rate == value


def test_text_that_looks_like_a_number_comes_back_as_text():
    config = load_config(SHIPPED, run="1e3")
    assert parse_config(save_config(config), "config.yaml") == config


def test_the_run_of_the_command_line_wins():
    assert load_config(SHIPPED, sets=["run=one"], run="two").run == "two"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", "train.epoch: no such setting; did you mean epochs?"),
        ("generate.toxify.candidate=3", "generate.toxify.candidate: no such setting; did you mean candidates?"),
        ("train.lora.droput=0.1", "train.lora.droput: no such setting; did you mean dropout?"),
        ("zzz=1", "zzz: no such setting; allowed: profile, run, storage, seed, ray, captions"),
        ("train.epochs=many", "train.epochs: 'many' will not do; input should be a valid integer"),
        ("train.epochs=2.5", "train.epochs: 2.5 will not do"),
        ("train.epochs='3'", "train.epochs: '3' will not do"),
        ("train.epochs=0", "train.epochs: 0 will not do; input should be greater than or equal to 1"),
        ("ray.num_cpus=0", "ray.num_cpus: 0 will not do; input should be greater than or equal to 1"),
        ("seed=true", "seed: True will not do"),
        ("captions.source=3", "captions.source: 3 will not do; input should be a valid string"),
        ("train.dtype=int8", "train.dtype: 'int8' will not do; input should be 'bfloat16'"),
        ("train=3", "train: 3 will not do; it has settings of its own, such as train.base"),
        ("evaluate.text_to_image=3", "evaluate.text_to_image: 3 will not do; it has settings of its own, such as "),
        ("generate.concepts=[]", "generate.concepts: [] will not do"),
        ("generate.concepts=[wepons]", "generate.concepts: 'wepons' is no concept; allowed: "),
        ("generate.toxify.terms.weapons=[girl]", "generate.toxify.terms: 'girl' is excluded for good"),
        ("toxifier.evaluation.heldout_terms.blood=[boy]", "toxifier.evaluation.heldout_terms: 'boy' is excluded"),
        ("generate.judges.text=clip", "generate.judges.clip_model: must name a CLIP"),
        ("evaluate.image_to_text={model: a, prompt: b}", "evaluate.image_to_text.prompt: must hold <image> once"),
        ("train.base=null", "train.base: None will not do"),
        ("run=../elsewhere", "run: '../elsewhere' will not do; a name is of letters, digits, dots, dashes and"),
        ("train.epochs", "--set train.epochs: write it as dotted.key=value"),
        ("profile=full", "--set profile=full: choose a profile with --profile full"),
        ("train..epochs=3", "--set train..epochs=3: write it as dotted.key=value"),
        ("=3", "--set =3: write it as dotted.key=value"),
        ("train.epochs=[", "--set train.epochs=[: the value is no YAML"),
    ],
)
def test_a_wrong_override_is_answered_with_key_value_and_what_is_right(override, message):
    assert refusal(override).startswith(message)


def test_an_unknown_profile_is_answered_with_those_there_are():
    assert "no such profile" in refusal(profile="huge")
    assert refusal(profile="huge").endswith("there are embedded, full")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\n", "no valid YAML at line 2"),
        ("", "holds no settings"),
        ("- 1", "holds no settings"),
        ("profiles: {embedded: {}}\ntrian: {}", "trian: belongs under shared or a profile"),
        ("profiles: {embedded: {}}\ndefault_profile: embedded", "captions: must be given"),
        ("profiles:\ndefault_profile: embedded", "profiles: must hold each profile's settings by its name"),
        ("profiles: [embedded]\ndefault_profile: embedded", "profiles: must hold each profile's settings"),
        ("profiles: {}\ndefault_profile: [embedded]", "no such profile"),
        ("profiles: {embedded: 3}\ndefault_profile: embedded", "profiles.embedded: 3 are no settings"),
        ("profiles: {embedded: {}}\nshared: [3]\ndefault_profile: embedded", "shared: [3] are no settings"),
        ("profiles: {embedded: {}}\n3: 4", "3: belongs under shared or a profile"),
    ],
)
def test_a_broken_file_is_refused(text, message):
    with pytest.raises(UserError) as refused:
        parse_config(text, "mine.yaml")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UserError, match=f"--config {path}: "):
            load_config(path)


def test_a_config_cannot_be_changed_once_built():
    config = load_config(SHIPPED)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3


def test_results_depend_on_neither_places_nor_numbers_of_actors():
    one = load_config(SHIPPED)
    other = load_config(SHIPPED, sets=["storage=/elsewhere", "run=x", "train.resources.actors=4", "ray.num_cpus=3"])
    assert one.results() == other.results()
    assert one.results() != load_config(SHIPPED, sets=["train.epochs=1"]).results()


def test_the_verdicts_of_a_judge_depend_on_its_own_settings():
    def judges(**more):
        return Judges(text="clip", image="clip", clip_model="a", **more)

    one = judges()
    assert one.of_texts() == judges(image_threshold=0.6).of_texts() != judges(text_threshold=0.6).of_texts()
    assert one.of_images() == judges(text_threshold=0.6).of_images() != judges(image_threshold=0.6).of_images()
    for other in (one.model_copy(update={"clip_model": "b"}), one.model_copy(update={"text": "world"})):
        assert one.of_texts() != other.of_texts()
    worlds = Judges(text="world", image="world")
    assert worlds.of_texts() == Judges(text="world", image="clip", clip_model="a", text_threshold=0.6).of_texts()
    assert worlds.of_images() == Judges(text="clip", image="world", clip_model="a").of_images()


def run_config(tmp_path, *sets) -> Config:
    return load_config(SHIPPED, sets=[f"storage={tmp_path}", *sets])


def test_a_run_folder_keeps_the_resolved_config(tmp_path):
    config = run_config(tmp_path, "seed=7")
    assert saved_config(open_run(config)) == config


def test_another_runs_settings_are_refused_unless_they_may_replace_it(tmp_path):
    (open_run(run_config(tmp_path)) / "captions").make()
    changed = run_config(tmp_path, "train.epochs=1", "seed=7")
    with pytest.raises(UserError) as refused:
        open_run(changed)
    epochs = f"train.epochs: {run_config(tmp_path).train.epochs} → 1"
    for part in ("seed: 0 → 7", epochs, "give another --run, or --replace"):
        assert part in str(refused.value)
    assert saved_config(open_run(changed, replace=True)) == changed


def test_a_job_takes_over_the_settings_of_what_it_makes_and_no_others(tmp_path):
    config = run_config(tmp_path)
    (open_run(config) / "captions").make()
    both = run_config(tmp_path, "seed=7", "train.epochs=1")
    for replace in (False, True):
        with pytest.raises(UserError, match=r"seed: 0 → 7.*; give another --run, or --replace"):
            open_run(both, replace, ["train"])
    assert saved_config(open_run(both, True, TO_QUADRUPLETS)) == run_config(tmp_path, "seed=7")
    assert saved_config(open_run(both, True, ["train"])) == both


def test_a_run_is_measured_by_other_settings(tmp_path):
    (open_run(run_config(tmp_path)) / "report").make()
    changed = run_config(
        tmp_path, "evaluate.rendered=300", "evaluate.zero_shot.pets=pets", "evaluate.text_to_image=null"
    )
    assert saved_config(open_run(changed)) == changed


def test_a_run_that_made_nothing_yet_takes_other_settings(tmp_path):
    open_run(run_config(tmp_path, "train.batch=7"))
    mended = run_config(tmp_path)
    assert saved_config(open_run(mended)) == mended


def test_other_numbers_of_actors_go_on_with_a_run(tmp_path):
    (open_run(run_config(tmp_path)) / "captions").make()
    assert open_run(run_config(tmp_path, "train.resources.actors=1")).exists("config.yaml")
