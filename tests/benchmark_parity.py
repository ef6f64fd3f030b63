"`python tests/benchmark_parity.py {sat|vsibench|mindcube} FILE.json`: rows whose score differs from the official one, per rule; the exit status is 1 if any does."
import json
import sys

from world2vlm.evaluation.benchmarks.mindcube import _mindcube_letter, _mindcube_setting
from world2vlm.evaluation.benchmarks.sat import sat_verdict
from world2vlm.evaluation.benchmarks.vsibench import _vsi_score, _vsi_scores

VSI = {"fork": "official", "lmms_eval_v0_7_1": "official", "lmms_eval_2026_08": "lmms-eval 2026-07"}  # column of the file -> rule


def sat(rows, aggregate):
    return {"official": sum(sat_verdict(r["raw"], r["answer_choices"], r["correct_answer"]) != r["official"] for r in rows)}


def mindcube(rows, aggregate):
    letters = [_mindcube_letter(r["raw"]) for r in rows]
    return {"letter": sum(letter != r["extract_clean"] for letter, r in zip(letters, rows)),
            "setting": sum(_mindcube_setting(r["id"]) != r["setting"] for r in rows),
            "score": sum(float(letter == r["gt_answer"]) != r["score_official"] for letter, r in zip(letters, rows))}


def vsibench(rows, aggregate):
    "Scores bit by bit; an aggregate is {column: overall, or {task: score}}, the fork's in percent."
    wrong = {column: sum(_vsi_score(r["raw"] or "", r["question_type"], r["ground_truth"], rule) != r[column] for r in rows if column in r) for column, rule in VSI.items()}
    for column, official in aggregate.items():
        scored = [dict(r, score=_vsi_score(r["raw"] or "", r["question_type"], r["ground_truth"], VSI[column])) for r in rows]
        ours, unit = _vsi_scores(scored), 100 if column == "fork" else 1
        official = official if isinstance(official, dict) else {"overall": official}
        tasks = {name.split("_accuracy")[0].split("_MRA")[0]: value for name, value in official.items()}
        wrong[f"{column}, aggregate"] = sum(abs(ours[name] * (unit if name == "overall" else 1) - value) > 1e-9 for name, value in tasks.items())
    return wrong


def main(name, path):
    with open(path) as f: golden = json.load(f)
    rows, aggregate = (golden["rows"], golden.get("aggregate", {})) if isinstance(golden, dict) else (golden, {})
    wrong = {"sat": sat, "vsibench": vsibench, "mindcube": mindcube}[name](rows, aggregate)
    print(json.dumps({"rows": len(rows), "different": wrong}))
    return int(any(wrong.values()))


if __name__ == "__main__": sys.exit(main(*sys.argv[1:]))
