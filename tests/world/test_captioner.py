import pytest

from safeclip.world.captioner import reading
from safeclip.world.scenes import Scene


@pytest.mark.parametrize(
    ("objects", "left", "right"),
    [
        (("kitchen knife", "cat"), ["kitchen", "knife", "kitchen", "knife"], ["cat"] * 4),
        (("drop of blood", "kitchen knife"), ["drop", "of", "blood", "drop"], ["kitchen", "knife"] * 2),
        (("cat",), ["cat"] * 4, ["cat"] * 4),
    ],
)
def test_a_pictures_rows_read_the_background_and_then_the_names_of_what_is_where(objects, left, right):
    whole, *patches = reading(Scene(objects, "blue", 0), str.split)
    rows = [[word for (word,) in patches[i : i + 4]] for i in range(0, 16, 4)]
    assert whole == ["blue", *(word for name in objects for word in name.split())]
    assert rows[0] == ["blue"] * 4
    assert [*rows[1][:2], *rows[2][:2]] == left
    assert [*rows[1][2:], *rows[2][2:]] == right
