"""What workers are told to train on: small settings, and rows as the stages before leave them."""

import time

import pyarrow as pa

from safeclip.artifacts import Folder, Stage, read_manifest
from safeclip.config import Config, load_config
from safeclip.encoder.load import load_encoder
from safeclip.encoder.publish import encoder_hash, student_hash
from safeclip.encoder.teacher import DRAWN, PRESERVED, SPLITS, Unit, embed_rows, plan_units
from safeclip.encoder.worker import Plan
from safeclip.records import CAPTION
from tests.encoder.quadruplets import render_quadruplets, write_quadruplets

COUNTS = {"train": 25, "validation": 7}
SETTINGS = [
    "train.epochs=2", "train.batch=8", "train.learning_rate=0.001", "train.schedule=constant",
    "train.objective=safe-clip", "train.average=1",
    "train.preserve={source: world, count: 20, per_step: 8, unit_rows: 10, drawn: 4}", "train.warmup=0",
    "train.max_gradient=null", "train.select=loss", "train.keep_best=2",
]  # fmt: skip


def config_for(storage: object, *sets: str) -> Config:
    return load_config("ray_config.yaml", "embedded", [f"storage={storage}", *SETTINGS, *sets])


def write_rows(run: Folder) -> None:
    """Writes quadruplets, safe pairs and the teacher's embeddings of them, without the stages that do it at scale."""
    write_quadruplets(run, COUNTS)
    pairs = render_quadruplets(24, seed=5)
    pairs = pairs.append_column("reject", pa.nulls(24, pa.string())).select(CAPTION.names)
    for name, part in ((PRESERVED, pairs[:20]), (DRAWN, pairs[20:])):
        (run / "encoder" / name).make()
        (run / "encoder" / name).write_table("part-0000.parquet", part)
    base, teacher = load_encoder("world:encoder"), run / "encoder" / "teacher"
    stage = Stage(teacher, "teacher")
    began = stage.begin()
    folders = _folders(run)
    for unit in _units(run, encoder_hash(base), "rows"):
        table = folders[unit.split].read_table(unit.source)
        teacher.write_table(unit.target, embed_rows(base, table, unit.split))
    stage.finish(began, {"base": {"source": "world:encoder", "hash": encoder_hash(base)}, "rows_hash": "rows"})


def plan_for(run: Folder, key: str, *sets: str) -> Plan:
    """A plan to train on what `write_rows`, or the stages themselves, left in a run's folder."""
    config, teacher = config_for("unused", *sets), run / "encoder" / "teacher"
    manifest = read_manifest(teacher)
    base_hash = manifest["base"]["hash"]
    units = _units(run, base_hash, manifest["rows_hash"])
    student = student_hash(base_hash, config.train.lora)
    return Plan(config.train, config.seed, f"test-{time.time_ns()}-{key}", _folders(run), teacher, units, student)


def _folders(run: Folder) -> dict[str, Folder]:
    folders = {split: run / "quadruplets" / split for split in SPLITS}
    return folders | {name: run / "encoder" / name for name in (PRESERVED, DRAWN)}


def _units(run: Folder, base_hash: str, rows_hash: str) -> list[Unit]:
    return plan_units(_folders(run), base_hash, rows_hash)
