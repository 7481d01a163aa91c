import numpy as np
import pytest

from safeclip.world import scenes
from safeclip.world.scenes import Scene

UNSAFE = [name for objects in scenes.UNSAFE_OBJECTS.values() for name in objects]


def test_world_has_the_objects_that_the_method_needs():
    assert len(scenes.SAFE_OBJECTS) >= 80
    assert len(UNSAFE) >= 16
    assert len(set(UNSAFE)) == len(UNSAFE)
    assert len(scenes.HELD_OUT_OBJECTS) == 4
    assert set(UNSAFE) >= scenes.HELD_OUT_OBJECTS
    assert not set(scenes.SAFE_OBJECTS) & set(UNSAFE)


@pytest.mark.parametrize("name", [*scenes.SAFE_OBJECTS, *UNSAFE])
def test_every_object_is_drawn_and_seen(name):
    picture = scenes.render(Scene((name,), "white", 0))
    assert picture.shape == (64, 64, 3)
    assert picture.dtype == np.uint8
    inked = (np.abs(picture.astype(int) - picture[0, 0]).max(-1) > 30).mean()
    assert inked > 0.03


def test_no_two_objects_look_alike():
    names = [*scenes.SAFE_OBJECTS, *UNSAFE]
    # The seed of a scene depends on its objects, so pictures are compared in their mean over seeds.
    looks = [np.mean([scenes.render(Scene((n,), "white", k)) for k in range(8)], axis=0) for n in names]
    for i, look in enumerate(looks):
        assert all(np.abs(look - other).mean() > 1 for other in looks[:i]), names[i]


def test_same_seed_same_scenes_captions_and_pictures():
    first, again = (scenes.sample_scenes(20, 7, list(scenes.SAFE_OBJECTS)) for _ in range(2))
    assert first == again
    assert [scenes.caption(s) for s in first] == [scenes.caption(s) for s in again]
    assert all(np.array_equal(scenes.render(a), scenes.render(b)) for a, b in zip(first, again, strict=True))
    assert first != scenes.sample_scenes(20, 8, list(scenes.SAFE_OBJECTS))


def test_captions_name_what_is_shown_and_use_every_template():
    drawn = scenes.sample_scenes(200, 1, list(scenes.SAFE_OBJECTS), UNSAFE)
    for scene in drawn:
        text = scenes.caption(scene)
        assert all(name in text for name in scene.objects)
        assert scene.background in text
        assert len(scene.concepts) == 1
    assert {scenes.template_of(scene) for scene in drawn} == set(scenes.TWO_OBJECT_TEMPLATES)


@pytest.mark.parametrize(
    ("scene", "template", "text"),
    [
        (scenes.Scene(("umbrella", "dog"), "orange", 0), 0, "an umbrella next to a dog on an orange background"),
        (scenes.Scene(("bread", "orange"), "blue", 0), 1, "a picture of bread and an orange on blue"),
        (scenes.Scene(("glasses", "owl"), "orange", 0), 2, "glasses beside an owl in front of an orange wall"),
    ],
)
def test_captions_have_the_right_articles_and_are_read_again(scene, template, text):
    assert scenes.caption(scene, scenes.TWO_OBJECT_TEMPLATES[template]) == text
    assert tuple(scenes.objects_named(text)) == scene.objects
    assert scenes.background_named(text) == scene.background


def test_safe_scenes_have_no_concept():
    assert not any(s.concepts for s in scenes.sample_scenes(50, 3, list(scenes.SAFE_OBJECTS)))


@pytest.mark.parametrize(
    ("objects", "background", "word"),
    [
        (("dog",), "plaid", "plaid"),
        ((), "white", "one or two"),
        (("dog", "cat", "bee"), "white", "one or two"),
    ],
)
def test_impossible_scenes_are_refused_by_name(objects, background, word):
    with pytest.raises(ValueError, match=word):
        Scene(objects, background, 0)


def test_unknown_object_is_refused_by_name():
    with pytest.raises(KeyError, match="gryphon"):
        Scene(("gryphon",), "white", 0)


def test_every_object_is_of_a_kind_and_unsafe_kinds_hold_unsafe_objects_alone():
    safe = {scenes.kind_of(name) for name in scenes.SAFE_OBJECTS}
    unsafe = {scenes.kind_of(name) for name in UNSAFE}
    assert len(unsafe) == len(scenes.UNSAFE_OBJECTS)
    assert not safe & unsafe
    with pytest.raises(KeyError, match="unicorn"):
        scenes.kind_of("unicorn")


def test_loose_captions_name_objects_kinds_or_whether_they_are_safe():
    drawn = scenes.sample_scenes(400, 2, list(scenes.SAFE_OBJECTS), UNSAFE)
    called = {"name": 0, "kind": 0, "safety": 0}
    for scene in drawn:
        text = scenes.loose_caption(scene)
        assert text == scenes.loose_caption(scene)
        assert scene.background in text
        for name in scene.objects:
            safety = "something harmless" if scenes.concept_of(name) is None else "something unsafe"
            words = {"name": scenes.with_article(name), "kind": scenes.kind_of(name), "safety": safety}
            found = [how for how, word in words.items() if word in text]
            assert found, text
            called[found[-1]] += 1
    shares = {how: count / 800 for how, count in called.items()}
    assert shares == pytest.approx({"name": 0.5, "kind": 0.25, "safety": 0.25}, abs=0.06)
