import numpy as np
import open_clip

from safeclip.encoder.load import load_encoder
from safeclip.evaluation.zero_shot import class_embeddings, classify


def test_a_class_is_the_mean_of_its_descriptions():
    encoder = load_encoder("world:encoder")
    templates = open_clip.OPENAI_IMAGENET_TEMPLATES[:3]
    found = class_embeddings(encoder, ["dog", "cat"], templates)
    for name, embedding in zip(("dog", "cat"), found, strict=True):
        mean = np.mean([encoder.encode_texts([template(name)])[0] for template in templates], axis=0)
        assert np.allclose(embedding, mean / np.linalg.norm(mean), atol=1e-6)


def test_the_most_similar_class_counts_and_the_first_of_equal_ones():
    classes = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    images = np.array([[0.8, 0.6], [0.6, 0.8], [0.8, 0.6], [0.6, 0.8]])
    assert classify(images, classes, np.array([0, 1, 2, 0]))["top1"].tolist() == [True, True, False, False]


def test_the_first_five_count_from_the_most_similar_class():
    random = np.random.default_rng(0)
    images, classes = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in random.normal(size=(2, 40, 8)))
    labels = random.integers(40, size=40)
    found = classify(images, classes, labels)
    order = np.argsort(-(images @ classes.T), axis=1)
    assert np.array_equal(found["top1"], order[:, 0] == labels)
    assert np.array_equal(found["top5"], (order[:, :5] == labels[:, None]).any(1))
