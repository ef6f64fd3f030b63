"`python tests/benchmark_parity.py NAME FILE.json`: rows that differ from the official scorer, per rule; the exit status is 1 if any does."
import json
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from world2vlm.evaluation.benchmarks import camerabench as camera, enact as households, mmsi as pictures, viewspatial as views
from world2vlm.evaluation.benchmarks.base import Item
from world2vlm.evaluation.benchmarks.enact_graphs import _Recording
from world2vlm.evaluation.benchmarks.mindcube import _mindcube_letter, _mindcube_setting
from world2vlm.evaluation.benchmarks.option_letters import _vlmevalkit_circular_letter, _vlmevalkit_letter
from world2vlm.evaluation.benchmarks.sat import sat_verdict
from world2vlm.evaluation.benchmarks.vsibench import _vsi_score, _vsi_scores

VSI = {"fork": "official", "lmms_eval_v0_7_1": "official", "lmms_eval_2026_08": "lmms-eval 2026-07"}  # column of the file -> rule
close = lambda ours, theirs: abs(ours - theirs) < 1e-12


def sat(rows, aggregate, path):
    return {"official": sum(sat_verdict(r["raw"], r["answer_choices"], r["correct_answer"]) != r["official"] for r in rows)}


def mindcube(rows, aggregate, path):
    letters = [_mindcube_letter(r["raw"]) for r in rows]
    return {"letter": sum(letter != r["extract_clean"] for letter, r in zip(letters, rows)),
            "setting": sum(_mindcube_setting(r["id"]) != r["setting"] for r in rows),
            "score": sum(float(letter == r["gt_answer"]) != r["score_official"] for letter, r in zip(letters, rows))}


def vsibench(rows, aggregate, path):
    "Scores bit by bit; an aggregate is {column: overall, or {task: score}}, the fork's in percent."
    wrong = {column: sum(_vsi_score(r["raw"] or "", r["question_type"], r["ground_truth"], rule) != r[column] for r in rows if column in r) for column, rule in VSI.items()}
    for column, official in aggregate.items():
        scored = [dict(r, score=_vsi_score(r["raw"] or "", r["question_type"], r["ground_truth"], VSI[column])) for r in rows]
        ours, unit = _vsi_scores(scored), 100 if column == "fork" else 1
        official = official if isinstance(official, dict) else {"overall": official}
        tasks = {name.split("_accuracy")[0].split("_MRA")[0]: value for name, value in official.items()}
        wrong[f"{column}, aggregate"] = sum(abs(ours[name] * (unit if name == "overall" else 1) - value) > 1e-9 for name, value in tasks.items())
    return wrong


def by_kind(checks):
    "`checks`: kind of row -> function(row) -> {rule: equal}; counts what differs."
    def check(rows, aggregate, path):
        wrong = Counter({f"unknown kind {r['kind']}": 1 for r in rows if r["kind"] not in checks})
        for r in rows:
            for rule, equal in checks.get(r["kind"], lambda row: {})(r).items(): wrong[f"{r['kind']}, {rule}"] += not equal
        return dict(wrong)
    return check


def answer_row(r, i=0): return dict(id=str(i), kind=r["question_type"], gold=r["answer"], response=r["raw"], choices=r.get("choices", []))


def viewspatial(rows, aggregate, path):
    def answer(r):
        marks = views.BENCHMARK.score([answer_row(r)])
        return {"official letter": views._viewspatial_letter(r["raw"]) == r["extracted_official"], "official": marks["official"]["overall"] == r["official"],
                "lmms-eval": marks["official"]["overall"] == r["lmms_eval"],
                "VLMEvalKit letter": _vlmevalkit_letter(r["raw"]) == r["extracted_vlmevalkit"], "VLMEvalKit": marks["VLMEvalKit"]["overall"] == r["vlmevalkit"]}
    def prompt(r):
        item = Item("0", "", r["question"], tuple(r["choices"].split("\n")), "", ("a.png",))
        return {"official": views.BENCHMARK.prompt(item)[1:] == [r["prompt_official"]]}
    def report(r):
        table = views.BENCHMARK.score([answer_row(item, i) for i, item in enumerate(r["items"])])["official"]
        shares = {"overall": r["overall"], **r["per_type"]}
        return {name: close(table[name], right / n) for name, (right, n) in shares.items()}
    return by_kind(dict(answer=answer, prompt=prompt, report=report))(rows, aggregate, path)


def mmsi(rows, aggregate, path):
    def answer(r):
        score = {rule: table["overall"] for rule, table in pictures.BENCHMARK.score([answer_row(r)]).items()}
        return {"official letter": pictures._mmsi_letter(r["raw"]) == r["extracted_official"], "official": score["official"] == r["official"],
                "README": (pictures._mmsi_letter(r["raw"], braces=True) and score["README"]) == r["readme"], "lmms-eval": score["lmms-eval"] == r["lmms_eval"],
                "VLMEvalKit letter": _vlmevalkit_letter(r["raw"]) == r["extracted_vlmevalkit"], "VLMEvalKit": score["VLMEvalKit"] == r["vlmevalkit"],
                "circular letter": _vlmevalkit_circular_letter(r["raw"], r["choices"]) == r["vlmevalkit_circular_letter"]}
    def prompt(r): return {"official": pictures.BENCHMARK.prompt(Item("0", "", r["question"], (), "", (b"",)))[1:] == [r["prompt_official"]]}
    def expand(r): return {"official": pictures._mmsi_circular(r["question"], r["answer"]) == [(turn["question"], turn["answer"]) for turn in r["expanded"]]}
    def circular(r):
        turns = [dict(id=f"7#{i}", kind="k", gold=gold, response=raw, choices=[]) for i, (gold, raw) in enumerate(zip(r["answers"], r["raws"]))]
        score = pictures.BENCHMARK.score(turns)
        return {"hit": score["official, circular"]["overall"] == r["hit_circular"], "vanilla": score["official"]["overall"] == r["hit_vanilla"]}
    def report(r):
        table = pictures.BENCHMARK.score([answer_row(item, i) for i, item in enumerate(r["items"])])["official"]
        return {name: close(table[name], share) for name, share in {"overall": r["overall"], **r["per_type"]}.items()}
    return by_kind(dict(answer=answer, prompt=prompt, circular_expand=expand, circular=circular, report=report))(rows, aggregate, path)


def enact(rows, aggregate, path):
    "The scene graphs are read from `enact_scenes.json` beside the file."
    scenes = json.loads(path.with_name("enact_scenes.json").read_text())
    with TemporaryDirectory() as folder:
        recordings = {name: _Recording(Path(folder) / f"{name}.json", frozenset(scene["frames"])) for name, scene in scenes.items()}
        for name, recording in recordings.items():
            recording.path.write_text(json.dumps(scenes[name]["frames"]))
            recording.graphs
    pairs = [(recordings[name], pair.split(">"), kind == "partial", names)
             for name, scene in scenes.items() for kind, table in scene["signatures"].items() for pair, names in table.items()]
    signatures = sum(recording.signatures(pair, partial) != [set(names)] for recording, pair, partial, names in pairs)

    def row_of(r, i=0):
        item = households._Ordering(str(i), r["type"], "", (), json.dumps(r["gt_answer"]), frames=tuple(r["key_frame_ids"]), recording=recordings[r["scene"]])
        if isinstance(r["raw"], str): return households.BENCHMARK.row(item, r["raw"])
        return dict(id=item.id, kind=item.kind, score=households._order_score(item, r["raw"]))  # a list counts as it stands
    def read(raw, n): return households._enact_answer(raw, n) if isinstance(raw, str) else raw
    def score(r):
        ours, names = row_of(r)["score"], dict(exact="exact_match", task="task_accuracy", pairwise="pairwise_accuracy")
        if r["skipped"]: return {"skipped": ours is None}
        same = {official: float(r[official]) == ours[name] for name, official in names.items()}
        return same | {"parsed": read(r["raw"], len(r["gt_answer"])) == r["parsed"], "bound": ours["certain"] <= r["pairwise_accuracy"]}
    def report(r):
        answers = [row_of(item, i) for i, item in enumerate(r["items"])]
        table = households.BENCHMARK.score(answers)
        overall = close(table["official"]["overall"], r["report"]["overall"]["task_accuracy"]), close(table["official, pairwise"]["overall"], r["report"]["overall"]["pairwise_accuracy"])
        return {"report": households._enact_report(answers) == r["report"], "score": all(overall)}
    def prompt(r): return {"official": households.BENCHMARK.prompt(Item("0", r["type"], r["prompt"], (), "[1]", ("a.png",)))[1:] == [r["prompt"]]}
    parse = lambda r: {"official": read(r["raw"], r["gt_length"]) == r["parsed"]}
    return {"signatures": signatures} | by_kind(dict(score=score, parse=parse, report=report, prompt=prompt))(rows, aggregate, path)


def camerabench(rows, aggregate, path):
    codes = {"Yes": 1, "No": 0, "": -1}
    def text(r): return {"lmms-eval": codes[camera._yes_or_no(r["raw"])] == r["lmms_eval"]}
    def pair_text(r):
        ours = camera._text_scores(r["raws"])
        names = dict(binary_acc="acc", question_acc="q_acc", image_acc="i_acc", group_acc="g_acc")
        return {name: ours[key] == r[name] for key, name in names.items()} | {"extracted": [codes[camera._yes_or_no(raw)] for raw in r["raws"]] == r["extracted"]}
    def pair_scores(r): return {name: value == r[name] for name, value in camera._pair_scores(r["yes"], r["no"]).items()}
    def report(r):
        answers = [dict(id=f"{skill}/{i}#{j}", kind=skill, gold=gold, response="", probabilities={"Yes": pair["yes"][j], "No": pair["no"][j]})
                   for skill, pairs in r["skills"].items() for i, pair in enumerate(pairs) if not pair["error"] for j, gold in enumerate(camera._RIGHT)]
        tables, same = camera.BENCHMARK.score(answers), {}
        rules = {"official": ("vqa", "question_acc"), "official, Acc": ("vqa", "binary_acc")}
        rules |= {f"retrieval, {name}": ("retrieval", name) for name in ("text", "image", "group")} | {f"retrieval by skill, {name}": ("retrieval_skill_based", name) for name in ("text", "image", "group")}
        for rule, (part, name) in rules.items():
            official, ours = r["overall"][part], [tables[rule][skill] for skill in r["per_skill"]]
            same[rule] = all(close(value, scores[name]) for value, scores in zip(ours, r["per_skill"].values())) and close(tables[rule]["overall"], official[f"mean_{name}"])
            same[f"{rule}, spread"] = close(float(np.std(ours)), official[f"std_{name}"]) and len(ours) == official["evaluated_splits"]
        return same
    def ap(r):
        labels = np.array([label.lower() == "yes" for label in r["labels"]])
        precision, area = camera._precision_and_area(np.array(r["scores"]), labels, np.ones((1, len(labels))))
        return {"average precision": close(precision[0], r["average_precision"]), "ROC area": close(area[0], r["roc_auc"])}
    return by_kind(dict(text=text, pair_text=pair_text, pair_scores=pair_scores, report=report, ap=ap))(rows, aggregate, path)


CHECKS = {check.__name__: check for check in (sat, vsibench, mindcube, viewspatial, mmsi, enact, camerabench)}


def main(name, path):
    golden = json.loads(Path(path).read_text())
    rows, aggregate = (golden["rows"], golden.get("aggregate", {})) if isinstance(golden, dict) else (golden, {})
    wrong = CHECKS[name](rows, aggregate, Path(path))
    print(json.dumps({"rows": len(rows), "different": wrong}))
    return int(any(wrong.values()))


if __name__ == "__main__": sys.exit(main(*sys.argv[1:]))
