"""What loading and saving hold in memory, measured in processes of their own."""

import subprocess
import sys

PREPARE = """
import ctypes, sys, torch
from pathlib import Path
from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm
from glmcore.model.weights import hf_views

torch.set_num_threads(1)

def megabytes(field):
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) / 1024

def start():
    # memory in use, and from now on its peak is a new one
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return megabytes("VmRSS")

def size_of(model):
    return sum(parameter.nbytes for parameter in model.parameters()) / 2**20

config = GlmConfig(
    vocab_size=4096, hidden_size=512, intermediate_size=1024, num_hidden_layers=3, num_attention_heads=8,
    num_key_value_heads=2, head_dim=64, n_routed_experts=64, num_experts_per_tok=4, moe_intermediate_size=384,
)
folder = Path(sys.argv[1])
"""
SAVE = """
tiny = Glm(config.model_copy(update={"hidden_size": 32, "n_routed_experts": 4})).init_weights(seed=0)
model = Glm(config).to(torch.bfloat16)
for parameter in model.parameters():
    parameter.data.zero_()
for number, fp8 in enumerate((False, True)):
    tiny.save_pretrained(folder / f"tiny{number}", fp8=fp8)  # what is loaded by then stays
    before = start()
    model.save_pretrained(folder / ("fp8" if fp8 else "bf16"), fp8=fp8)
    print((megabytes("VmHWM") - before) / size_of(model))
"""
LOAD = """
Glm.from_pretrained(folder / "tiny0", dtype=torch.float16)  # what is loaded by then stays
for layout, dtype in (("bf16", torch.bfloat16), ("fp8", torch.bfloat16), ("bf16", torch.float32)):
    before = start()
    model = Glm.from_pretrained(folder / layout, dtype=dtype)
    print((megabytes("VmHWM") - before) / size_of(model))
    del model
"""


def run(script, folder):
    command = [sys.executable, "-c", PREPARE + script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return [float(word) for word in done.stdout.split()]


def test_loading_holds_the_model_once_and_saving_one_tensor_beside_it(tmp_path):
    # A model of 237 MB in bfloat16. Its largest tensor, the embedding of 4 MB, is below 2 % of it; the rest is of the
    # allocator, and codes and scales beside the tensor that they are made of.
    saving = run(SAVE, tmp_path)
    assert len(saving) == 2
    assert max(saving) < 0.1
    # Above one: a slab of 16 MB of the file, its header, and the names of some thousand tensors. A second copy would be
    # two, and a map of the file beside the model two, or one and a half where the file is half as wide.
    loading = run(LOAD, tmp_path)
    assert len(loading) == 3
    assert min(loading) > 0.95  # what is not there cannot be measured
    assert max(loading) < 1.15
