"""Versions of weights on disk."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from test_fp8_publisher import SMALL, collected, damaged, trained

from glmcore import Glm
from glmcore.errors import CheckpointError, SyncError
from glmcore.fp8 import WeightDirectory, WeightPublisher, checkpoint_checksum, verify_checkpoint


def config() -> dict:
    return trained().config.to_hf()


@pytest.mark.parametrize("bucket_bytes", [SMALL, 1 << 20])
def test_a_version_is_the_checkpoint_that_would_be_exported(tmp_path, bucket_bytes):
    model = trained()
    model.save_pretrained(tmp_path / "fp8", fp8=True)
    (tmp_path / "fp8" / "tokenizer.json").write_text("{}")
    directory = WeightDirectory(tmp_path / "weights", config(), files=tmp_path / "fp8")
    checksum = directory.update_weights(12, WeightPublisher(bucket_bytes=bucket_bytes).publish(12, model.state_dict()))
    path = tmp_path / "weights" / "weight_v000012"
    assert directory.path(12) == path
    got, expected = (Glm.from_pretrained(p, dtype=torch.float32).state_dict() for p in (path, tmp_path / "fp8"))
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    configs = [json.loads((p / "config.json").read_text()) for p in (path, tmp_path / "fp8")]
    assert configs[0] == configs[1]
    assert checksum == checkpoint_checksum(path) == checkpoint_checksum(tmp_path / "fp8")
    assert json.loads((path / "policy.json").read_text()) == {"policy_version": 12, "weights_checksum": checksum}
    files = {file.name for file in path.iterdir()} - {"SHA256SUMS"}
    assert files >= {"config.json", "tokenizer.json", "policy.json"}
    assert verify_checkpoint(path) == len(files)
    assert ("model.safetensors" in files) == (bucket_bytes != SMALL)


def test_high_precision_has_no_quantization_in_its_config(tmp_path):
    directory = WeightDirectory(tmp_path, config())
    model = trained()
    directory.update_weights(0, WeightPublisher(precision="bf16").publish(0, model.state_dict()))
    assert "quantization_config" not in json.loads((directory.path(0) / "config.json").read_text())
    model.save_pretrained(tmp_path / "bf16")
    assert checkpoint_checksum(directory.path(0)) == checkpoint_checksum(tmp_path / "bf16")


def test_old_versions_go_and_order_is_kept(tmp_path):
    directory, publisher, state = WeightDirectory(tmp_path, config(), keep=2), WeightPublisher(), trained().state_dict()
    for version in (1, 2, 5):
        directory.update_weights(version, publisher.publish(version, state))
    assert directory.versions() == [2, 5]
    stamp = directory.path(5).stat().st_mtime_ns
    directory.update_weights(5, publisher.publish(5, state))  # a resumed trainer
    assert directory.path(5).stat().st_mtime_ns == stamp
    with pytest.raises(SyncError, match=r"weight_v000005 exists and holds other weights"):
        directory.update_weights(5, publisher.publish(5, trained(1).state_dict()))
    with pytest.raises(SyncError, match=r"version 4 came, .* holds version 5"):
        directory.update_weights(4, publisher.publish(4, state))
    assert directory.versions() == [2, 5]
    with pytest.raises(CheckpointError, match="keep"):
        WeightDirectory(tmp_path, config(), keep=0)


def test_an_update_that_is_not_whole_leaves_nothing(tmp_path):
    directory = WeightDirectory(tmp_path, config())
    buckets = collected(WeightPublisher(bucket_bytes=SMALL).publish(5, trained().state_dict()))
    with pytest.raises(SyncError, match="its checksum differs"):
        directory.update_weights(5, damaged(buckets))
    with pytest.raises(SyncError, match="before its last"):
        directory.update_weights(5, buckets[:-2])
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path):
    code = (
        "import resource, sys; sys.path.insert(0, 'tests')\n"
        "from test_fp8_weight_directory import *\n"
        f"directory = WeightDirectory({str(tmp_path)!r}, config())\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try: directory.update_weights(1, WeightPublisher().publish(1, trained().state_dict()))\n"
        "except CheckpointError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "cannot write" in done.stdout
    assert "File too large" in done.stdout
    assert done.stdout.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_killed_it_leaves_whole_versions_only(tmp_path):
    code = (
        "import sys, itertools; sys.path.insert(0, 'tests')\n"
        "from test_fp8_weight_directory import *\n"
        f"directory, publisher = WeightDirectory({str(tmp_path)!r}, config()), WeightPublisher(bucket_bytes=SMALL)\n"
        "state = trained().state_dict()\n"
        "for version in itertools.count(): directory.update_weights(version, publisher.publish(version, state))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "weight_v000003").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    directory = WeightDirectory(tmp_path, config())
    assert directory.versions()[-1] >= 3
    assert len(directory.versions()) <= 3
    checksums = {checkpoint_checksum(directory.path(version)) for version in directory.versions()}
    assert len(checksums) == 1
    for version in directory.versions():
        assert verify_checkpoint(directory.path(version))
    following = directory.versions()[-1] + 1
    directory.update_weights(following, WeightPublisher().publish(following, trained().state_dict()))
    assert len(directory.versions()) == 2
    assert not list(tmp_path.glob(".*"))
    shutil.rmtree(tmp_path)
