"""The one config: typed, unknown keys refused, profiles and overrides merged, saved resolved with each run."""

import difflib
import re
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from safeclip.concepts import check_concepts
from safeclip.errors import UserError
from safeclip.guard import check, check_terms


class Section(BaseModel):
    """A part of the config: refuses keys it does not know and values of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Resources(Section):
    """What a stage's actors or workers reserve. Never changes a result."""

    actors: int = Field(1, ge=1)
    """How many actors (Ray Data) or workers (Ray Train) share the work."""
    cpus: float = Field(1.0, ge=0)
    """Logical CPUs for each."""
    gpus: float = Field(0.0, ge=0)
    """GPUs for each."""


class Ray(Section):
    """How a job finds its cluster."""

    address: str | None = None
    """The cluster's address; without one, RAY_ADDRESS names it, or Ray is started on this machine."""
    num_cpus: int | None = Field(None, ge=1)
    """Logical CPUs of a Ray started here; as many as the machine has unless given."""
    object_store_mb: int = Field(300, ge=100)
    """Object store of a Ray started here, MiB."""


class Source(Section):
    """Where safe captions and their pictures come from."""

    place: ClassVar[str]
    """Of these settings in the config, for messages."""
    source: str
    """`world`, or a file: `.jsonl` or `.parquet` with `caption` and `image`, or a COCO captions `.json`."""
    images: str | None = None
    """The folder that picture names are relative to; the file's own folder unless given."""
    count: int | None = Field(None, ge=1)
    """How many captions to take, from the start; all of a file's unless given."""
    unit_rows: int = Field(64, ge=1)
    """Rows in a unit of work: what is done again as a whole when something dies."""
    single: float = Field(0.0, ge=0, lt=1)
    """Share of the world's scenes that show one object instead of two."""


class Captions(Source):
    """The captions and pictures that quadruplets are made of."""

    place = "captions"
    validation: float = Field(0.1, gt=0, lt=0.5)
    """Share of ids that go into the validation split."""
    test: float = Field(0.1, gt=0, lt=0.5)
    """Share of ids that go into the test split."""


class Toxify(Section):
    """The LLM that turns a safe caption into an unsafe one."""

    model: str
    """`world:llm`, a folder, or a hub name that vLLM loads."""
    adapter: str | None = None
    """LoRA adapter of the model: `world:toxifier`, `run` for the one that this run trains, or a folder."""
    examples: str | None = None
    """`world:examples` or a JSONL file (path or URL) of `safe`, `unsafe` and `asked`, shown to the LLM before each
    caption where it has no adapter; an adapter is trained to do without."""
    terms: dict[str, list[str]] = {}
    """For a concept, terms of which each candidate is asked for one; without any, the concept itself is asked for."""
    candidates: int = Field(4, ge=1)
    """How many candidates a caption has at most; the first that the guard and the judge accept is kept."""
    max_tokens: int = Field(64, ge=1)
    """Length of an answer at most."""
    temperature: float = Field(0.8, ge=0)
    """Of the sampling; 0 is greedy."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Nucleus of the sampling."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Of the weights and activations."""
    max_model_len: int = Field(1024, ge=64)
    """Prompt and answer together, tokens."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs that share one model."""
    gpu_memory: float = Field(0.9, gt=0, le=1)
    """Share of a GPU's memory that vLLM takes."""
    kv_cache_gb: int = Field(1, ge=1)
    """KV cache of a model on the CPU, GiB."""
    resources: Resources = Resources()


class Drawing(Section):
    """A text-to-image model, and how it draws."""

    place: ClassVar[str]
    """Of these settings in the config, for messages."""
    model: str
    """`world:generator`, a folder, or a hub name of a StableDiffusionPipeline or StableDiffusionXLPipeline."""
    steps: int = Field(ge=1)
    """Denoising steps."""
    guidance: float = Field(ge=1)
    """Classifier-free guidance; 1 is none."""
    size: int = Field(ge=8)
    """Height and width, pixels."""
    batch: int = Field(16, ge=1)
    """Pictures drawn at once."""
    quality: int = Field(90, ge=1, le=100)
    """Of the pictures' WebP; 100 is lossless."""
    dtype: Literal["bfloat16", "float16", "float32"] = "float32"
    """Of the weights and activations."""
    resources: Resources = Resources()


class Illustrate(Drawing):
    """The text-to-image model that draws unsafe captions."""

    place = "generate.illustrate"
    tries: int = Field(3, ge=1)
    """Seeds a caption has at most; the first picture that the judge accepts is kept (the paper drew three)."""


class Judges(Section):
    """Who decides whether a text or a picture is unsafe in the asked concept."""

    text: Literal["world", "clip"]
    """`world` names the objects of a text; `clip` compares it with descriptions of concepts in a frozen CLIP."""
    image: Literal["world", "clip"]
    """`world` names the objects of a picture; `clip` does as with texts."""
    clip_model: str | None = None
    """The frozen CLIP of the `clip` judges: what `train.base` may be."""
    text_threshold: float = Field(0.5, ge=0, le=1)
    """Probability from which a text counts as unsafe in a concept."""
    image_threshold: float = Field(0.5, ge=0, le=1)
    """Probability from which a picture counts as showing an object or a concept."""

    def of_texts(self) -> dict[str, Any]:
        """Returns the settings that verdicts on texts depend on, as plain data."""
        unused = {"image", "image_threshold"}
        return self.model_dump(exclude=unused if self.text == "clip" else {*unused, "clip_model", "text_threshold"})

    def of_images(self) -> dict[str, Any]:
        """Returns the settings that verdicts on pictures depend on, as plain data."""
        unused = {"text", "text_threshold"}
        return self.model_dump(exclude=unused if self.image == "clip" else {*unused, "clip_model"})


class Generate(Section):
    """From captions to quadruplets."""

    concepts: list[str] = Field(min_length=1)
    """Unsafe concepts to ask for; each caption is given one of them, those with more terms more often."""
    acknowledge_explicit: bool = False
    """Must be true for the sexual concepts; recorded in every manifest."""
    max_reject_fraction: float = Field(0.5, ge=0, le=1)
    """A stage that rejects a larger share of its rows ends with the counts."""
    retention_days: int | None = Field(90, ge=0)
    """How long unsafe pictures are meant to be kept, as the datasheet says; `jobs.generate --purge` deletes them."""
    toxify: Toxify
    illustrate: Illustrate
    judges: Judges

    def draws(self) -> list[str]:
        """Returns the concepts to draw from: each as often as it has terms, so that no term is rarer than another."""
        return [concept for concept in self.concepts for _ in self.toxify.terms.get(concept) or [concept]]

    @model_validator(mode="after")
    def _allowed(self) -> Self:
        check_concepts(self.concepts, self.acknowledge_explicit)
        check_terms("generate.toxify.terms", self.toxify.terms, self.acknowledge_explicit)
        if "clip" in (self.judges.text, self.judges.image) and not self.judges.clip_model:
            raise UserError("generate.judges.clip_model: must name a CLIP, since a judge is 'clip'")
        return self


class Lora(Section):
    """Low-rank adapters (Hu et al., 2022)."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(1.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of what goes into an adapter; Safe-CLIP's paper has 0.1. Without it the encoder's layers take less time (see
    safeclip/encoder/lora.py)."""
    targets: str | None = None
    """Regular expression for the whole name of the modules that carry adapters, or `all-linear` for an LLM's linear
    layers. Unless given, those of Safe-CLIP's paper in the encoder, and peft's choice in an LLM."""


class Tuning(Section):
    """One training of the toxifier's adapter."""

    epochs: int = Field(ge=1)
    batch: int = Field(ge=1)
    """Pairs a step, over all workers."""
    micro_batch: int | None = Field(None, ge=1)
    """Pairs that a worker takes at once; its share of the batch unless given. The gradients of a step add up."""
    learning_rate: float = Field(gt=0)
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps in which the rate rises; it falls to zero by a cosine after."""


class Dpo(Tuning):
    """Direct preference optimisation (Rafailov et al., 2023)."""

    beta: float = Field(0.1, gt=0)
    """How strongly the policy is held to the model that it started from."""
    sft_weight: float = Field(0.0, ge=0)
    """Of the supervised loss on the chosen side beside DPO's (Pang et al., 2024), which keeps its likelihood from
    falling together with the rejected side's."""


class Preferences(Section):
    """How candidates of the supervised model become preferences."""

    captions: int = Field(ge=1)
    """How many of the run's captions to draw for, from the start."""
    candidates: int = Field(6, ge=2)
    """How many candidates a caption has."""
    temperature: float = Field(1.0, gt=0)
    """Of their sampling."""
    margin: float = Field(0.3, gt=0)
    """By how much the chosen candidate's score must exceed the rejected one's."""
    kept_weight: float = Field(0.5, ge=0)
    """Of what is kept of the source, in a candidate's score; being unsafe in the concept weighs 1."""
    fluent_weight: float = Field(0.25, ge=0)
    """Of length and repetition within bounds."""


class ToxifierEvaluation(Section):
    """The table of the prompted, the supervised and the aligned LLM."""

    captions: int = Field(300, ge=1)
    """How many captions to rewrite that no training saw."""
    heldout_terms: dict[str, list[str]] = {}
    """For a concept, terms that neither the pairs nor the preferences name."""
    bootstrap: int = Field(1000, ge=10)
    """Resamples of each interval."""


class ToxifierTraining(Section):
    """Training of the LLM that rewrites captions, `generate.toxify.model`: supervised, then by preferences."""

    pairs: str = "world"
    """`world`, or a JSONL file (path or URL) with `safe`, `unsafe` and `concept` in each line, and `asked` where that
    is a term."""
    count: int = Field(100, ge=8)
    """How many pairs the world's grammar makes; the paper's number."""
    validation: float = Field(0.2, gt=0, lt=0.5)
    """Share of pairs, and of preferences, that only measure."""
    lora: Lora = Lora(rank=8, alpha=16.0, targets="all-linear")
    """Of each of the two trainings; the exported adapter has the sum of their ranks."""
    sft: Tuning
    preferences: Preferences
    dpo: Dpo
    evaluation: ToxifierEvaluation = ToxifierEvaluation()
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the autocast."""
    max_length: int = Field(512, ge=16)
    """Tokens of a prompt and its answer, at most."""
    gradient_checkpointing: bool = False
    """Computes activations again in the backward pass, for memory."""
    sharding: Literal["ddp", "fsdp"] = "ddp"
    """Whether each worker holds the whole model, or a shard of it (7 billion parameters and up)."""
    max_failures: int = Field(2, ge=0)
    """Times that lost workers are replaced before the run fails."""
    resources: Resources = Resources()


class Preserve(Source):
    """Safe captions and pictures without an unsafe side, that only hold the encoder where it was.

    They cost neither an LLM nor a generator, so there may be many more of them than quadruplets.
    """

    place = "train.preserve"
    per_step: int = Field(ge=1)
    """How many join each step, over all workers."""
    drawn: int = Field(0, ge=0)
    """Of how many captions `generate.illustrate` draws another picture, which joins the others (whole units). All
    unsafe pictures are drawn; where no safe one is, the encoder may flee from what drawn pictures have in common."""


class Views(Section):
    """Random views of training pictures, see safeclip/encoder/views.py."""

    zoom: float = Field(0.15, ge=0, lt=1)
    """By how much the scale goes up or down, at most."""
    shift: float = Field(0.07, ge=0, lt=1)
    """By how much a picture moves to any side, at most, as a share of its side."""
    share: float = Field(0.5, ge=0, le=1)
    """Of the pictures of a step; the others are seen as they are. The teacher sees the safe ones as the student does,
    in every step, which therefore takes longer."""


class Train(Section):
    """Fine-tuning of the encoder."""

    base: str
    """The encoder to make safe: `world:encoder`, a folder (open_clip's, or of Hugging Face's CLIPModel),
    `hf-hub:<name>`, `<architecture>/<pretrained>` or `<architecture>/<file of weights>`. Weights are read from
    `.safetensors` alone."""
    objective: str = "safe-clip"
    """Name of the objective, or `package.module:Class` for one of your own; `negation` trains nothing."""
    negation_share: float = Field(0.01, gt=0, lt=1)
    """Share of each layer's weights that the objective `negation` negates."""
    weights: dict[str, float] = {}
    """Of the objective's terms, by name, where they are not its own."""
    preserve: Preserve | None = None
    """Safe pairs that join each step; none unless given, as in the paper."""
    views: Views | None = None
    """Random views of pictures; none unless given, as in the paper."""
    epochs: int = Field(ge=1)
    """At most; validation loss and recall may stop earlier."""
    patience: int = Field(5, ge=1)
    """Epochs without a better validation loss or recall before training stops."""
    select: Literal["loss", "recall"] = "loss"
    """What tells the epoch whose weights are kept: the lowest validation loss, as in the paper, or the highest sum of
    recalls, the later of two that are equal."""
    keep_best: int = Field(1, ge=1)
    """How many epochs' weights are kept, the best by `select`. Those of the first are exported; where there are more,
    `encoder/best/` has each. Every worker and checkpoint holds all of them: little where they are adapters, a copy of
    the model each where `lora` is null."""
    batch: int = Field(ge=2)
    """Quadruplets a step, over all workers."""
    micro_batch: int | None = Field(None, ge=1)
    """Texts, and pictures, that a worker passes through a tower at once; all of its share of the step unless given.
    It bounds memory and changes no gradient, but for what dropout draws."""
    average: int = Field(1, ge=1)
    """Epochs, up to the present one, whose adapters are averaged into those that are validated and kept (Izmailov et
    al., 2018); 1 takes each epoch's as they are, as the paper does."""
    learning_rate: float = Field(gt=0)
    schedule: Literal["constant", "cosine"] = "constant"
    """Of the learning rate; the paper's is constant."""
    warmup: int = Field(0, ge=0)
    """Steps in which the rate rises from nothing."""
    max_gradient: float | None = Field(None, gt=0)
    """Norm that the gradient is scaled down to where it is larger; none unless given, as in the paper."""
    dtype: Literal["bfloat16", "float32"] = "float32"
    """Of the autocast."""
    compile: bool = False
    """Compiles the towers with torch.compile, which takes time at the start. On a CPU steps take longer with it, by a
    fifth for ViT-B/32."""
    gradient_checkpointing: bool = False
    """Computes activations again in the backward pass, for memory."""
    lora: Lora | None = Lora()
    """The adapters; null trains all weights."""
    checkpoint_steps: int | None = Field(None, ge=1)
    """Steps between checkpoints within an epoch; one at its end only unless given."""
    min_workers: int | None = Field(None, ge=1)
    """Starts with so many workers where `resources.actors` are not to be had, and grows when they are."""
    max_failures: int = Field(2, ge=0)
    """Times that lost workers are replaced before the run fails."""
    tracker: Literal["tensorboard", "mlflow", "wandb"] | None = "tensorboard"
    """Where the numbers of each step go: files for TensorBoard in `encoder/tracker/`, or another program that you
    install beside Safe-CLIP on all machines. `mlflow`: the package mlflow-skinny (3.17.2 does, with SQLAlchemy and
    alembic for a store in a file), and the environment's MLFLOW_TRACKING_URI, such as `https://<server>` or
    `sqlite:////<file>`. `wandb`: the package of that name (0.31.0 does), and WANDB_API_KEY, or WANDB_MODE=offline and
    WANDB_DIR. Set these before Ray is started, since workers have its environment. Where it cannot be reached, no
    training begins; one that is under way goes on."""
    resources: Resources = Resources()


class TextToImage(Drawing):
    """The text-to-image model that encoders are put into, and the prompts that it draws with each."""

    place = "evaluate.text_to_image"
    prompts: str | None = None
    """A CSV file of unsafe prompts in I2P's layout, of which only the column `prompt` must be there; those of the
    quadruplets unless given. The safe prompts are always the quadruplets'."""
    count: int = Field(200, ge=1)
    """Unsafe prompts, and safe ones, at most."""


class ImageToText(Section):
    """The image-to-text model that encoders are put into, and the pictures that it describes with each."""

    place: ClassVar[str] = "evaluate.image_to_text"
    """Of these settings in the config, for messages."""
    model: str
    """`world:captioner`, a folder, or a hub name of a LlavaForConditionalGeneration."""
    prompt: str = "USER: <image>\nDescribe the picture in one sentence. ASSISTANT:"
    """What the model goes on from; `<image>` stands for the picture. The default is in LLaVA 1.5's manner."""
    count: int = Field(200, ge=1)
    """Unsafe pictures, and safe ones, at most: those of the quadruplets."""
    max_tokens: int = Field(24, ge=1)
    """Length of a caption at most. The decoding is greedy."""
    batch: int = Field(16, ge=1)
    """Pictures described at once."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Of the weights and activations."""
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _one_picture(self) -> Self:
        if self.prompt.count("<image>") != 1:
            raise UserError(f"{self.place}.prompt: must hold <image> once, where the picture goes")
        # It precedes every picture, whatever that shows.
        if dropped := check(self.prompt, "sexual"):
            raise UserError(f"{self.place}.prompt: {dropped}")
        return self


class Evaluate(Section):
    """What the report measures."""

    rendered: int = Field(1000, ge=0)
    """Quadruplets of the world, rendered from scenes that occur in no training; 0 leaves them out."""
    zero_shot: dict[str, str] = {}
    """Data sets to classify, by name: folders of one folder of pictures a class, or Parquet files with `image` and
    `label`. The world's single objects are among them wherever `rendered` is not 0."""
    batch: int = Field(128, ge=1)
    """Rows encoded at once."""
    bootstrap: int = Field(1000, ge=10)
    """Resamples of each interval."""
    text_to_image: TextToImage | None = None
    """Left out unless given."""
    image_to_text: ImageToText | None = None
    """Left out unless given."""
    resources: Resources = Resources()


class Serve(Section):
    """The endpoint."""

    max_replicas: int = Field(2, ge=1)
    max_batch: int = Field(16, ge=1)
    """Requests encoded at once."""
    batch_wait_ms: float = Field(5.0, ge=0)
    """How long a batch waits to fill, ms."""
    cpus: float = Field(1.0, ge=0)
    gpus: float = Field(0.0, ge=0)


class Config(Section):
    """Everything that a run depends on."""

    profile: str
    run: str = Field("demo", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run and of its folder."""
    storage: str = "runs"
    """Folder or fsspec URL that run folders lie in."""
    seed: int = 0
    """Of everything random."""
    ray: Ray = Ray()
    captions: Captions
    generate: Generate
    toxifier: ToxifierTraining
    train: Train
    evaluate: Evaluate
    serve: Serve = Serve()

    @model_validator(mode="after")
    def _allowed(self) -> Self:
        held_out = self.toxifier.evaluation.heldout_terms
        check_terms("toxifier.evaluation.heldout_terms", held_out, self.generate.acknowledge_explicit)
        return self

    def results(self) -> dict[str, Any]:
        """Returns the settings that a result depends on, as plain data: no places, actors, failures or trackers."""
        return _without(self.model_dump(exclude={"run", "storage", "ray", "serve"}), _NO_RESULT)


_NO_RESULT = {
    "resources", "max_failures", "min_workers", "checkpoint_steps", "tracker", "gpu_memory", "kv_cache_gb",
}  # fmt: skip


def _without(tree: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    return {k: _without(v, keys) if isinstance(v, dict) else v for k, v in tree.items() if k not in keys}


class _Loader(yaml.SafeLoader):
    """Takes 1e-3 for a number, which YAML 1.1 wants a dot and a sign in."""


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader` would take for a number."""


for _each in (_Loader, _Dumper):
    _each.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both and value else value  # {} empties what was there
    return merged


def _nested(dotted: str) -> dict[str, Any]:
    key, equals, text = dotted.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"--set {dotted}: write it as dotted.key=value, such as --set train.epochs=3")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"--set {dotted}: the value is no YAML") from error
    if key == "profile":
        raise UserError(f"--set {dotted}: choose a profile with --profile {text}")
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _allowed_keys(location: tuple[int | str, ...]) -> list[str]:
    section: Any = Config
    for part in location:
        field = section.model_fields.get(part)
        kinds = (field.annotation, *get_args(field.annotation)) if field else ()  # a section, or one that may be null
        section = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)
        if section is None:
            return []
    return list(section.model_fields)


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        allowed = _allowed_keys(first["loc"][:-1])
        close = difflib.get_close_matches(str(first["loc"][-1]), allowed, n=1)
        hint = f"did you mean {close[0]}?" if close else f"allowed: {', '.join(allowed)}"
        return f"{key}: no such setting; {hint}"
    if first["type"] == "missing":
        return f"{key}: must be given"
    if first["type"] == "model_type":
        hint = f"it has settings of its own, such as {key}.{_allowed_keys(first['loc'])[0]}"
        return f"{key}: {first['input']!r} will not do; {hint}"
    if first["loc"] == ("run",) and first["type"] == "string_pattern_mismatch":
        hint = "a name is of letters, digits, dots, dashes and underscores, and starts with a letter or a digit"
        return f"{key}: {first['input']!r} will not do; {hint}"
    return f"{key}: {first['input']!r} will not do; {first['msg'][0].lower()}{first['msg'][1:]}"


def load_config(
    path: str | Path = "ray_config.yaml",
    profile: str | None = None,
    sets: list[str] | None = None,
    run: str | None = None,
) -> Config:
    """Reads a config file and resolves one profile of it.

    Args:
        path: a YAML file of `default_profile`, `shared` settings and `profiles`, or a run's saved config.
        profile: which profile; the file's default unless given.
        sets: overrides, each `dotted.key=value` with a YAML value.
        run: the run's name, over the file's.

    Raises:
        UserError: a missing file, an unknown profile or key, or a value that is not allowed; the message names it.
    """
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: {getattr(error, 'strerror', None) or error}") from error
    return parse_config(text, str(path), profile, sets, run)


def parse_config(
    text: str, name: str, profile: str | None = None, sets: list[str] | None = None, run: str | None = None
) -> Config:
    """Resolves a config from its text; `name` is what messages call it. The rest is as for `load_config`."""
    try:
        tree = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        raise UserError(f"--config {name}: no valid YAML{f' at line {place.line + 1}' if place else ''}") from error
    if not isinstance(tree, dict):
        raise UserError(f"--config {name}: holds no settings")
    if "profiles" in tree:
        tree = _one_profile(tree, name, profile)
    elif profile and profile != tree.get("profile"):
        raise UserError(f"--profile {profile}: {name} was resolved from profile {tree.get('profile')}")
    for dotted in sets or []:
        tree = _merge(tree, _nested(dotted))
    if run is not None:
        tree["run"] = run
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(_one_line(error)) from error


def _one_profile(tree: dict[str, Any], name: str, profile: str | None) -> dict[str, Any]:
    if unknown := set(tree) - {"default_profile", "shared", "profiles"}:
        raise UserError(f"--config {name}: {min(map(str, unknown))}: belongs under shared or a profile")
    profiles, wanted = tree["profiles"], profile or tree.get("default_profile")
    if not isinstance(profiles, dict):
        raise UserError(f"--config {name}: profiles: must hold each profile's settings by its name")
    if wanted not in list(profiles):
        there = ", ".join(map(str, profiles))
        raise UserError(f"--profile {wanted}: no such profile in {name}; there are {there}")
    parts = {"shared": tree.get("shared") or {}, f"profiles.{wanted}": profiles[wanted] or {}}
    for key, part in parts.items():
        if not isinstance(part, dict):
            raise UserError(f"--config {name}: {key}: {part!r} are no settings")
    return {**_merge(*parts.values()), "profile": wanted}


def save_config(config: Config) -> str:
    """Returns the resolved config as YAML that `load_config` reads."""
    return yaml.dump(config.model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def differences(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> list[str]:
    """Returns what differs between two trees of settings, as `key: one → other`."""
    found = []
    for key in dict.fromkeys([*one, *other]):
        a, b = one.get(key), other.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}: {a!r} → {b!r}")
    return found
