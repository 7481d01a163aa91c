"""The LLM that rewrites captions: a vLLM engine in this process, and the LoRA adapter that it may have."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safeclip.artifacts import Folder, read_manifest
from safeclip.config import Toxify
from safeclip.device import LostGpuError
from safeclip.errors import UserError

TOO_LONG = "prompt too long"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_WORLD_ADAPTER = Path(__file__).parents[1] / "world" / "weights" / "toxifier"


@dataclass(frozen=True)
class Request:
    """One question."""

    messages: list[dict[str, str]]
    """Turns of `role` and `content`."""
    seed: int
    """Of the sampling."""


@dataclass(frozen=True)
class Answer:
    """What the LLM said."""

    text: str
    tokens: int
    """How many it wrote."""


def adapter_folder(name: str | None, run: Folder) -> Folder | None:
    """Returns the folder of the adapter that `generate.toxify.adapter` names, None for none.

    Args:
        name: `world:toxifier`, `run` for the one that jobs.train_toxifier trained in this run, a folder, or None.
        run: the run's folder.

    Raises:
        UserError: no adapter lies there.
    """
    if name is None:
        return None
    if name == "run":
        if read_manifest(run / "toxifier") is None:
            raise UserError("generate.toxify.adapter: run has no trained toxifier yet; run jobs.train_toxifier first")
        return run / "toxifier" / "adapter"
    folder = Folder(str(_WORLD_ADAPTER)) if name == "world:toxifier" else Folder(name)
    missing = [file for file in ADAPTER_FILES if not folder.exists(file)]
    if missing:
        raise UserError(f"generate.toxify.adapter: {name} has no {' and no '.join(missing)}")
    return folder


def adapter_hash(folder: Folder | None) -> str:
    """Returns 16 hexadecimal digits that depend on an adapter's files, or an empty string for none."""
    if folder is None:
        return ""
    return hashlib.sha256(b"".join(folder.read(name) for name in ADAPTER_FILES)).hexdigest()[:16]


def model_path(name: str) -> str:
    """Returns what transformers and vLLM load for `generate.toxify.model`: a folder, or the hub name itself.

    Raises:
        UserError: they could not load it, or only by code of its own or from pickled weights.
    """
    from transformers import AutoConfig, AutoTokenizer

    from safeclip.pretrained import load_pretrained, refuse_adapter
    from safeclip.world.language_model import language_model

    if name == "world:llm":
        return str(language_model())
    what = f"generate.toxify.model: {name}"
    refuse_adapter(name, what)
    for kind in (AutoConfig, AutoTokenizer):
        load_pretrained(kind, name, what)
    if Path(name).is_dir() and not list(Path(name).glob("*.safetensors")):
        raise UserError(f"{what} cannot be loaded: it has no .safetensors, and pickled weights are not read")
    return name


class LanguageModel:
    """A vLLM engine on this process's GPU, or on the CPU where it has none."""

    def __init__(self, settings: Toxify, adapter: Folder | None = None, later: Sequence[Folder] = ()) -> None:
        """Loads the engine.

        Args:
            settings: which model, and how it samples.
            adapter: what it answers with, if any. vLLM adds it on a GPU. On a CPU that took three times as long as
                the model alone, so there it is merged into the weights first.
            later: adapters that `use` may put in its place.
        """
        # vLLM reads these when it is imported: the engine stays in this process, on the threads that Ray gave it.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(settings.kv_cache_gb)
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        import torch

        self.settings, self.path = settings, model_path(settings.model)
        self.on_gpu = torch.cuda.is_available()  # not by what is reserved: vLLM takes the GPU that it finds
        self.known = [*([adapter] if adapter else []), *later]
        if self.on_gpu:
            for_device: dict[str, Any] = {"gpu_memory_utilization": settings.gpu_memory}
            if self.known:
                for_device |= {"enable_lora": True, "max_lora_rank": max(map(_rank_limit, self.known))}
        else:
            # vLLM rewinds the generator where a prompt is prefilled in chunks; a CPU's cannot be: so no chunks.
            for_device = {
                "enforce_eager": True,
                "enable_chunked_prefill": False,
                "max_num_seqs": 64,
                "max_num_batched_tokens": max(8192, settings.max_model_len),
            }
        with _merged(self.path, None if self.on_gpu else adapter) as path:
            self.engine = _engine(settings, path, for_device)
        self.lora = self._request(adapter)

    def _request(self, adapter: Folder | None) -> Any:
        """Returns what tells vLLM to add an adapter, None where it has none to add."""
        return _lora_request(adapter, self.known.index(adapter) + 1) if self.on_gpu and adapter else None

    def use(self, adapter: Folder | None) -> None:
        """Answers with this adapter from now on: one of those given at first, or None for the model alone."""
        self.lora = self._request(adapter)
        if not self.on_gpu:
            with _merged(self.path, adapter) as path:
                self.engine.collective_rpc("reload_weights", kwargs={"weights_path": path})
        self.forget()

    def forget(self) -> None:
        """Empties the prefix cache, so that the rounding of what follows never depends on what came before."""
        self.engine.reset_prefix_cache()

    def refusal(self, messages: list[dict[str, str]]) -> str | None:
        """Returns why a question cannot be asked, None where it can; beside one that cannot, vLLM answers none."""
        tokenizer: Any = self.engine.get_tokenizer()
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        tokens = len(tokenizer.encode(prompt, add_special_tokens=False))
        return TOO_LONG if tokens >= self.settings.max_model_len else None

    def answer(self, requests: list[Request], temperature: float | None = None) -> list[Answer]:
        """Answers each request in one line.

        Args:
            requests: the questions, none of them too long.
            temperature: of the sampling; the settings' unless given.

        Raises:
            LostGpuError: one of several GPUs failed.
        """
        from vllm import SamplingParams

        settings = self.settings
        sampling = [
            SamplingParams(
                temperature=settings.temperature if temperature is None else temperature,
                top_p=settings.top_p,
                max_tokens=settings.max_tokens,
                seed=request.seed,
                stop=["\n"],
            )
            for request in requests
        ]
        messages: Any = [request.messages for request in requests]
        try:
            outputs = self.engine.chat(messages, sampling, use_tqdm=False, lora_request=self.lora)
        except RuntimeError as error:
            # Errors of this process's GPU come as they are. Where several share the model, each has a process of its
            # own, whose error comes as a text only; and once one has died, the engine answers nothing any more.
            if settings.tensor_parallel > 1:
                raise LostGpuError(str(error)) from error
            raise
        return [Answer(o.outputs[0].text.strip(), len(o.outputs[0].token_ids)) for o in outputs]


def _engine(settings: Toxify, path: str, for_device: dict[str, Any]) -> Any:
    from vllm import LLM

    return LLM(
        model=path,
        dtype=settings.dtype,
        max_model_len=settings.max_model_len,
        tensor_parallel_size=settings.tensor_parallel,
        enable_prefix_caching=True,
        trust_remote_code=False,
        load_format="safetensors",
        disable_log_stats=True,
        **for_device,
    )


@contextlib.contextmanager
def _merged(path: str, adapter: Folder | None) -> Iterator[str]:
    """Gives, for the while, the path of a model with an adapter merged into it; without one, the model's own."""
    if adapter is None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="safeclip-llm-") as place:
        save_merged(path, adapter, Path(place))
        yield place


def _lora_request(adapter: Folder, number: int) -> Any:
    from vllm.lora.request import LoRARequest

    path = adapter.path()
    if not adapter.is_local:
        path = tempfile.mkdtemp(prefix="safeclip-adapter-")
        copy_adapter(adapter, Path(path))
    return LoRARequest(f"toxifier-{number}", number, os.path.abspath(path))


def _rank_limit(adapter: Folder) -> int:
    """Returns the least limit that vLLM knows and an adapter's rank does not exceed."""
    rank = json.loads(adapter.read("adapter_config.json"))["r"]
    return max(8, 1 << (rank - 1).bit_length())


def copy_adapter(adapter: Folder, place: Path) -> None:
    """Copies an adapter's files to a folder of this machine."""
    for name in ADAPTER_FILES:
        (place / name).write_bytes(adapter.read(name))


def merge_adapter(model: Any, adapter: Folder) -> Any:
    """Returns a transformers model with an adapter's changes added to its weights."""
    from peft import PeftModel

    with tempfile.TemporaryDirectory(prefix="safeclip-adapter-") as place:
        copy_adapter(adapter, Path(place))
        return PeftModel.from_pretrained(model, place).merge_and_unload()


def save_merged(model: str, adapter: Folder, place: Path) -> None:
    """Writes a model with an adapter merged into it, in bfloat16, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from safeclip.pretrained import load_model

    loaded = load_model(AutoModelForCausalLM, model, f"generate.toxify.model: {model}", dtype=torch.float32)
    merged = merge_adapter(loaded, adapter)
    merged.to(torch.bfloat16).save_pretrained(place)
    AutoTokenizer.from_pretrained(model, trust_remote_code=False).save_pretrained(place)
