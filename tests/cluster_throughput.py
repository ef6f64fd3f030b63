"""`python tests/cluster_throughput.py` (part of the target `cluster-check`): questions a second of the stage `supervise` by Ray and by processes, two
workers each, from the same shards to the same bytes. Writes tests/metrics/cluster.json. Ray itself is started before, as on a cluster."""
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from world2vlm.core.actions import Ranges
from world2vlm.core.runs import count_cores, rounded, write_json
from world2vlm.dataset.synthesis import Imagine, Scenes, Supervise, make_questions, make_rollouts, make_scenes

TRIALS = 3  # of each, in turns, after one that is not counted
EXECUTORS = ("processes", "ray")


def measure(work: Path, scenes: int) -> dict:
    "Rates of both executors, in questions a second."
    make_scenes(Scenes(n=scenes, per_shard=10, seed=1, workers=2), work / "scenes")
    make_rollouts(Imagine(presets={"single": 6}, ranges=Ranges((.2, 1.5, .1), (10, 60, 10)), workers=2), "reprojection", work / "scenes", work / "rollouts")
    rates, files = {name: [] for name in EXECUTORS}, {}
    for trial in range(TRIALS + 1):
        for name in EXECUTORS:
            out, start = work / f"{name}-{trial}", time.monotonic()
            stats = make_questions(Supervise(workers=2, executor=name), work / "scenes", work / "rollouts", out)
            if trial: rates[name].append(stats["rows"] / (time.monotonic() - start))
            files[name] = [path.read_bytes() for path in sorted((out / "data").iterdir())]
    assert files["ray"] == files["processes"], "the executors give other bytes"
    return {"cores": count_cores(), "questions": stats["rows"], "rates": rates, "ray over processes": np.median(rates["ray"]) / np.median(rates["processes"])}


if __name__ == "__main__":
    import ray
    ray.init(num_cpus=2, include_dashboard=False)
    with tempfile.TemporaryDirectory() as work: figures = measure(Path(work), int(sys.argv[1]) if len(sys.argv) > 1 else 450)
    print(write_json(Path(__file__).parent / "metrics/cluster.json", rounded(figures, 2)).read_text())
