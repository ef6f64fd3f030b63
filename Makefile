# The first use of any target makes .venv from requirements.lock. `profile` in params.yaml says how large a run is.
.DEFAULT_GOAL := help
.PHONY: help repro ablation comparison quality base teacher test fuzz sync notebooks docs lab
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export OMP_NUM_THREADS ?= 2
# glibc gives large arrays back to the kernel and asks for them again at each step of a training, which costs more than the arithmetic; here it keeps them
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592:glibc.malloc.top_pad=268435456
NOTEBOOK = python -m papermill -k python3 --log-output --no-progress-bar -p profile mini

help:      ## this list
	@grep -E '^[a-z]+: .*##' Makefile | sed 's/:[^#]*##/ -/'

repro: .venv/installed  ## the main arm, from scenes to its report
	dvc repro report@bidirectional label_audit

ablation: .venv/installed  ## every arm, and the table that compares them
	dvc repro ablation

comparison: .venv/installed  ## the main arm alone and against a world model at test time, on all benchmarks at hand
	dvc repro comparison@bidirectional

quality: .venv/installed  ## the teacher's views against the truth, and the student that reprojection taught instead
	dvc repro teacher_quality evaluate@reprojection_teacher

base: .venv/installed  ## train the shipped base student again (three hours on two cores)
	mkdir -p data/mini/notebooks
	$(NOTEBOOK) -p out data/base nbs/pipeline/base.ipynb data/mini/notebooks/base.ipynb

teacher: .venv/installed  ## train the shipped generative teacher again (forty minutes on two cores)
	mkdir -p data/mini/notebooks
	$(NOTEBOOK) -p out data/teacher nbs/pipeline/teacher.ipynb data/mini/notebooks/teacher.ipynb

test: .venv/installed  ## all tests, then every notebook of the library
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 nbdev_test --n_workers 2

fuzz: .venv/installed  ## the repetitions that `make test` leaves out
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 python -m pytest -n 2 -m fuzz

sync: .venv/installed  ## notebooks -> library, dvc.yaml, README and RESULTS
	nbdev_clean
	nbdev_export
	python -c "from world2vlm.core.stages import sync_dependencies; sync_dependencies('dvc.yaml')"
	jupyter nbconvert --log-level WARN --execute --to markdown --no-input --output-dir . --output README nbs/index.ipynb
	jupyter nbconvert --log-level WARN --execute --to markdown --no-input --output-dir . --output RESULTS nbs/95_results.ipynb
	git diff --stat

notebooks: .venv/installed  ## execute every notebook of the library in place, without progress bars or warnings in the outputs
	cd nbs && HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 jupyter nbconvert --config ../docs/nbconvert_config.py --log-level WARN --execute --to notebook --inplace [0-9]*.ipynb index.ipynb
	nbdev_clean

docs: .venv/installed  ## the notebooks as a static site: _docs/site/index.html
	python docs/build.py

lab: .venv/installed  ## JupyterLab on the notebooks
	jupyter lab nbs

.venv/installed: requirements.lock pyproject.toml
	python3 -m venv .venv
	.venv/bin/pip install --quiet --require-hashes -r requirements.lock
	.venv/bin/pip install --quiet --no-deps --no-build-isolation -e .
	touch $@
