"""Compare `paper_reward` with recorded rewards: `python tests/reward_parity.py FILE.json`.

FILE.json is a list of rows {"task", "answer", "response", "overall", ...parts}. Prints how many rows differ by more than
1e-6 in any of their parts and exits with 1 if one does."""
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from world2vlm.tasks.rewards import paper_reward

INPUTS = ("task", "answer", "response")


def differences(row: dict) -> dict:
    "Parts of `row` that the reward gets wrong: part -> (recorded, ours or None)."
    ours = paper_reward(*(row[key] for key in INPUTS))
    recorded = {key: value for key, value in row.items() if key not in INPUTS}
    return {key: (value, ours.get(key)) for key, value in recorded.items()
            if key not in ours or abs(ours[key] - value) > 1e-6}


def main(path: str) -> int:
    "Report every row of `path` that differs; the exit status."
    rows = json.loads(Path(path).read_text(encoding="utf-8"))
    wrong = [(i, row, found) for i, row in enumerate(rows) if (found := differences(row))]
    for i, row, found in wrong: print(f"row {i}: {[row[key] for key in INPUTS]}: (recorded, ours) {found}")
    print(f"{len(wrong)} of {len(rows)} rows differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    if len(sys.argv) != 2: sys.exit("usage: python tests/reward_parity.py FILE.json")
    sys.exit(main(sys.argv[1]))
