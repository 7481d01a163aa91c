import pytest

from safeclip.artifacts import Folder
from safeclip.errors import UserError
from safeclip.evaluation.prompts import quadruplet_prompts, read_prompts
from safeclip.evaluation.sets import EvaluationSet
from safeclip.world.quadruplets import rendered_quadruplets, trained_unsafe_objects

HEADER = "prompt,categories,hard,sd_seed,sd_guidance_scale"


def write(folder, *lines, header=HEADER):
    (folder / "prompts.csv").write_text("\n".join([header, *lines, ""]), encoding="utf-8-sig")
    return str(folder / "prompts.csv")


def read(folder, *lines, header=HEADER, count=100, explicit=False):
    return read_prompts(write(folder, *lines, header=header), count, 0, explicit)


def test_the_layout_of_i2p_is_read_with_the_prompts_own_seeds(tmp_path):
    found = read(
        tmp_path,
        '"a bomb, drawn",violence,0,4065246500,7.5',
        'a syringe,"self-harm, shocking",1,12.0,',
        "a fist,hate,,,",
    )
    assert found.rejected == {}
    assert [p.text for p in found.accepted] == ["a bomb, drawn", "a syringe", "a fist"]
    assert [p.concepts for p in found.accepted] == [("violence",), ("suicide", "bodily fluids"), ("hate",)]
    assert [(p.seed, p.guidance) for p in found.accepted[:2]] == [(4065246500, 7.5), (12, None)]
    assert all(p.unsafe for p in found.accepted)


def test_the_column_prompt_is_enough_and_seeds_then_follow_from_the_text(tmp_path):
    found = read(tmp_path, "a bomb", "a knife", header="prompt").accepted
    assert [p.concepts for p in found] == [(), ()]
    assert found[0].seed != found[1].seed
    again = read(tmp_path, "a knife", header="prompt").accepted
    assert again[0] == found[1]
    assert len(read(tmp_path, "a bomb", "a knife", header="prompt", count=1).accepted) == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (",violence,0,1,7", "prompt empty, first in line 3"),
        ("a knife,cooking,0,1,7", "a category that is neither I2P's nor the taxonomy's, first in line 3"),
        ("a knife,violence,0,one,7", "sd_seed is no whole number from 0 on, first in line 3"),
        ("a knife,violence,0,1.5,7", "sd_seed is no whole number from 0 on, first in line 3"),
        ("a knife,violence,0,-4,7", "sd_seed is no whole number from 0 on, first in line 3"),
        ("a knife,violence,0,1,nan", "sd_guidance_scale is no number from 0 to 100, first in line 3"),
        ("a knife,violence,0,1,7,8", "more cells than columns, first in line 3"),
        ("a body,sexual,0,1,7", "explicit, and generate.acknowledge_explicit is off"),
        ("naked,violence,0,1,7", "explicit, and generate.acknowledge_explicit is off"),
        ("naked,,0,1,7", "explicit, and generate.acknowledge_explicit is off"),
    ],
)
def test_a_bad_row_is_rejected_with_reason_and_line(tmp_path, line, reason):
    found = read(tmp_path, "a bomb,violence,0,1,7", line, "a fist,violence,0,1,7")
    assert [p.text for p in found.accepted] == ["a bomb", "a fist"]
    assert found.rejected == {reason: 1}


def test_bad_rows_are_counted_by_reason(tmp_path):
    found = read(tmp_path, ",hate,,,", "a fist,hate,,,", *[",hate,,,"] * 3, *["a knife,cooking,,,"] * 2)
    assert found.rejected == {
        "prompt empty, first in line 2": 4,
        "a category that is neither I2P's nor the taxonomy's, first in line 7": 2,
    }


def test_the_guard_stands_before_every_prompt_and_a_category_of_none_counts_as_the_strictest(tmp_path):
    assert read(tmp_path, "a bomb", "minor", header="prompt").rejected == {
        "guard: possible minor with a sexual concept": 1
    }
    found = read(tmp_path, "a bomb,violence,,,", 'minor,"violence, sexual",,,', explicit=True)
    assert [p.text for p in found.accepted] == ["a bomb"]
    assert list(found.rejected.values()) == [1]
    assert not any("minor " in reason and "line" in reason for reason in found.rejected)


def test_explicit_prompts_are_taken_where_the_config_acknowledges_them(tmp_path):
    assert read(tmp_path, "a body,sexual,0,1,7", explicit=True).accepted[0].concepts == ("sexual",)
    assert len(read(tmp_path, "naked,violence,0,1,7", "naked,,0,1,7", explicit=True).accepted) == 2


def test_a_prompt_may_name_its_category(tmp_path):
    assert len(read(tmp_path, "an obscene gesture,obscene gestures,0,1,7").accepted) == 1


@pytest.mark.parametrize(
    ("lines", "header", "said"),
    [
        (["a bomb"], "text", "has no column 'prompt'; it has text"),
        ([], HEADER, "holds no prompt that can be used$"),
        ([",violence,,,"], HEADER, r"holds no prompt that can be used \(prompt empty, first in line 2\)"),
    ],
)
def test_a_file_of_no_use_is_named_with_what_is_wrong(tmp_path, lines, header, said):
    with pytest.raises(UserError, match=rf"^evaluate\.text_to_image\.prompts: .*prompts\.csv: {said}"):
        read(tmp_path, *lines, header=header)


def test_a_missing_or_binary_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.csv: No such file"):
        read_prompts(str(tmp_path / "nowhere.csv"), 1, 0, False)
    (tmp_path / "picture.csv").write_bytes(b"\xff\xd8\xff\x00")
    with pytest.raises(UserError, match=r"picture\.csv: is no text in UTF-8"):
        read_prompts(str(tmp_path / "picture.csv"), 1, 0, False)


def test_quadruplets_give_an_unsafe_and_a_safe_prompt_each(tmp_path):
    folder = Folder(str(tmp_path))
    table = rendered_quadruplets(6, 1, trained_unsafe_objects())
    folder.write_table("0.parquet", table.slice(0, 4))
    folder.write_table("1.parquet", table.slice(4))
    found = quadruplet_prompts(EvaluationSet("name", "title", "", folder), 5, 0).accepted
    rows = table.to_pylist()[:5]
    assert [p.text for p in found if p.unsafe] == [row["unsafe_caption"] for row in rows]
    assert [p.text for p in found if not p.unsafe] == [row["safe_caption"] for row in rows]
    assert [p.concepts for p in found if p.unsafe] == [(row["concept"],) for row in rows]
    assert len({p.seed for p in found}) == 10


def test_quadruplets_that_the_guard_drops_are_counted(tmp_path):
    rows = rendered_quadruplets(2, 1, trained_unsafe_objects())
    rows = rows.set_column(1, "concept", [["no such concept", rows["concept"][1].as_py()]])
    Folder(str(tmp_path)).write_table("0.parquet", rows)
    found = quadruplet_prompts(EvaluationSet("name", "title", "", Folder(str(tmp_path))), 2, 0)
    assert len(found.accepted) == 2
    assert found.rejected == {"guard: no concept of the taxonomy": 2}
