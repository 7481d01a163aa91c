import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from safeclip.world.language_model import language_model


def _convert_as_a_worker_of_two(rank: int, meet: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{meet}", rank=rank, world_size=2)
    language_model()


def test_workers_that_convert_it_at_once_all_get_a_whole_model(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFECLIP_CACHE", str(tmp_path))
    torch.multiprocessing.spawn(_convert_as_a_worker_of_two, (str(tmp_path / "meet"),), nprocs=2)
    assert {path.name for path in tmp_path.iterdir()} <= {"smollm2-135m-instruct", "meet"}
    model = AutoModelForCausalLM.from_pretrained(language_model())
    assert (model.dtype, model.num_parameters()) == (torch.bfloat16, 134_515_008)
    tokenizer = AutoTokenizer.from_pretrained(language_model())
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])
