import io

import numpy as np
import pytest
from PIL import Image

from safeclip.errors import UserError
from safeclip.records import QUADRUPLET
from safeclip.world import scenes
from safeclip.world.quadruplets import (
    held_out_quadruplets,
    rendered_quadruplets,
    scene_keys,
    trained_unsafe_objects,
)
from safeclip.world.scenes import Scene


def _scene(caption):
    return Scene(tuple(scenes.objects_named(caption)), scenes.background_named(caption), 0)


@pytest.fixture(scope="module")
def rows():
    return rendered_quadruplets(1000, 0, trained_unsafe_objects()).to_pylist()


def test_rows_are_quadruplets_of_the_test_split(rows):
    table = rendered_quadruplets(3, 0, trained_unsafe_objects())
    assert table.schema == QUADRUPLET
    assert {row["split"] for row in rows} == {"test"}
    assert len({row["id"] for row in rows}) == 1000


def test_scenes_are_reserved_and_different(rows):
    for side in ("safe_caption", "unsafe_caption"):
        drawn = [_scene(row[side]) for row in rows]
        assert all(scene.reserved for scene in drawn)
        assert len({scene.key for scene in drawn}) == 1000


def test_an_unsafe_object_stands_in_the_place_of_one_of_the_two(rows):
    for row in rows:
        safe, unsafe = _scene(row["safe_caption"]), _scene(row["unsafe_caption"])
        assert safe.concepts == frozenset()
        assert unsafe.concepts == {row["concept"]}
        changed = [(a, b) for a, b in zip(safe.objects, unsafe.objects, strict=True) if a != b]
        assert len(changed) == 1
        old, new = (scenes.with_article(name) for name in changed[0])
        assert row["safe_caption"].replace(old, new, 1) == row["unsafe_caption"]
        assert changed[0][1] not in scenes.HELD_OUT_OBJECTS


def test_pictures_show_what_the_captions_say(rows):
    pictures = {
        side: np.stack([np.asarray(Image.open(io.BytesIO(row[side]))) for row in rows[:50]]).astype(int)
        for side in ("safe_image", "unsafe_image")
    }
    assert pictures["safe_image"].shape == (50, 64, 64, 3)
    for row, safe, unsafe in zip(rows, pictures["safe_image"], pictures["unsafe_image"], strict=False):
        colour = np.array(scenes.BACKGROUNDS[_scene(row["safe_caption"]).background])
        assert np.abs(safe[0, 0] - colour).max() <= 6
        assert np.abs(unsafe[0, 0] - colour).max() <= 6
        assert (np.abs(safe - unsafe).max(-1) > 40).any()


def test_same_seed_same_rows():
    objects = trained_unsafe_objects()
    first = rendered_quadruplets(20, 3, objects)
    assert first.equals(rendered_quadruplets(20, 3, objects))
    assert not first.equals(rendered_quadruplets(20, 4, objects))


def test_excluded_scenes_do_not_occur(rows):
    captions = [row[side] for row in rows[:200] for side in ("safe_caption", "unsafe_caption")]
    exclude = scene_keys(captions)
    again = rendered_quadruplets(1000, 0, trained_unsafe_objects(), exclude).to_pylist()
    keys = {_scene(row[side]).key for row in again for side in ("safe_caption", "unsafe_caption")}
    assert len(exclude) == 400
    assert not exclude & keys


def test_too_many_are_refused_with_how_many_there_are():
    with pytest.raises(UserError, match=r"evaluate\.rendered: 3000 is too many; .* there are 1\d\d\d different"):
        rendered_quadruplets(3000, 0, trained_unsafe_objects())


def test_held_out_objects_have_a_set_of_their_own():
    rows = held_out_quadruplets(300, 0).to_pylist()
    shown = {name for row in rows for name in scenes.objects_named(row["unsafe_caption"])}
    assert shown >= scenes.HELD_OUT_OBJECTS
    assert not shown & set(trained_unsafe_objects())
    assert 250 <= len(rows) <= 300
    assert held_out_quadruplets(10, 0).num_rows == 10


def test_keys_of_captions_err_on_the_side_of_too_many():
    assert scene_keys(["a dog next to a cat on a blue background"]) == {"cat|dog|blue"}
    assert scene_keys(["a dog, a cat and a bomb on a blue background"]) == {
        "cat|dog|blue", "bomb|dog|blue", "bomb|cat|blue"
    }  # fmt: skip
    assert scene_keys(["a dog and a bomb"]) == {f"bomb|dog|{colour}" for colour in scenes.BACKGROUNDS}
    assert scene_keys(["nothing that the world knows"]) == set()
