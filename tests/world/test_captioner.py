import pytest

from safeclip.world.captioner import prefix_tokens, told
from safeclip.world.scenes import Scene


@pytest.mark.parametrize(
    ("objects", "first", "last"),
    [
        (("kitchen knife", "cat"), ["cat"] * 4, ["kitchen", "knife"] * 2),
        (("drop of blood", "cat"), ["cat"] * 4, ["drop", "of", "blood", "drop"]),
        (("cat",), ["cat"] * 4, ["cat"] * 4),
        (("face with symbols on mouth", "lion"), ["face", "with", "symbols", "on"], ["lion"] * 4),
    ],
)
def test_a_prefix_starts_from_both_names_and_the_background_whatever_their_order(objects, first, last):
    for order in (objects, objects[::-1]):
        assert prefix_tokens(Scene(order, "blue", 0), str.split) == [*first, *last, "blue"]


def test_what_is_said_of_a_scene_does_not_depend_on_sides_or_seeds():
    assert {
        told(Scene(order, "blue", seed)) for seed in range(9) for order in (("cat", "bomb"), ("bomb", "cat"))
    } == {"a bomb next to a cat on a blue background"}
    assert told(Scene(("cat",), "blue", 3)) == "a cat on blue background"
