"""Loading and saving a model beside transformers, from the same files, interleaved, each step in a process of its own.

Two models: `large` has few tensors of some MB, `many` has GLM-4.6's 90 x 160 experts, each tiny, so that what a tensor
costs shows. The page cache is warm. Memory is the peak beyond what the process had before, in sizes of the weights; for
loading that counts files that are mapped, which can be taken back. transformers leaves the MTP layer out, so the models
have none. glmcore saves with a SHA256SUMS, which is a part of its time.

    python benches/checkpoints.py --repeats 5
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = {
    "large": {"hidden_size": 1024, "num_hidden_layers": 4, "n_routed_experts": 64, "moe_intermediate_size": 512},
    "many": {"hidden_size": 16, "num_hidden_layers": 91, "n_routed_experts": 160, "moe_intermediate_size": 8},
}
COMMON = {
    "vocab_size": 4096, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64,
    "num_experts_per_tok": 8, "num_nextn_predict_layers": 0, "eos_token_id": [1], "pad_token_id": 1,
}  # fmt: skip
STEPS = ("load", "save")
LIBRARIES = ("glmcore", "transformers")


def write_source(directory: Path, size: str) -> None:
    """A random model."""
    from glmcore.model.config import GlmConfig
    from glmcore.model.glm import Glm

    Glm(GlmConfig(**COMMON, **SIZES[size])).init_weights(seed=0).save_pretrained(directory)


def run_step(library: str, step: str, source: Path, target: Path) -> dict[str, float]:
    """One step, in this process."""
    import torch

    torch.set_num_threads(1)
    if library == "glmcore":
        from glmcore.model import weights
        from glmcore.model.glm import Glm as Model

        assert weights  # loaded before the clock starts, as the other library is
    else:
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        Model = transformers.Glm4MoeForCausalLM
    model = Model.from_pretrained(source, dtype=torch.bfloat16) if step == "save" else None
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    cpu, wall = time.process_time(), time.perf_counter()
    if model is None:
        model = Model.from_pretrained(source, dtype=torch.bfloat16)
    else:
        model.save_pretrained(target)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    size = sum(parameter.nbytes for parameter in model.parameters())
    return {"cpu_s": cpu, "wall_s": wall, "memory": (status("VmHWM") - before) * 1024 / size}


def status(field: str) -> int:
    """A field of /proc/self/status, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--step", nargs=4, metavar=("LIBRARY", "STEP", "SOURCE", "TARGET"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        library, step, source, target = args.step
        print(json.dumps(run_step(library, step, Path(source), Path(target))))
        return
    print("| model | step | library | CPU s | wall s | peak memory |\n| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            source, target = Path(folder) / size, Path(folder) / "target"
            write_source(source, size)
            results: dict[tuple[str, str], list[dict[str, float]]] = {}
            for _ in range(args.repeats):
                for step in STEPS:
                    for library in LIBRARIES:
                        command = [sys.executable, __file__, "--step", library, step, str(source), str(target)]
                        done = subprocess.run(command, capture_output=True, text=True, check=True)
                        results.setdefault((step, library), []).append(json.loads(done.stdout.splitlines()[-1]))
                        shutil.rmtree(target, ignore_errors=True)
            for (step, library), runs in results.items():
                cpu, wall, memory = (
                    statistics.median(run[key] for run in runs) for key in ("cpu_s", "wall_s", "memory")
                )
                print(f"| {size} | {step} | {library} | {cpu:.2f} | {wall:.2f} | {memory:.2f} |")


if __name__ == "__main__":
    main()
