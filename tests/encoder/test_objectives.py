import dataclasses
import math

import numpy as np
import pytest
import torch

from safeclip.encoder.objectives import OBJECTIVES, Embeddings, Objective, contrastive, distance, make_objective
from safeclip.encoder.objectives.apart import Apart
from safeclip.encoder.objectives.safe_clip import SafeClip
from safeclip.encoder.objectives.safer_clip import EASIEST, RAMP, SaferClip
from safeclip.encoder.objectives.shield import Shield
from safeclip.encoder.validation import recall_at_1, recall_sum, validation_losses
from safeclip.errors import UserError
from tests.encoder.embeddings import SIDES, embeddings_of, random_embeddings


def plain_cross_entropy(one, other) -> float:
    """Row by row, as it is written in words: how surprised a softmax over the row's logits is by the right one."""
    total = 0.0
    for i, row in enumerate(one):
        logits = [100 * float(np.dot(row, other_row)) for other_row in other]
        largest = max(logits)
        total += largest + math.log(sum(math.exp(v - largest) for v in logits)) - logits[i]
    return total / len(one)


def plain_terms(e: Embeddings) -> tuple[dict[str, float], float]:
    s, v, u, g = (getattr(e, side).numpy() for side in SIDES)
    s_ref, v_ref = e.safe_text_ref.numpy(), e.safe_image_ref.numpy()

    def d(one, other):
        return sum(1 - float(np.dot(a, b)) for a, b in zip(one, other, strict=True)) / len(one)

    def c(one, other):
        return 0.5 * (plain_cross_entropy(one, other) + plain_cross_entropy(other, one))

    table = [
        ("d(S,S_ref)", 0.10, d(s, s_ref)),
        ("d(U,S_ref)", 0.10, d(u, s_ref)),
        ("d(V,V_ref)", 0.10, d(v, v_ref)),
        ("d(G,V_ref)", 0.20, d(g, v_ref)),
        ("C(S,V_ref)", 0.25, c(s, v_ref)),
        ("C(U,V_ref)", 0.25, c(u, v_ref)),
        ("C(V,S_ref)", 0.25, c(v, s_ref)),
        ("C(G,S_ref)", 0.50, c(g, s_ref)),
    ]
    return {name: value for name, _, value in table}, sum(w / 1.75 * value for _, w, value in table) / 8


@pytest.mark.parametrize(("rows", "width", "seed"), [(2, 4, 0), (7, 16, 1), (33, 64, 2)])
def test_the_eight_terms_equal_a_plain_reimplementation(rows, width, seed):
    embeddings = random_embeddings(rows, width, seed)
    terms, total = plain_terms(embeddings)
    objective = SafeClip()
    losses = objective.losses(embeddings)
    assert list(losses) == list(terms)
    for name, expected in terms.items():
        assert float(losses[name]) == pytest.approx(expected, abs=1e-6)
    assert float(objective.total(losses)) == pytest.approx(total, abs=1e-6)


def test_safe_pairs_join_the_papers_terms_of_safe_items_and_no_others():
    embeddings = random_embeddings(6, 16, 0, preserved=3)
    s, v = (
        torch.cat([getattr(embeddings, f"{p}_{kind}") for p in ("safe", "preserved")]) for kind in ("text", "image")
    )
    refs = [
        torch.cat([getattr(embeddings, f"{p}_{k}_ref") for p in ("safe", "preserved")]) for k in ("text", "image")
    ]
    losses = SafeClip().losses(embeddings)
    alone = SafeClip().losses(random_embeddings(6, 16, 0))
    assert losses["d(S,S_ref)"] == distance(s, refs[0])
    assert losses["C(V,S_ref)"] == contrastive(v, refs[0])
    assert losses["C(S,V_ref)"] == contrastive(s, refs[1])
    assert all(losses[name] == alone[name] for name in losses if name[2] in "UG")


def test_items_that_stay_and_go_where_they_should_cost_next_to_nothing():
    safe = torch.eye(8)
    perfect = embeddings_of(safe_text=safe, safe_image=safe, unsafe_text=safe, unsafe_image=safe)
    objective = SafeClip()
    assert float(objective.total(objective.losses(perfect))) < 1e-6
    moved = embeddings_of(safe_text=safe, safe_image=safe, unsafe_text=safe.roll(1, 0), unsafe_image=safe)
    assert float(objective.total(objective.losses(moved))) > 1


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_side_of_the_student_has_a_gradient_and_the_teacher_none(name):
    batch = random_embeddings(4, 8, 3, preserved=2)
    student = {
        side: getattr(batch, side).clone().requires_grad_() for side in (*SIDES, "preserved_text", "preserved_image")
    }
    objective = make_objective(name)
    losses = objective.losses(Embeddings(**{**vars(batch), **student}))
    assert losses.keys() == objective.weights.keys()
    objective.total(losses).backward()
    assert all(float(v.grad.abs().sum()) > 0 for v in student.values())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_works_without_safe_pairs(name):
    losses = make_objective(name).losses(random_embeddings(5, 8, 4))
    assert all(math.isfinite(float(loss)) for loss in losses.values())


def _softmax_loss(query, right, wrong, scale):
    logits = [scale * float(query @ other) for other in [right, *wrong]]
    largest = max(logits)
    return largest + math.log(sum(math.exp(v - largest) for v in logits)) - logits[0]


def test_apart_picks_the_safe_item_among_safe_and_unsafe_ones():
    e = random_embeddings(5, 16, 7, preserved=3)
    losses = Apart().losses(e)
    rows = range(5)
    safe, others = e.safe_image_ref, [*e.preserved_image_ref, *e.unsafe_image]
    expected = np.mean([
        _softmax_loss(e.unsafe_text[i], safe[i], [*(safe[j] for j in rows if j != i), *others], 50.0)
        for i in rows
    ])  # fmt: skip
    assert float(losses["redirect text"]) == pytest.approx(expected, abs=1e-9)

    def avoided(texts):
        found = []
        for i in rows:
            own = 50 * (float(e.unsafe_image[i] @ e.safe_text_ref[i]) - 0.2)
            found.append(math.log(math.exp(own) + float((50 * e.unsafe_image[i] @ texts.T).exp().sum())) - own)
        return np.mean(found)

    assert float(losses["avoid image"]) == pytest.approx(avoided(e.unsafe_text), abs=1e-9)
    texts = [*e.safe_text_ref, *e.preserved_text_ref]
    left = np.mean([
        _softmax_loss(e.unsafe_image[i], texts[i], [*texts[:i], *texts[i + 1 :], *e.unsafe_text_ref], 50.0)
        for i in rows
    ])  # fmt: skip
    assert float(losses["leave image"]) == pytest.approx(left + avoided(e.unsafe_text_ref), abs=1e-9)
    stayed = [1 - float(a @ b) for a, b in zip(e.safe_text, e.safe_text_ref, strict=True)]
    stayed += [1 - float(a @ b) for a, b in zip(e.preserved_text, e.preserved_text_ref, strict=True)]
    assert float(losses["preserve text"]) == pytest.approx(np.mean(stayed), abs=1e-9)


def test_apart_holds_the_states_of_texts_and_only_if_they_have_a_weight():
    e = random_embeddings(5, 16, 7, preserved=3)
    losses = Apart().losses(e)
    assert float(losses["redirect states"]) == pytest.approx(float(e.unsafe_drift.mean()))
    preserved = [*e.safe_drift.tolist(), *e.preserved_drift.tolist()]
    assert float(losses["preserve states"]) == pytest.approx(np.mean(preserved))
    assert Apart().uses_states
    assert not Apart({"redirect states": 0, "preserve states": 0}).uses_states
    assert not type("Own", (Apart,), {"weights": {"redirect text": 1.0}})().uses_states
    without = Apart().losses(dataclasses.replace(e, safe_drift=None, unsafe_drift=None, preserved_drift=None))
    assert losses.keys() - without.keys() == set(Apart.state_terms)


def test_safer_clip_takes_the_nearest_safe_row_and_one_hard_negative():
    e = random_embeddings(6, 16, 8)
    losses = SaferClip().losses(e)
    cross = np.mean([
        math.log(1 + math.exp(float(u @ g) - float(u @ t)))
        for u, g, t in zip(e.unsafe_text, e.unsafe_image, e.nearest.text_to_image, strict=True)
    ])  # fmt: skip
    assert float(losses["cross text"]) == pytest.approx(cross, abs=1e-9)
    near = np.mean([1 - float(g @ t) for g, t in zip(e.unsafe_image, e.nearest.image_to_image, strict=True)])
    assert float(losses["redirect image"]) == pytest.approx(near, abs=1e-9)


def test_safer_clip_begins_with_the_easy_rows():
    def redirect(progress):
        e = random_embeddings(12, 8, 9, progress=progress)  # difficulties 0, 1/11, … 1
        each = 1 - (e.unsafe_text * e.nearest.text_to_text).sum(1)
        return float(SaferClip().losses(e)["redirect text"]), each

    found, each = redirect(0.0)
    assert found == pytest.approx(float(each[: int(11 * EASIEST) + 1].mean()))
    assert redirect(RAMP)[0] == pytest.approx(float(each.mean()))
    assert redirect(1.0)[0] == pytest.approx(float(each.mean()))


def test_shield_takes_an_item_with_a_safe_label_for_a_safe_one():
    e = random_embeddings(4, 16, 10)
    labels = torch.tensor([True, False, True, False])
    e = Embeddings(**{**vars(e), "text_unsafe": labels, "image_unsafe": torch.tensor([True, False, False, True])})
    losses = Shield().losses(e)
    gallery = [*e.safe_image_ref, *e.unsafe_image]
    # The second row is safe on both of its generated sides, so its text belongs to its own picture.
    right = [0, 1, 2, 3, 0, 4 + 1, 2, 3]
    queries = [*e.safe_text, *e.unsafe_text]
    expected = np.mean([
        _softmax_loss(q, gallery[r], [g for i, g in enumerate(gallery) if i != r], 100.0)
        for q, r in zip(queries, right, strict=True)
    ])  # fmt: skip
    assert float(losses["match text"]) == pytest.approx(expected, abs=1e-9)
    pairs = [*zip(e.safe_text, e.safe_text_ref, strict=True), (e.unsafe_text[1], e.unsafe_text_ref[1])]
    pairs.append((e.unsafe_text[3], e.unsafe_text_ref[3]))
    stayed = np.mean([1 - float(a @ b) for a, b in pairs])
    assert float(losses["preserve text"]) == pytest.approx(stayed, abs=1e-9)


def test_terms_of_unit_rows():
    one = torch.eye(4)
    assert float(distance(one, one)) == 0
    assert float(distance(one, -one)) == 2
    assert float(contrastive(one, one, scale=0.0)) == pytest.approx(math.log(4))


class OwnObjective(Objective):
    """As a user would write one."""

    weights = {"only": 2.0}  # noqa: RUF012

    def losses(self, batch):
        return {"only": distance(batch.unsafe_text, batch.safe_text_ref)}


def test_an_objective_of_ones_own_goes_by_its_import_path():
    objective = make_objective(f"{__name__}:OwnObjective", {"only": 3.0})
    losses = objective.losses(random_embeddings(3, 4, 0))
    assert float(objective.total(losses)) == pytest.approx(3 * float(losses["only"]))


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("safe-clap", {}, "train.objective: 'safe-clap' is no objective; there are apart, safe-clip"),
        ("nothing.here:Class", {}, "cannot be imported: No module named 'nothing'"),
        (f"{__name__}:Nothing", {}, "cannot be imported"),
        (f"{__name__}:SIDES", {}, "is no subclass of"),
        ("apart", {"redirect": 1.0}, "train.weights: no term 'redirect'; there are redirect text, redirect image"),
    ],
)
def test_an_unknown_objective_or_term_is_refused_by_name(name, weights, message):
    with pytest.raises(UserError, match=message):
        make_objective(name, weights)


def test_recall_is_of_equal_row_numbers():
    gallery = torch.eye(4)
    assert recall_at_1(gallery, gallery) == 1
    assert recall_at_1(gallery[[1, 0, 2, 3]], gallery) == 0.5
    perfect = embeddings_of(**dict.fromkeys(SIDES, gallery))
    assert recall_sum(perfect) == 6


def test_validation_losses_weigh_blocks_by_their_rows(monkeypatch):
    embeddings = random_embeddings(10, 8, 5)
    whole = validation_losses(embeddings, SafeClip())
    objective = SafeClip()
    assert whole["total"] == pytest.approx(float(objective.total(objective.losses(embeddings))))
    monkeypatch.setattr("safeclip.encoder.validation.BLOCK", 4)
    blocks = validation_losses(embeddings, SafeClip())
    assert blocks["d(U,S_ref)"] == pytest.approx(whole["d(U,S_ref)"])  # a mean of rows does not depend on blocks
    assert blocks["C(U,V_ref)"] < whole["C(U,V_ref)"]  # a contrastive term does, which is why they are fixed
