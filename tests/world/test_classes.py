import numpy as np
import pytest

from safeclip.encoder.load import load_encoder
from safeclip.evaluation.zero_shot import class_embeddings, classify
from safeclip.world.classes import VARIANTS, descriptions, pictures_of_one
from safeclip.world.scenes import BACKGROUNDS


def test_every_class_occurs_as_often_and_a_seed_gives_the_same_pictures():
    pictures, labels, names = pictures_of_one(2 * 98, 1)
    assert pictures.shape == (196, 64, 64, 3)
    assert len(names) == len(set(names))
    assert np.bincount(labels).max() - np.bincount(labels, minlength=len(names)).min() <= 1
    assert np.array_equal(pictures, pictures_of_one(2 * 98, 1)[0])
    assert not np.array_equal(pictures, pictures_of_one(2 * 98, 2)[0])


def test_descriptions_name_the_class_on_each_background():
    texts = [template("orange") for template in descriptions()]
    assert {"an orange on orange background", "a picture of an orange on orange"} <= set(texts)
    assert len(set(texts)) == 2 * len(BACKGROUNDS)


def test_the_base_encoder_tells_the_objects_apart():
    encoder = load_encoder("world:encoder")
    pictures, labels, names = pictures_of_one(300, 5)
    classes = class_embeddings(encoder, names, descriptions())
    images = encoder.encode_pixels(pictures.transpose(0, 3, 1, 2))
    assert classify(images, classes, labels)["top1"].mean() > 0.9


def test_variants_show_the_same_objects_in_another_way():
    drawn = {variant: pictures_of_one(98, 1, variant) for variant in VARIANTS}
    upright, labels, names = drawn["upright"]
    assert np.array_equal(upright, pictures_of_one(98, 1)[0])
    for variant in VARIANTS[1:]:
        pictures, same, _ = drawn[variant]
        assert np.array_equal(same, labels)
        assert np.mean([not np.array_equal(a, b) for a, b in zip(upright, pictures, strict=True)]) > 0.9
    corners = {variant: pictures[:, 0, 0] for variant, (pictures, *_) in drawn.items()}
    assert np.array_equal(corners["upright"], corners["recoloured"])  # only the object is
    apple = names.index("apple")
    assert not np.array_equal(upright[apple], drawn["recoloured"][0][apple])
    assert np.ptp(drawn["new_backgrounds"][0][:, :, 0].astype(int), axis=1).max(1).mean() > 30
    with pytest.raises(ValueError, match="'tilted' is none of upright"):
        pictures_of_one(1, 1, "tilted")
