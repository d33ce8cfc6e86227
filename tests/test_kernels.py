"""Compiling the CUDA sources, for every target and without a GPU, and the cache of what was compiled."""

import subprocess
import sys

import pytest
import torch

from glmcore import kernels
from glmcore.errors import KernelError
from glmcore.kernels import compile as compiling
from glmcore.kernels.compile import SOURCES, Kernel, architecture, compile_source, cubin
from glmcore.kernels.launch import launch

ELEMENTS = {"quantize_blocks": True, "quantize_groups": True, "dequantize": True, "gemm": False}
VARIANTS = [(s, e) for s, typed in ELEMENTS.items() for e in (("F32", "F16", "Bf16") if typed else (None,))]


def test_every_source_is_compiled_here():
    assert {file.stem for file in SOURCES.glob("*.cu")} == set(ELEMENTS)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100a"])
@pytest.mark.parametrize(("source", "element"), VARIANTS)
def test_every_kernel_compiles_without_a_warning(source, element, arch):
    code, log = compile_source(source, element, arch)
    assert log == ""
    assert code.startswith(b"\x7fELF")


def test_an_entry_is_found_again_and_a_damaged_one_compiled_anew(tmp_path, monkeypatch):
    first = cubin("dequantize", "Bf16", "sm_90a", tmp_path)
    [entry] = tmp_path.iterdir()
    written = entry.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(compiling, "compile_source", None)  # would fail if it were called
        assert cubin("dequantize", "Bf16", "sm_90a", tmp_path) == first
    for damage in (written[:-100], b"", written[:50] + bytes([written[50] ^ 1]) + written[51:]):
        entry.write_bytes(damage)
        assert cubin("dequantize", "Bf16", "sm_90a", tmp_path) == first
        assert entry.read_bytes() == written
    assert list(tmp_path.iterdir()) == [entry]


def test_entries_differ_by_element_architecture_headers_and_compiler(tmp_path, monkeypatch):
    def names():
        return {file.name for file in tmp_path.iterdir()}

    cubin("dequantize", "Bf16", "sm_90a", tmp_path)
    for element, arch in (("F32", "sm_90a"), ("Bf16", "sm_80")):
        before = names()
        cubin("dequantize", element, arch, tmp_path)
        assert len(names() - before) == 1
    copy = tmp_path.parent / "sources"
    copy.mkdir()
    for file in SOURCES.iterdir():
        (copy / file.name).write_bytes(file.read_bytes() + (b"\n" if file.suffix == ".cuh" else b""))
    monkeypatch.setattr(compiling, "SOURCES", copy)
    before = names()
    cubin("dequantize", "Bf16", "sm_90a", tmp_path)
    assert len(names() - before) == 1
    key = compiling._key("dequantize", "Bf16", "sm_90a")
    monkeypatch.setattr(compiling, "_nvrtc_version", lambda: (99, 0))
    assert compiling._key("dequantize", "Bf16", "sm_90a") != key


def test_processes_may_compile_at_the_same_time(tmp_path):
    code = (
        "import sys, hashlib, pathlib\n"
        "from glmcore.kernels.compile import cubin\n"
        "print(hashlib.sha256(cubin('dequantize', 'F16', 'sm_80', pathlib.Path(sys.argv[1]))).hexdigest())"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    digests = {process.communicate(timeout=120)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(digests) == 1
    [entry] = tmp_path.iterdir()
    assert entry.suffix == ".cubin"


def test_a_folder_that_cannot_be_written_to_costs_only_time(tmp_path):
    (tmp_path / "file").write_text("")
    assert cubin("dequantize", "Bf16", "sm_80", tmp_path / "file" / "below").startswith(b"\x7fELF")


def test_what_does_not_compile_says_why(tmp_path, monkeypatch):
    (tmp_path / "broken.cu").write_text('extern "C" __global__ void broken() { int unused; nonsense(); }\n')
    monkeypatch.setattr(compiling, "SOURCES", tmp_path)
    with pytest.raises(KernelError, match=r"(?s)broken.cu does not compile for sm_90a.*broken.cu\(1\).*nonsense"):
        compile_source("broken", None, "sm_90a")


def test_old_cards_are_refused_and_new_ones_get_their_instructions():
    assert [architecture(c) for c in ((8, 0), (8, 9), (9, 0), (10, 0), (12, 0))] == [
        "sm_80",
        "sm_89",
        "sm_90a",
        "sm_100a",
        "sm_120",
    ]
    with pytest.raises(KernelError, match="too old"):
        architecture((7, 5))


def test_without_a_gpu_a_launch_says_what_is_missing():
    with pytest.raises(KernelError, match=r"needs an NVIDIA GPU .* got device cpu"):
        launch(Kernel("gemm", "multiply_blocks"), (1,), 32, (), torch.device("cpu"))
    if not torch.cuda.is_available():
        assert not kernels.is_available()


def test_without_cuda_core_there_is_a_clear_error_and_everything_else_works():
    code = """
import sys
sys.modules["cuda"] = None
import torch
import glmcore.fp8, glmcore.kernels
from glmcore.errors import KernelError
from glmcore.fp8 import ops
assert not glmcore.kernels.is_available()
ops.fp8_linear(torch.ones(1, 128), *[t for t in (torch.zeros(128, 128, dtype=torch.uint8), torch.ones(1, 1))])
try:
    glmcore.kernels.compile.compile_source("gemm", None, "sm_90a")
except KernelError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'glmcore[cuda]'" in result.stdout


def test_fp8_and_kernels_leave_torch_alone():
    code = "import sys, glmcore.fp8, glmcore.kernels; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
