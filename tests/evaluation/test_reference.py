import numpy as np

from safeclip.encoder.load import load_encoder
from safeclip.evaluation.batches import Missing
from safeclip.evaluation.embeddings import EmbeddedSet
from safeclip.evaluation.encoders import identify
from safeclip.evaluation.reference import find_reference
from safeclip.evaluation.retrieval import Embeddings
from safeclip.evaluation.sets import EvaluationSet


def embedded(label):
    random = np.random.default_rng(0)
    sides = Embeddings(*(random.normal(size=(3, 4)).astype(np.float32) for _ in range(4)))
    return EmbeddedSet(["a", "b", "c"], ["0.parquet"] * 3, ["hate"] * 3, {label: sides})


def test_the_base_s_embeddings_are_taken_from_those_that_are_there(report):
    config, run, _ = report
    source = EvaluationSet("retrieval", "", "", run / "quadruplets" / "test")
    there = embedded("before")
    found = find_reference(config, source, there, {"before": "world:encoder"}, {"before": "0"}, run / "embeddings")
    texts, images = found.of(["c", "a"])
    assert (found.encoder, found.identity) == ("world:encoder", "0")
    assert np.array_equal(texts, there.embeddings["before"].safe_text[[2, 0]])
    assert np.array_equal(images, there.embeddings["before"].safe_image[[2, 0]])


def test_a_base_that_is_not_compared_embeds_the_set_and_one_that_does_not_load_is_a_line(report, tmp_path):
    config, run, _ = report
    source = EvaluationSet("retrieval", "", "", run / "quadruplets" / "test")
    encoders = {"safe": str(run / "encoder" / "open_clip")}
    arguments = source, embedded("safe"), encoders, {"safe": "0"}, run / "embeddings"
    rows = source.folder.read_table("00000.parquet").to_pylist()[:3]
    found = find_reference(config, *arguments)
    assert found.identity == identify({"base": "world:encoder"})["base"]
    texts, images = found.of([row["id"] for row in rows])
    encoder = load_encoder("world:encoder")
    assert np.abs(texts - encoder.encode_texts([row["safe_caption"] for row in rows])).max() < 1e-5
    assert np.abs(images - encoder.encode_images([row["safe_image"] for row in rows])).max() < 1e-5
    train = config.train.model_copy(update={"base": str(tmp_path)})
    missing = find_reference(config.model_copy(update={"train": train}), *arguments)
    assert isinstance(missing, Missing)
    assert missing.reason.startswith(f"encoder '{tmp_path}'")
