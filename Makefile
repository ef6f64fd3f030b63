# The first use of any target makes .venv from requirements.lock. `profile` in params.yaml says how large a run is; targets that do not call dvc also take PROFILE=.
.DEFAULT_GOAL := help
.PHONY: help repro ablation arms comparison sweep grpo-settings benchmarks quality photos annotation-errors base teacher svc plan proofs rehearsal repeats cluster-check release push gpu-check gpu-wheels test fuzz sync notebooks docs lab lock
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export OMP_NUM_THREADS ?= 2
# glibc gives large arrays back to the kernel and asks for them again at each step of a training, which costs more than the arithmetic; here it keeps them
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592:glibc.malloc.top_pad=268435456
SIZE = $(or $(PROFILE),$(shell sed -nE 's/^profile: *([a-z]+).*/\1/p' params.yaml))
NOTEBOOK = python -m papermill -k python3 --log-output --no-progress-bar -p profile $(SIZE)

help:      ## this list
	@grep -E '^[a-z-]+: .*##' Makefile | sed 's/:[^#]*##/ -/'

repro: .venv/installed  ## the main arm, from scenes to its report
	dvc repro report@bidirectional label_audit

ablation: .venv/installed  ## every arm, the world model at test time, and the table that compares them
	dvc repro ablation

arms: .venv/installed  ## what the arms say that have been trained so far, without waiting for all of `ablation`
	python -m world2vlm.report.ablation --profile $(SIZE)

comparison: .venv/installed  ## the main arm alone and against a world model at test time, on all benchmarks at hand
	dvc repro comparison@bidirectional

sweep: .venv/installed  ## the students that a training kept on its way, each on the held-out questions: make sweep ARM=bidirectional (needs snapshot_every)
	python -m world2vlm.report.sweep $(or $(ARM),bidirectional) --profile $(SIZE)

grpo-settings: .venv/installed  ## other settings of GRPO from the SFT student of one arm, on rooms of their own: make grpo-settings ARM=bidirectional; figures in data/grpo_settings.json
	python tests/grpo_settings.py $(or $(ARM),bidirectional) $(SIZE)

benchmarks: .venv/installed  ## the students of the arms on every public benchmark whose folder is there
	dvc repro benchmarks

quality: .venv/installed  ## the teacher's views against the truth, and the student of warped views with smoothly filled holes
	dvc repro teacher_quality evaluate@smoothed_teacher

photos: .venv/installed  ## labels of plain photos by annotators with known errors, held against the truth, and what annotators cost; figures in data/annotate.json, data/annotator_costs.json
	python tests/annotated_rooms.py
	python tests/annotator_costs.py

annotation-errors: .venv/installed  ## what wrong masks, depth and cameras of photos do to labels: data/annotation_errors.json (some minutes on one core)
	python -c "from world2vlm.core.runs import write_json; from world2vlm.evaluation.annotation_errors import AnnotationErrors; write_json('data/annotation_errors.json', AnnotationErrors().measure())"

base: .venv/installed  ## train the shipped base student again (three hours on two cores; PROFILE=gpu on one GPU)
	mkdir -p data/$(SIZE)/notebooks
	$(NOTEBOOK) -p out data/base nbs/pipeline/base.ipynb data/$(SIZE)/notebooks/base.ipynb

teacher: .venv/installed  ## train a small generative teacher with the settings of params.yaml in place of the shipped one, whose own are in data/teacher/made.json (hours on two cores, a second call resumes; PROFILE=gpu on one GPU)
	mkdir -p data/$(SIZE)/notebooks
	$(NOTEBOOK) -p out data/teacher nbs/pipeline/teacher.ipynb data/$(SIZE)/notebooks/teacher.ipynb

GPUS ?= 8
MEMORY ?= 80
plan: .venv/installed  ## memory on each GPU, hours and disk of a run before it starts: make plan PROFILE=paper GPUS=8 MEMORY=80
	python -m world2vlm.report.plan profile=$(or $(PROFILE),paper) gpus=$(GPUS) memory_gb=$(MEMORY)

gpu-check:  ## one GPU at full size in at most nine minutes: parity, speed and memory of teacher and student; figures in tests/metrics/gpu_check.json
	python tests/gpu_check.py $(CHECK)

# What a machine with a GPU often lacks; `gpu-check` installs from build/wheels what is not there.
WHEELS = diffusers trl peft accelerate datasets mujoco
gpu-wheels: .venv/installed  ## the packages for `make gpu-check` on a machine without network, as wheels in build/wheels
	for name in $(WHEELS); do grep -oE "^$$name==[^ ;]+" requirements.lock; done > build-wheels.txt
	pip download --quiet --no-deps --only-binary :all: --dest build/wheels -r build-wheels.txt && rm build-wheels.txt

svc: .venv/installed  ## the released weights of Stable Virtual Camera as data/svc, which the profile paper uses; asks for their licence
	python -m world2vlm.teachers.svc.convert $(SVC)

release: .venv/installed  ## folders for the hub in data/release: students, teacher, data sets, with cards
	python -m world2vlm.report.release --profile $(SIZE)

push: .venv/installed  ## upload data/release as private repositories of NAMESPACE, under your own login (hf auth login)
	python -m world2vlm.report.release --push $(NAMESPACE)

test: .venv/installed  ## all tests, then every notebook of the library
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 nbdev_test --n_workers 2

proofs: .venv/installed  ## slow proofs: trainings that share a student, trainings and stages that are killed, large adapters that are killed, all parts of the GPU check, slow cells of notebooks
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile -m proof
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 nbdev_test --n_workers 2 --flags slow --skip_file_re '^([_.]|94)'  # which measures speed

rehearsal: .venv/installed  ## the paper's run with toys in place of its models, in a copy of the repository: does each setting work?
	HF_HUB_OFFLINE=1 python -m pytest -s -m rehearsal tests/test_rehearsal.py

cluster-check: .venv/installed  ## Ray on this machine (needs the extra `cluster`): a lost machine, equal bytes, and its rate beside that of processes; figures in tests/metrics/cluster.json
	OMP_NUM_THREADS=1 python -m pytest tests/test_cluster.py
	OMP_NUM_THREADS=1 python tests/cluster_throughput.py

RUNS ?= 3
repeats: .venv/installed  ## the main arm from nothing, RUNS times: the same bytes? minutes, and seconds of a second `dvc repro`; figures in tests/metrics/repeats.json
	HF_HUB_OFFLINE=1 python tests/repeats.py $(RUNS) $(SIZE)

SEED ?= $(shell date +%s)
fuzz: .venv/installed  ## 20,000 odd and damaged inputs, pairs of runs and a hundred kills; figures in tests/metrics
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 python -m pytest tests/test_fuzz.py --hypothesis-profile=fuzz --hypothesis-seed=$(SEED)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 python -m pytest -n 2 -m "fuzz or not fuzz" -k two_runs tests/test_writers.py
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 python -m pytest -n 2 -m fuzz tests/test_kills.py

sync: .venv/installed  ## notebooks -> library, dvc.yaml, README and RESULTS
	nbdev_clean
	nbdev_export
	python -c "from world2vlm.core.stages import sync_dependencies; sync_dependencies('dvc.yaml')"
	jupyter nbconvert --log-level WARN --execute --to markdown --no-input --output-dir . --output README nbs/index.ipynb
	jupyter nbconvert --log-level WARN --execute --to markdown --no-input --output-dir . --output RESULTS nbs/95_results.ipynb
	sed -i.bak '/./,$$!d; /^$$/N; /^\n$$/D' README.md RESULTS.md && rm README.md.bak RESULTS.md.bak  # no empty lines of hidden cells
	git diff --stat

notebooks: .venv/installed  ## execute every notebook of the library in place, without progress bars or warnings in the outputs
	cd nbs && HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 jupyter nbconvert --config ../docs/nbconvert_config.py --log-level WARN --execute --to notebook --inplace [0-9]*.ipynb index.ipynb
	nbdev_clean

docs: .venv/installed  ## the notebooks as a static site: _docs/site/index.html
	python docs/build.py

lab: .venv/installed  ## JupyterLab on the notebooks
	jupyter lab nbs

lock:      ## the two lists of pinned packages, from pyproject.toml (needs uv)
	uv pip compile $(RESOLVE) -o requirements.lock
	cp requirements.lock requirements-cpu.lock
	uv pip compile $(RESOLVE) $$($(GPU_PACKAGES) | sed 's/^/--no-emit-package /') -o requirements-cpu.lock
RESOLVE = pyproject.toml --quiet --extra dev --universal --python-version 3.11 --generate-hashes --no-emit-index-url --custom-compile-command "make lock"
GPU_PACKAGES = { echo torch; echo torchvision; sed -nE 's/^((cuda|nvidia|triton)[a-z0-9-]*)==.*linux.*/\1/p' requirements.lock; }

# PyPI's torch for Linux brings NVIDIA's libraries. `make CPU=1 ...` takes torch from PyTorch's own list of CPU wheels instead; macOS needs neither.
TORCH_WHEELS ?= https://download.pytorch.org/whl/cpu
LOCK = requirements$(if $(CPU),-cpu).lock
.venv/installed: $(LOCK) pyproject.toml
	python3 -m venv .venv
	$(if $(CPU),.venv/bin/pip install --quiet --index-url $(TORCH_WHEELS) --extra-index-url https://pypi.org/simple $$(grep -oE '^(torch|torchvision)==[0-9.]+' requirements.lock))
	.venv/bin/pip install --quiet --require-hashes -r $(LOCK)
	.venv/bin/pip install --quiet --no-deps --no-build-isolation -e .
	touch $@
