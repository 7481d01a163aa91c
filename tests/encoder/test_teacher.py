import numpy as np
import pytest

from safeclip.encoder.load import load_encoder
from safeclip.encoder.teacher import embed_rows
from safeclip.errors import UserError
from tests.encoder.quadruplets import render_quadruplets


def test_a_teacher_that_gives_no_numbers_is_named_before_training():
    encoder = load_encoder("world:encoder")
    encoder.encode_pixels = lambda pixels: np.full((len(pixels), 4), np.nan, np.float32)
    table = render_quadruplets(3, seed=1)
    with pytest.raises(
        UserError, match=f"row {table['id'][0]}: the base encoder's embedding of its safe image is no"
    ):
        embed_rows(encoder, table, "train/a.parquet")


def test_a_broken_picture_is_named_before_training(tmp_path):
    table = render_quadruplets(3, seed=1)
    images = table["unsafe_image"].to_pylist()
    images[1] = images[1][:40]
    broken = table.set_column(table.column_names.index("unsafe_image"), "unsafe_image", [images])
    with pytest.raises(UserError, match=f"train/a.parquet, row {table['id'][1]}: unsafe_image does not decode"):
        embed_rows(load_encoder("world:encoder"), broken, "train/a.parquet")
