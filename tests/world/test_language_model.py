import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from safeclip.world.language_model import language_model
from tests.processes import work_as_two


def _convert(rank: int) -> None:
    language_model()


def test_workers_that_convert_it_at_once_all_get_a_whole_model(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFECLIP_CACHE", str(tmp_path))
    work_as_two(_convert, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"smollm2-135m-instruct", "meet"}
    model = AutoModelForCausalLM.from_pretrained(language_model())
    assert (model.dtype, model.num_parameters()) == (torch.bfloat16, 134_515_008)
    tokenizer = AutoTokenizer.from_pretrained(language_model())
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])
