import pytest
import torch

from safeclip.encoder.towers import by_name


@pytest.mark.parametrize("has_drift", [False, True])
def test_what_the_towers_of_two_workers_made_is_found_by_name(has_drift):
    shares = []
    for worker in range(2):  # each number tells where it comes from: worker, place in the share, tower, column
        places = range(2 * 3 + 4)  # three safe items, three unsafe ones, four safe pairs
        rows = [[[1000 * worker + 100 * n + 10 * kind + c for c in range(5)] for kind in range(2)] for n in places]
        shares.append(rows)
    found = by_name(torch.tensor(shares), 3, has_drift)
    width = 5 - has_drift
    for side, start, count in (("safe", 0, 3), ("unsafe", 3, 3), ("preserved", 6, 4)):
        for kind, name in enumerate(("text", "image")):
            expected = [shares[w][n][kind][:width] for w in range(2) for n in range(start, start + count)]
            assert found[f"{side}_{name}"].tolist() == expected
        if has_drift:
            drift = [shares[w][n][0][width] for w in range(2) for n in range(start, start + count)]
            assert found[f"{side}_drift"].tolist() == drift
    assert len(found) == (9 if has_drift else 6)
