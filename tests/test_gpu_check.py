"The check of a GPU, at the size of a toy on a processor: every part runs and leaves its figures."
import json
import subprocess
import sys
from pathlib import Path

import gpu_check
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.proof
def test_every_part_leaves_its_figures(tmp_path):
    out = tmp_path / "gpu_check.json"
    words = [sys.executable, "tests/gpu_check.py", "--toy", "--seconds", "3000", "--out", str(out), "--wheels", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    report = json.loads(out.read_text())
    assert done.returncode == 0, {name: part.get("error") for name, part in report["parts"].items()}
    parts = report["parts"]
    assert set(parts) == set(gpu_check.PARTS) and sum(gpu_check.PARTS.values()) > 520 > max(gpu_check.PARTS.values())
    assert parts["svc_parity"]["float32 relative error"] < 1e-5
    assert parts["svc_speed"]["teraflop"] > 0 and parts["svc_speed"]["eager ms"] > 0
    assert parts["sft"]["seconds of a step"] > 0 and parts["grpo"]["seconds of a step"] > 0
    assert list(parts["pipeline"])[:2] == ["evaluate", "grpo"]  # in order of the alphabet
    assert report["toy"] and report["rates"] == {}


def test_a_part_that_fails_leaves_the_others(tmp_path, monkeypatch):
    broken = tmp_path / "gpu_check.py"
    broken.write_text((ROOT / "tests/gpu_check.py").read_text().replace("torch.manual_seed(0)", "raise ValueError('no such device')"))
    monkeypatch.setattr(gpu_check, "__file__", str(broken))
    result = gpu_check.run_part("svc_parity", True, 3000, tmp_path)
    assert "no such device" in result["error"] and result["seconds"] > 0
    assert "stopped after" in gpu_check.run_part("svc_speed", True, .2, tmp_path)["error"]


def test_wheels_of_known_packages_stay_out(tmp_path, monkeypatch):
    for name in ("numpy-2.0.0-py3-none-any.whl", "of_nobody-1.0-py3-none-any.whl"): (tmp_path / name).touch()
    commands = []
    monkeypatch.setattr(gpu_check.subprocess, "run", lambda words, **_: commands.append(words))
    assert gpu_check.install(tmp_path, tmp_path / "site") == ["of_nobody-1.0-py3-none-any.whl"]
    assert commands[0][-1].endswith("of_nobody-1.0-py3-none-any.whl") and "--no-index" in commands[0]
