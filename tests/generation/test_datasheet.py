import shlex

from jobs.generate import main
from safeclip.artifacts import open_run
from safeclip.config import load_config
from safeclip.generation.datasheet import datasheet
from safeclip.generation.weights import model_hash

DATA = {"quadruplets": {"train": 8, "test": 2}, "rejected": {"captions: duplicate": 3}}


def sheet_of(*sets, models=None):
    manifests = {name: {"content_hash": f"hash of {name}"} for name in ("captions", "unsafe_captions")}
    manifests["unsafe_captions"] |= {"models": models} if models else {}
    return datasheet(load_config(sets=list(sets)), manifests, DATA)


def test_it_says_what_the_rows_were_made_with():
    sheet = sheet_of(models={"adapter_hash": "0123"})
    assert f"| LLM | world:llm | {model_hash('world:llm')} |" in sheet
    assert "| its adapter | world:toxifier | SHA-256 0123 |" in sheet
    assert f"| text-to-image | world:generator | {model_hash('world:generator')} |" in sheet
    assert "| texts | world vocabulary 1 | 1.0 | it knows the world's objects" in sheet
    assert "| pictures | world judge 1 | 0.5 | over 1,000 rendered scenes" in sheet
    assert "| captions: duplicate | 3 |" in sheet
    assert "| captions | hash of captions |" in sheet


def test_it_says_which_clip_judged_and_that_its_errors_are_not_known():
    sets = ["generate.judges.image=clip", "generate.judges.clip_model=world:encoder", "generate.toxify.adapter=null"]
    sheet = sheet_of(*sets, "generate.judges.image_threshold=0.7")
    assert f"| CLIP of the judges | world:encoder | {model_hash('world:encoder')} |" in sheet
    assert "| pictures | zero-shot prompts 1 on world:encoder | 0.7 | not measured on this data" in sheet
    assert "| its adapter | none |  |" in sheet


def test_its_command_deletes_the_unsafe_pictures_of_a_run_that_lies_elsewhere(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    sets = [f"storage={tmp_path}/a folder", "run=mine"]
    run = open_run(load_config(sets=sets))
    (run / "unsafe_images").make()
    command = sheet_of(*sets).split("`python -m jobs.generate ")[1].split("`")[0]
    main(shlex.split(command))
    assert not (run / "unsafe_images").exists()
