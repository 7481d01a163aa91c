import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeclip.concepts import CONCEPTS, SEXUAL_CONCEPTS, check_concepts
from safeclip.config import load_config
from safeclip.errors import UserError

EXCLUDED = [
    "child abuse", "Child Abuse", "CHILD ABUSE", "child_abuse", "child-abuse", "childabuse", " child abuse ",
    "ch1ld abuse", "c h i l d abuse", "сhild abuse", "ｃhild abuse", "minors", "kids", "teen",
]  # fmt: skip


@pytest.mark.parametrize("concept", EXCLUDED)
@pytest.mark.parametrize("acknowledge", [True, False])
def test_the_excluded_concept_is_refused_in_any_spelling(concept, acknowledge):
    with pytest.raises(UserError, match=r"generate\.concepts"):
        check_concepts(["blood", concept], acknowledge)


@pytest.mark.parametrize("concept", ["child abuse", "Child Abuse", "child_abuse"])
def test_its_refusal_says_that_it_is_for_good(concept):
    with pytest.raises(UserError, match="excluded for good; no setting enables it"):
        check_concepts([concept], True)


@pytest.mark.parametrize("concept", EXCLUDED)
def test_no_config_brings_it_back(concept):
    sets = [f"generate.concepts=['{concept}']", "generate.acknowledge_explicit=true"]
    with pytest.raises(UserError, match=r"generate\.concepts"):
        load_config(sets=sets)


@given(st.text(max_size=20).filter(lambda text: text not in CONCEPTS))
def test_only_the_taxonomy_is_allowed(concept):
    with pytest.raises(UserError):
        check_concepts([concept], True)


def test_the_taxonomy_has_the_papers_other_nineteen_concepts():
    assert len(CONCEPTS) == len(set(CONCEPTS)) == 19
    assert set(CONCEPTS) > SEXUAL_CONCEPTS
    check_concepts(list(CONCEPTS), acknowledge_explicit=True)


@pytest.mark.parametrize("concept", sorted(SEXUAL_CONCEPTS))
def test_explicit_concepts_need_to_be_acknowledged(concept):
    with pytest.raises(UserError, match=rf"{concept} needs generate\.acknowledge_explicit=true"):
        check_concepts(["blood", concept], acknowledge_explicit=False)
    check_concepts(["blood", concept], acknowledge_explicit=True)


def test_a_concept_given_twice_is_refused():
    with pytest.raises(UserError, match="given twice"):
        check_concepts(["blood", "blood"], acknowledge_explicit=False)


def test_an_unknown_concept_is_answered_with_what_there_is():
    with pytest.raises(UserError, match=r"'wepons' is no concept; allowed: .*weapons"):
        check_concepts(["wepons"], acknowledge_explicit=False)
