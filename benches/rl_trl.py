"""The peer of benches/rl.py: TRL's GRPOTrainer on the digit task, with the same model, prompts, delays and loss."""

import asyncio
from pathlib import Path
from typing import Any

from digit_copy import ANSWER_TOKENS, LATENCIES, Clocks, delay_of, digit_tasks, prompt_ids, reward_of, tiny_tokenizer

SETTINGS: dict[str, Any] = {
    "use_cpu": True,
    "per_device_train_batch_size": 64,
    "num_generations": 8,
    "max_completion_length": ANSWER_TOKENS,
    "temperature": 1.0,
    "beta": 0.0,
    "loss_type": "dapo",
    "epsilon": 0.2,
    "epsilon_high": 0.28,
    "lr_scheduler_type": "constant",
    "adam_beta1": 0.9,
    "adam_beta2": 0.99,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "shuffle_dataset": False,
    "report_to": [],
    "save_strategy": "no",
    "logging_strategy": "no",
    "disable_tqdm": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
}
"""What our arms have too, in TRL's words; and nothing that costs time and is not training."""


def train_trl(export: Path, out: Path, *, latency: str, max_steps: int, learning_rate: float, seed: int, slots: int):
    """Train; gives the seconds since the start and the mean reward after every step, and figures.

    Args:
        export: The model in the Hugging Face layout, with its tokenizer.
        out: For what the trainer writes.
        latency: Of the environments.
        max_steps: Updates, each on 8 groups of 8 answers.
        learning_rate: Constant.
        seed: Of sampling.
        slots: Environments that work at a time.
    """
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, Glm4MoeForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(export, padding_side="left")
    tokenizer.pad_token = "<|endoftext|>"
    model = Glm4MoeForCausalLM.from_pretrained(export, dtype=torch.float32)
    ours = tiny_tokenizer()
    tasks = digit_tasks(8 * max_steps)
    prompts = [tokenizer.decode(prompt_ids(ours, task.data["digit"])) for task in tasks]
    assert tokenizer(prompts[0]).input_ids == prompt_ids(ours, tasks[0].data["digit"])
    data = Dataset.from_list([{"prompt": prompt, "task": task.id} for prompt, task in zip(prompts, tasks, strict=True)])
    steps: list[tuple[float, float]] = []
    means: list[float] = []
    work: list[float] = []
    attempts: dict[str, int] = {}

    def environments(completions: list[str], task: list[str], **_: Any) -> list[float]:
        delays: list[float] = []
        for name in task:
            attempt = attempts.get(name, 0)
            attempts[name] = attempt + 1
            delays.append(delay_of(LATENCIES[latency], name, attempt))
        work.append(sum(delays))
        asyncio.run(_wait(delays, slots))
        rewards = [reward_of(text, name.split("#")[0]) for text, name in zip(completions, task, strict=True)]
        means.append(sum(rewards) / len(rewards))
        return rewards

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            steps.append((clocks.seconds, means[-1]))

    config = GRPOConfig(output_dir=str(out), seed=seed, max_steps=max_steps, learning_rate=learning_rate, **SETTINGS)
    trainer = GRPOTrainer(model, environments, args=config, train_dataset=data, processing_class=tokenizer)
    trainer.add_callback(Clock())
    clocks = Clocks()
    trainer.train()
    return steps, clocks.figures() | {"work_s": sum(work)}


async def _wait(delays: list[float], slots: int) -> None:
    free = asyncio.Semaphore(slots)

    async def wait(delay: float) -> None:
        async with free:
            if delay:
                await asyncio.sleep(delay)

    await asyncio.gather(*(wait(delay) for delay in delays))
