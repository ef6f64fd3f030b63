"Accelerate's launcher: its shipped configurations, one machine and two, errors, and processes that end with their parent."
import json
import os
import sys
from pathlib import Path

import pytest

from world2vlm.core.config import ConfigError
from world2vlm.students.launch import _configuration, _encode_call, _launch_command, _Launch, launch_distributed

TESTS = Path(__file__).parent
NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK", "OMP_NUM_THREADS")


def report(config, folder: str, fail: bool = False) -> None:
    "Write what this process is told about its group."
    if fail and os.environ["RANK"] == "1": raise ValueError("the second one fails")
    (Path(folder) / f"{os.environ.get('RANK', 'alone')}.json").write_text(json.dumps({name: os.environ.get(name) for name in NAMES}))


@pytest.fixture(autouse=True)
def importable(monkeypatch): monkeypatch.setenv("PYTHONPATH", f"{TESTS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


def groups(folder) -> list: return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def test_one_process_runs_here(tmp_path):
    launch_distributed(report, _Launch(), str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["alone.json"]


def test_one_process_where_several_gpus_are_visible_is_a_group(tmp_path, monkeypatch):
    "TRL refuses a process without a group that sees several GPUs."
    import torch
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    launch_distributed(report, _Launch(), str(tmp_path))
    assert [(g["RANK"], g["WORLD_SIZE"]) for g in groups(tmp_path)] == [("0", "1")]


@pytest.mark.proof
def test_two_machines(tmp_path):
    "Each starts one process; both meet in one group. The machines share no file but the results."
    command = f"{sys.executable} {TESTS / 'two_nodes.py'}"
    launch_distributed(report, _Launch(processes=2, nodes=2, node_command=command), str(tmp_path))
    found = groups(tmp_path)
    assert [(g["RANK"], g["LOCAL_RANK"], g["WORLD_SIZE"]) for g in found] == [("0", "0", "2"), ("1", "0", "2")]
    assert {g["GROUP_RANK"] for g in found} == {"0", "1"}


def test_an_error_of_one_process_is_raised_again(tmp_path):
    with pytest.raises(RuntimeError, match="ValueError: the second one fails"): launch_distributed(report, _Launch(processes=2), str(tmp_path), True)


def test_wrong_settings():
    with pytest.raises(ConfigError, match="launch 'fsdp3'.*choose one of ddp, fsdp2, zero3.*did you mean fsdp2"): launch_distributed(report, _Launch(launch="fsdp3"), "")
    with pytest.raises(ConfigError, match="processes: 3 .* 2 nodes"): launch_distributed(report, _Launch(processes=3, nodes=2), "")


@pytest.mark.parametrize("launch, nodes, expected", [
    ("ddp", 1, {}), ("ddp", 2, {}),
    *((name, nodes, {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
                      "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}) for name, nodes in (("fsdp2", 1), ("fsdp2", 2))),
    *((name, nodes, {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3", "ACCELERATE_DEEPSPEED_ZERO3_INIT": "true",
                     "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true"}) for name, nodes in (("zero3", 1), ("zero3", 2)))])
def test_what_the_shipped_configurations_say(launch, nodes, expected):
    "As accelerate reads them: how many processes on each machine, and what they find in their environment."
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
    words = _launch_command(_Launch(processes=8, launch=launch, nodes=nodes), _encode_call(report))
    start = words.index("-m") + 4  # behind the module, its command and the parent's id
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args([f"--machine_rank={nodes - 1}", *words[start:]]))
    args.deepspeed_fields_from_accelerate_config = ""
    environment = prepare_deepspeed_cmd_env(args)[1] if launch == "zero3" else prepare_multi_gpu_env(args)
    assert {name: environment.get(name) for name in expected} == expected
    assert args.nproc_per_node == str(8 // nodes) and (args.use_deepspeed, args.use_fsdp) == (launch == "zero3", launch == "fsdp2")
    if nodes == 2:
        assert words[:2] == ["srun", "--ntasks-per-node=1"] and args.nnodes == "2" and args.rdzv_backend == "c10d" and ":" in args.rdzv_endpoint


def test_an_own_configuration(tmp_path):
    "Whatever `accelerate config` wrote."
    (own := tmp_path / "mine.yaml").write_text(_configuration("ddp").read_text())
    assert _configuration(str(own)) == own


def test_extras_are_what_the_locked_trainer_supports():
    "vllm and deepspeed in the versions that TRL names; num2words for SmolVLM."
    import tomllib
    from importlib.metadata import requires
    from packaging.requirements import Requirement
    own = {r.name: r.specifier for lines in tomllib.loads((TESTS.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"].values()
           for r in map(Requirement, lines)}
    of_trl = {r.name: r.specifier for r in map(Requirement, requires("trl"))}
    assert own["vllm"] == of_trl["vllm"] and own["deepspeed"] == of_trl["deepspeed"] and all(own["num2words"].contains(s.version) for s in of_trl["num2words"])
