# The whole path, from a bare machine (Python 3.11, gcc, make) to a served bundle.
# Every step is idempotent; `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ADDRESS ?= 127.0.0.1:50051
SHARED ?= ../shared/data
DATA ?= $(addprefix $(SHARED)/,mmlu_pro_cot helm_mmlu llmrouter9 zeroeval)
PLAN ?= training/plans/shipped.json
CHECKPOINT := artifacts/checkpoint/manifest.json
BUNDLE := artifacts/bundle/manifest.json

.DEFAULT_GOAL := help
.PHONY: help install model export serve demo test lint audit train evaluate bench proto lock image clean distclean

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.serve ## virtual environment, locked dependencies (no torch), kernel

model: $(CHECKPOINT) ## base weights, merged with the shipped adapter

export: $(CHECKPOINT) $(VENV)/.trt ## bundle in every format this machine can build, TensorRT plans too
	$(BIN)/python -m export --checkpoint artifacts/checkpoint --out artifacts/bundle

serve: $(BUNDLE) ## build what is missing, then serve on ADDRESS (127.0.0.1:50051)
	@$(BIN)/modelsat serve --address $(ADDRESS) $(SERVE)

demo: $(BUNDLE) ## route, register a candidate under load, see it chosen, remove it
	@$(BIN)/python -m bench.demo

test: $(BUNDLE) $(VENV)/.dev .venv-deploy/.done ## the whole test suite
	$(BIN)/python -m pytest

lint: $(VENV)/.dev ## style, types, import rules, proto drift
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd proto && ../$(BIN)/buf lint
	$(BIN)/python -m engine.pb.generate --check

audit: $(VENV)/.dev ## known vulnerabilities of the packages that serving installs
	$(BIN)/python .ci/audit requirements/serve.txt

train: $(VENV)/.dev ## train PLAN on DATA; resumes where it stopped
	$(BIN)/python -m training.train --plan $(PLAN) --data $(DATA) --out artifacts/train $(TRAIN)

evaluate: $(BUNDLE) $(VENV)/.dev ## report and plots: held-out rows of DATA through the bundle
	$(BIN)/python -m training.evaluate --bundle artifacts/bundle --data $(DATA) --out artifacts/evaluation

bench: $(BUNDLE) $(VENV)/.dev ## load on the server, then every latency target side by side
	$(BIN)/python -m bench.latency $(BENCH)
	$(BIN)/python -m bench.compare $(BENCH)

proto: $(VENV)/.dev ## generate engine/pb from proto/
	$(BIN)/python -m engine.pb.generate

lock: $(VENV)/.dev ## resolve setup.py's ranges into requirements/*.txt anew
	$(BIN)/python requirements/lock.py

image: ## build the CPU image without Docker and run it read-only, as root (buildah, debootstrap)
	deploy/docker/check cpu

clean: ## remove checkpoint and bundle, to be built anew from the base weights
	rm -rf artifacts/checkpoint artifacts/bundle

distclean: clean ## remove the environment and the kernel too; keeps base weights and the store
	rm -rf $(VENV) .venv-deploy build *.egg-info cpp_ext/_score*.so

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.serve: $(VENV)/bin/python requirements/export.txt setup.py cpp_ext/score_cpu.cc cpp_ext/score.h
	@sh .ci/compiler
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements/export.txt
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.serve requirements/dev.txt
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements/dev.txt
	@touch $@

.venv-deploy/.done: requirements/deploy.txt .ci/prometheus
	$(PYTHON) -m venv .venv-deploy
	.venv-deploy/bin/pip install --disable-pip-version-check -r requirements/deploy.txt
	sh .ci/prometheus .venv-deploy/bin
	@touch $@

$(CHECKPOINT): $(VENV)/.serve $(wildcard pretrained/* training/*.py engine/contract/*.py)
	$(BIN)/python -m training.base
	$(BIN)/python -m training.merge --pretrained pretrained --out artifacts/checkpoint

$(VENV)/.trt: $(VENV)/.serve requirements/trt.txt
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements/trt.txt
	@touch $@

$(BUNDLE): $(CHECKPOINT) $(wildcard export/*.py engine/registry/*.py)
	$(BIN)/python -m export --checkpoint artifacts/checkpoint --out artifacts/bundle --formats onnx,int8
