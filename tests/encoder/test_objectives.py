import math

import numpy as np
import pytest
import torch

from safeclip.encoder.objectives import Embeddings, SafeClip, contrastive, distance, make_objective
from safeclip.encoder.validation import recall_at_1, recall_sum, validation_losses
from safeclip.errors import UserError


def random_embeddings(rows: int, width: int, seed: int) -> Embeddings:
    random = np.random.default_rng(seed)
    drawn = random.normal(size=(6, rows, width))
    drawn /= np.linalg.norm(drawn, axis=2, keepdims=True)
    return Embeddings(*torch.from_numpy(drawn))


def plain_cross_entropy(one, other) -> float:
    """Row by row, as it is written in words: how surprised a softmax over the row's logits is by the right one."""
    total = 0.0
    for i, row in enumerate(one):
        logits = [100 * float(np.dot(row, other_row)) for other_row in other]
        largest = max(logits)
        total += largest + math.log(sum(math.exp(v - largest) for v in logits)) - logits[i]
    return total / len(one)


def plain_terms(e: Embeddings) -> tuple[dict[str, float], float]:
    s, v, u, g, s_ref, v_ref = (x.numpy() for x in vars(e).values())

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


def test_items_that_stay_and_go_where_they_should_cost_next_to_nothing():
    safe = torch.eye(8)
    perfect = Embeddings(safe, safe, safe, safe, safe, safe)
    objective = SafeClip()
    assert float(objective.total(objective.losses(perfect))) < 1e-6
    moved = Embeddings(safe, safe, safe.roll(1, 0), safe, safe, safe)
    assert float(objective.total(objective.losses(moved))) > 1


def test_the_teacher_gets_no_gradient_and_the_student_does():
    drawn = random_embeddings(4, 8, 3)
    student = {k: v.clone().requires_grad_() for k, v in list(vars(drawn).items())[:4]}
    batch = Embeddings(**student, safe_text_ref=drawn.safe_text_ref, safe_image_ref=drawn.safe_image_ref)
    objective = SafeClip()
    objective.total(objective.losses(batch)).backward()
    assert all(float(v.grad.abs().sum()) > 0 for v in student.values())


def test_terms_of_unit_rows():
    one = torch.eye(4)
    assert float(distance(one, one)) == 0
    assert float(distance(one, -one)) == 2
    assert float(contrastive(one, one, scale=0.0)) == pytest.approx(math.log(4))


def test_an_unknown_objective_is_refused_by_name():
    with pytest.raises(UserError, match=r"train.objective: 'safe-clap' is no objective; there are safe-clip"):
        make_objective("safe-clap")


def test_recall_is_of_equal_row_numbers():
    gallery = torch.eye(4)
    assert recall_at_1(gallery, gallery) == 1
    assert recall_at_1(gallery[[1, 0, 2, 3]], gallery) == 0.5
    perfect = Embeddings(*[gallery] * 6)
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
