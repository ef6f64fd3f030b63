# The first use of any target makes .venv from requirements.lock. `profile` in params.yaml says how large a run is.
.DEFAULT_GOAL := help
.PHONY: help repro ablation comparison fidelity base teacher test sync lab
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export OMP_NUM_THREADS ?= 2
# glibc gives large arrays back to the kernel and asks for them again at each step of a training, which costs more than the arithmetic; here it keeps them
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592:glibc.malloc.top_pad=268435456

help:      ## this list
	@grep -E '^[a-z]+: .*##' Makefile | sed 's/:[^#]*##/ -/'

repro: .venv/installed  ## the main arm, from scenes to report
	dvc repro report labels

ablation: .venv/installed  ## every arm, and the table that compares them
	dvc repro ablation

comparison: .venv/installed  ## the student alone and with a world model at hand, on all benchmarks that are there
	dvc repro comparison

fidelity: .venv/installed  ## the teacher: its views beside the truth, and the student that reprojection taught instead
	dvc repro fidelity evaluate@reprojection_teacher

base: .venv/installed  ## train the shipped base student again (two and a half hours on two cores)
	mkdir -p data/mini/notebooks
	python -m papermill -k python3 --log-output --no-progress-bar -p profile mini -p out data/base nbs/pipeline/base.ipynb data/mini/notebooks/base.ipynb

teacher: .venv/installed  ## train the shipped generative teacher again (forty minutes on two cores)
	mkdir -p data/mini/notebooks
	python -m papermill -k python3 --log-output --no-progress-bar -p profile mini -p out data/teacher nbs/pipeline/teacher.ipynb data/mini/notebooks/teacher.ipynb

test: .venv/installed  ## all tests, then every notebook of the library
	HF_HUB_OFFLINE=1 python -m pytest
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 nbdev_test --n_workers 2

sync: .venv/installed  ## notebooks -> library and README
	jupyter nbconvert --log-level WARN --to notebook --inplace --execute nbs/index.ipynb
	nbdev_clean
	nbdev_export
	jupyter nbconvert --log-level WARN --to markdown --no-input --output-dir . --output README nbs/index.ipynb
	git diff --stat

lab: .venv/installed  ## JupyterLab on the notebooks
	jupyter lab nbs

.venv/installed: requirements.lock pyproject.toml
	python3 -m venv .venv
	.venv/bin/pip install --quiet --require-hashes -r requirements.lock
	.venv/bin/pip install --quiet --no-deps --no-build-isolation -e .
	touch $@
