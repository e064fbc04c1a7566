"""transformers.Trainer logs, evaluates and saves, and goes on from its second checkpoint in a second attempt."""

import json
from pathlib import Path

from rehearsal import Rehearsal, rehearse  # isort: skip  (sets the environment before the libraries are imported)

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

ROWS = [[(i * j) % 31 + 1 for j in range(8)] for i in range(8)]
DATA = [{"input_ids": row, "labels": row} for row in ROWS]


class Tell(TrainerCallback):
    """At each save: what had been logged by then, as the trainer holds it in memory?"""

    def __init__(self, rehearsal, told):
        self.rehearsal, self.told = rehearsal, told

    def on_save(self, args, state, control, **kwargs):
        self.told.append({"file": f"checkpoint-{state.global_step}/trainer_state.json",
                          "history": json.loads(json.dumps(state.log_history))})
        self.rehearsal.pause()


def trainer_of(rehearsal, told, steps):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                                         num_attention_heads=2, max_position_embeddings=16))
    settings = TrainingArguments(
        output_dir=str(rehearsal.out), per_device_train_batch_size=2, learning_rate=1e-2, max_steps=steps, logging_steps=1,
        save_steps=2, eval_steps=2, eval_strategy="steps", seed=1, use_cpu=True, report_to=[], disable_tqdm=True,
        dataloader_pin_memory=False, logging_nan_inf_filter=False)
    return Trainer(model=model, args=settings, train_dataset=DATA, eval_dataset=DATA[:2], callbacks=[Tell(rehearsal, told)])


def train(rehearsal: Rehearsal):
    told = []
    trainer = trainer_of(rehearsal, told, 6)
    trainer.train()
    trainer.save_state()  # beside the checkpoints, with the summary at its end
    told.append({"file": "trainer_state.json", "history": json.loads(json.dumps(trainer.state.log_history))})
    rehearsal.pause()
    trainer_of(rehearsal, told, 8).train(resume_from_checkpoint=str(Path(rehearsal.out, "checkpoint-4")))
    return {"told": told}


if __name__ == "__main__":
    rehearse(train, lambda path: {})
