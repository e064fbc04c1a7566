"""transformers.Trainer: without and with a limit, the best loaded at the end, sharded weights, a LoRA adapter."""

from pathlib import Path

from rehearsal import Rehearsal, rehearse  # isort: skip  (sets the environment before the libraries are imported)

import torch
from peft import LoraConfig, get_peft_model
from peft.utils import load_peft_weights
from tokenizers import Tokenizer, models
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

CONFIG = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
          "max_position_embeddings": 16}
ROWS = [[(i * j) % 31 + 1 for j in range(8)] for i in range(8)]
DATA = [{"input_ids": row, "labels": row} for row in ROWS]


class ShardedLlama(LlamaForCausalLM):
    def save_pretrained(self, *args, **kwargs):
        super().save_pretrained(*args, **{**kwargs, "max_shard_size": "6KB"})


class Tell(TrainerCallback):
    def __init__(self, rehearsal):
        self.rehearsal = rehearsal

    def on_save(self, args, state, control, **kwargs):
        logged = {k: v for entry in state.log_history if entry["step"] == state.global_step for k, v in entry.items()}
        metrics = {k: logged[k] for k in ("loss", "eval_loss") if k in logged}
        self.rehearsal.saved(Path(args.output_dir, f"checkpoint-{state.global_step}"), "hf-trainer", step=state.global_step,
                             metrics=metrics)
        self.rehearsal.pause()


def run(rehearsal, name, model, **arguments):
    out = rehearsal.out / name
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({f"w{i}": i for i in range(32)}, "w0")),
                                        pad_token="w0")
    settings = TrainingArguments(
        output_dir=str(out), per_device_train_batch_size=2, learning_rate=1e-2, max_steps=6, logging_steps=1, save_steps=2,
        eval_steps=2, eval_strategy="steps", seed=1, use_cpu=True, report_to=[], disable_tqdm=True,
        dataloader_num_workers=0, dataloader_pin_memory=False, **arguments)
    trainer = Trainer(model=model, args=settings, train_dataset=DATA, eval_dataset=DATA[:2], processing_class=tokenizer,
                      callbacks=[Tell(rehearsal)])
    trainer.train()
    state = trainer.state
    best = Path(state.best_model_checkpoint).name if state.best_model_checkpoint else None
    losses = [entry[k] for entry in state.log_history for k in ("loss", "eval_loss") if k in entry]
    return trainer, {"step": state.global_step, "losses": losses, "best": best}


def train(rehearsal: Rehearsal):
    def llama(kind=LlamaForCausalLM):
        torch.manual_seed(0)
        return kind(LlamaConfig(**CONFIG))

    ended = {}
    trainer, ended["all"] = run(rehearsal, "all", llama())
    trainer.save_model()  # into the run's own directory, beside its checkpoints
    rehearsal.saved(rehearsal.out / "all" / "model.safetensors", "hf-model")
    rehearsal.pause()
    _, ended["limit"] = run(rehearsal, "limit", llama(), save_total_limit=2)
    _, ended["best"] = run(rehearsal, "best", llama(), save_total_limit=1, load_best_model_at_end=True,
                           metric_for_best_model="eval_loss", greater_is_better=True)
    _, ended["sharded"] = run(rehearsal, "sharded", llama(ShardedLlama), save_total_limit=2)
    lora = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    _, ended["adapter"] = run(rehearsal, "adapter", lora)
    return ended


def load(path: Path):
    path = path if path.is_dir() else path.parent
    if (path / "adapter_config.json").exists():
        return load_peft_weights(str(path), device="cpu")
    model, info = LlamaForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not any(info.values()), info
    return dict(model.state_dict())


if __name__ == "__main__":
    rehearse(train, load)
