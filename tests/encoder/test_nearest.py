import numpy as np
import torch
import torch.nn.functional as F

from safeclip.encoder.nearest import NearestSafe


def test_the_nearest_safe_row_equals_a_search_row_by_row(monkeypatch):
    monkeypatch.setattr("safeclip.encoder.nearest.BLOCK", 4)
    random = torch.Generator().manual_seed(0)

    def draw(rows):
        return F.normalize(torch.randn(rows, 8, generator=random), dim=1)

    rows = {f"unsafe_{kind}_ref": draw(10) for kind in ("text", "image")}
    gallery = {f"safe_{kind}_ref": draw(7) for kind in ("text", "image")}
    found = NearestSafe(rows, gallery).of(torch.arange(10))
    cosines = []
    for number in range(10):
        text = max(range(7), key=lambda j: float(rows["unsafe_text_ref"][number] @ gallery["safe_text_ref"][j]))
        image = max(range(7), key=lambda j: float(rows["unsafe_image_ref"][number] @ gallery["safe_image_ref"][j]))
        assert torch.equal(found.text_to_text[number], gallery["safe_text_ref"][text])
        assert torch.equal(found.text_to_image[number], gallery["safe_image_ref"][text])
        assert torch.equal(found.image_to_text[number], gallery["safe_text_ref"][image])
        assert torch.equal(found.image_to_image[number], gallery["safe_image_ref"][image])
        cosines.append(
            float(rows["unsafe_text_ref"][number] @ gallery["safe_text_ref"][text])
            + float(rows["unsafe_image_ref"][number] @ gallery["safe_image_ref"][image])
        )
    assert np.array_equal(np.argsort(found.difficulty.numpy()), np.argsort(cosines)[::-1])
    assert (found.difficulty.min(), found.difficulty.max()) == (0, 1)
