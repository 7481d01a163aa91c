"""What each training worker does: TRL's SFT or DPO trainer over its share of the pairs, a checkpoint an epoch."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback

from safeclip.artifacts import Folder
from safeclip.config import Dpo, ToxifierTraining
from safeclip.device import reserved_device
from safeclip.generation.llm import ADAPTER_FILES, merge_adapter, model_path
from safeclip.pretrained import load_model

_SHOWN = ("mean_token_accuracy", "rewards/accuracies", "grad_norm")
TRAINER, BEST = "trainer", "best"  # a checkpoint's folders: the trainer's state, and the best adapter so far


@dataclass(frozen=True)
class Plan:
    """What the driver tells its workers."""

    method: Literal["sft", "dpo"]
    model: str
    """As `generate.toxify.model`."""
    start: Folder | None
    """The adapter that is merged into the model before training, so that DPO's policy begins as the SFT model."""
    train: list[dict[str, Any]]
    """Rows as TRL takes them: `prompt` with `completion`, or with `chosen` and `rejected`; a list of messages."""
    validation: list[dict[str, Any]]
    settings: ToxifierTraining
    seed: int

    @property
    def tuning(self) -> Any:
        """The settings of this method."""
        return self.settings.sft if self.method == "sft" else self.settings.dpo


def make_trainer(plan: Plan, output: Path, workers: int = 1, on_gpu: bool = False) -> Any:
    """Returns TRL's trainer for a plan, in this process.

    The reference of DPO is the policy with its adapter off.

    Args:
        plan: what to train and on what.
        output: where the trainer puts its checkpoints.
        workers: how many processes train together; a step's pairs are divided among them.
        on_gpu: whether this process has a GPU.
    """
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    settings, tuning, path = plan.settings, plan.tuning, model_path(plan.model)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    model = load_model(AutoModelForCausalLM, path, f"generate.toxify.model: {plan.model}", dtype=torch.float32)
    if plan.start is not None:
        model = merge_adapter(model, plan.start)
    share = tuning.batch // workers
    micro = min(tuning.micro_batch or share, share)
    shared: dict[str, Any] = {
        "output_dir": str(output),
        "num_train_epochs": tuning.epochs,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": share // micro,
        "per_device_eval_batch_size": 1,  # so that validation depends on neither batch nor workers
        "learning_rate": tuning.learning_rate,
        "warmup_steps": tuning.warmup,
        "lr_scheduler_type": "cosine",
        "max_length": settings.max_length,
        "bf16": settings.dtype == "bfloat16",
        "use_cpu": not on_gpu,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 1,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "logging_steps": 1,
        "seed": plan.seed,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_drop_last": True,  # workers must take equally many steps
        "ddp_find_unused_parameters": False,
    }
    if settings.sharding == "fsdp":
        shared |= {"fsdp": "full_shard auto_wrap", "fsdp_config": {"use_orig_params": True}}
    lora = LoraConfig(
        r=settings.lora.rank,
        lora_alpha=settings.lora.alpha,
        lora_dropout=settings.lora.dropout,
        target_modules=settings.lora.targets,
        task_type="CAUSAL_LM",
    )
    if isinstance(tuning, Dpo):
        kind: Any = DPOTrainer
        losses = {"sigmoid": 1.0, "sft": tuning.sft_weight} if tuning.sft_weight else {"sigmoid": 1.0}
        arguments: Any = DPOConfig(
            **shared, beta=tuning.beta, loss_type=list(losses), loss_weights=list(losses.values())
        )
    else:
        kind, arguments = SFTTrainer, SFTConfig(**shared)
    trainer = kind(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(plan.train),
        eval_dataset=Dataset.from_list(plan.validation),
        processing_class=tokenizer,
        peft_config=lora,
    )
    trainer.remove_callback(PrinterCallback)  # Reporter says it in a line
    return trainer


class Reporter(TrainerCallback):
    """Prints a line a step, keeps the best adapter, and hands each checkpoint to Ray Train."""

    def __init__(self, method: str, rank: int, best: Path | None = None) -> None:
        """Sets up.

        Args:
            method: for the lines.
            rank: of this worker; only the first one prints and keeps the best adapter.
            best: the best adapter so far, a folder, if training goes on from a checkpoint.
        """
        self.method, self.rank, self.best = method, rank, best
        self.last: Path | None = None

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Prints what was measured."""
        if self.rank or not logs or not {"loss", "eval_loss"} & logs.keys():
            return
        kind = "validation" if "eval_loss" in logs else "train"
        loss = logs.get("eval_loss", logs.get("loss"))
        more = {name: logs.get(name, logs.get(f"eval_{name}")) for name in _SHOWN}
        shown = (f"{name.split('/')[-1]} {float(value):.3f}" for name, value in more.items() if value is not None)
        words = "  ".join(shown)
        step = f"{state.global_step:4d}/{state.max_steps}"
        print(f"{self.method}  step {step}  {kind:<10}  loss {float(loss):.4f}  {words}", flush=True)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Reports the checkpoint that was just written, with the best adapter so far beside it."""
        import ray.train

        target = Path(tempfile.mkdtemp(prefix="safeclip-checkpoint-"))
        source = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if source.is_dir():  # a worker that is not the first may have nothing to save
            shutil.copytree(source, target / TRAINER)
        if self.rank == 0:
            best = source if state.best_global_step == state.global_step or self.best is None else self.best
            (target / BEST).mkdir()
            for name in ADAPTER_FILES:
                shutil.copy(best / name, target / BEST / name)
            self.best = target / BEST
        checkpoint = ray.train.Checkpoint.from_directory(str(target))
        ray.train.report({"history": state.log_history, "steps": state.global_step}, checkpoint=checkpoint)
        self.clear()
        self.last = target  # holds the best adapter, which the next checkpoint may need

    def clear(self) -> None:
        """Removes the last checkpoint's copy."""
        if self.last is not None:
            shutil.rmtree(self.last, ignore_errors=True)


def train_loop(plan: Plan) -> None:
    """Runs in each of Ray Train's workers: trains, from the last checkpoint if there is one."""
    import ray.train

    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    with tempfile.TemporaryDirectory(prefix="safeclip-toxifier-") as name:
        place = Path(name)
        trainer = make_trainer(plan, place / "output", workers, reserved_device() == "cuda")
        checkpoint = ray.train.get_checkpoint()
        if checkpoint:
            checkpoint.to_directory(str(place / "resumed"))
        reporter = Reporter(plan.method, rank, place / "resumed" / BEST if checkpoint else None)
        trainer.add_callback(reporter)
        try:
            trainer.train(resume_from_checkpoint=str(place / "resumed" / TRAINER) if checkpoint else None)
        finally:
            reporter.clear()
