# Needs git, make and Python 3.11 (or 3.12); everything else is fetched, pinned by hash.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# What has a line of help is a command, and no file.
.PHONY: $(shell sed -n 's/^\([a-z0-9-]*\):.*\#\# .*/\1/p' $(firstword $(MAKEFILE_LIST)))

# The first Python that will do. It is asked, because a name on PATH may be a shim of a version that is not there.
WILL_DO := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))
PYTHON := $(shell for python in python3.11 python3.12 python3 python; do \
	$$python -c '$(WILL_DO)' 2>/dev/null \
	&& command -v $$python && break; done)
CACHE := $(or $(filter /%,$(XDG_CACHE_HOME)),$(HOME)/.cache)/vcot
PY := .venv/bin/python

# --- the environment: remade when its requirements change, left alone when they do not ---

VENV := .venv/made-$(shell git hash-object requirements/dev.txt)
UV := $(or $(shell command -v uv),$(CACHE)/uv-$(shell git hash-object requirements/uv.txt)/bin/uv)

$(VENV): | $(UV)
	@test -n '$(PYTHON)' || { echo "vcot needs Python 3.11 or 3.12; found: $$(python3 --version 2>&1). \
	Install python3.11, or say where it is: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PY) -c '$(WILL_DO)' 2>/dev/null || '$(UV)' venv --quiet --clear --python '$(PYTHON)' .venv
	@echo 'Filling .venv from requirements/dev.txt (some gigabytes when nothing is cached)'
	@'$(UV)' pip sync --quiet --require-hashes --python $(PY) requirements/dev.txt
	@rm -f .venv/made-* && touch $@

$(CACHE)/uv-%/bin/uv:
	@test -n '$(PYTHON)' || { echo 'vcot needs Python 3.11 or 3.12'; exit 1; }
	@echo 'Getting uv into $(CACHE)'
	@rm -rf '$(CACHE)/uv-$*' && mkdir -p '$(CACHE)'
	@'$(PYTHON)' -m venv '$(CACHE)/uv-$*' || \
	{ echo 'This Python has no venv module: install python3-venv (Debian, Ubuntu) or uv'; exit 1; }
	@'$(CACHE)/uv-$*/bin/python' -m pip install --quiet --only-binary :all: --require-hashes -r requirements/uv.txt

# In an environment of its own, because it wants an old boto3.
CHECKOV := $(CACHE)/checkov-$(shell git hash-object requirements/checkov.txt)/bin/checkov

$(CACHE)/checkov-%/bin/checkov: | $(UV)
	@echo 'Getting checkov into $(CACHE)'
	@rm -rf '$(CACHE)/checkov-$*' '$(CACHE)/checkov-$*.part'
	@'$(UV)' venv --quiet --relocatable --python '$(PYTHON)' '$(CACHE)/checkov-$*.part'
	@'$(UV)' pip sync --quiet --require-hashes --python '$(CACHE)/checkov-$*.part/bin/python' requirements/checkov.txt
	@mv '$(CACHE)/checkov-$*.part' '$(CACHE)/checkov-$*'

FIND_MINIO := MINIO="$${MINIO:-$$('$(PYTHON)' -m tools.s3server --print-binary)}"

NEEDED := $(VENV) $(if $(filter-out tests/k8s%,$(TESTS)),,$(CHECKOV))

# --- variables of several targets ---

REGISTRY ?= localhost/
TAG ?= dev
IMAGES ?= data gpu
ENGINE ?= $(shell for engine in docker podman buildah; do $$engine info >/dev/null 2>&1 && echo $$engine && break; done)

OVERLAY ?= gpu
URI ?= s3://vcot/runs/_probe

RUN_ID ?= first
EXAMPLE ?= examples/blood-cells
# An example may bring a base of its own.
BASE ?= $(if $(wildcard $(EXAMPLE)/config.json),$(EXAMPLE),examples/rehearsal)

# SERVICE=minio: storage inside the cluster of kubectl, by way of its Service, with the keys of the Secret there.
THROUGH = $(if $(SERVICE),--service '$(SERVICE)') $(if $(NAMESPACE),--namespace '$(NAMESPACE)')

##@ Train a model on this computer and try it

local-train: $(VENV) settings-are-known ## convert, distill, tokenize, train and evaluate on this computer, with MinIO
	@$(PY) -m jobs.pipeline --where local --run-id '$(RUN_ID)' --example '$(EXAMPLE)' --base '$(BASE)'

test: $(NEEDED) ## all tests but cluster-test; TESTS=tests/storage for some. Builds MinIO before the first (about two minutes, once)
	$(FIND_MINIO) CHECKOV='$(CHECKOV)' $(PY) -m pytest -n 2 $(or $(TESTS),--ignore=tests/cluster)

demo: $(VENV) ## a page on which a model is asked about images: the last local run's, or SUBJECT=https://vllm:8000/v1\#vcot; PORT=7860
	@$(PY) -m jobs.demo $(if $(SUBJECT),--subject '$(SUBJECT)') $(if $(PORT),--port '$(PORT)')

# Of an overlay the base is where its settings say, unless BASE names a folder here; with ROWS its config.json is enough.
plan: $(VENV) settings-are-known ## what a run will take before it starts: make plan [EXAMPLE= BASE=], or OVERLAY=k8s/overlays/gpu; GPU= GPUS= PRICE= ROWS= CALIBRATE=1
	@$(PY) -m jobs.pipeline --plan --run-id '$(RUN_ID)' \
		$(if $(filter command,$(firstword $(origin OVERLAY))),--overlay '$(OVERLAY)' $(if $(filter command,$(firstword $(origin BASE))),--base '$(BASE)'),--example '$(EXAMPLE)' --base '$(BASE)') \
		$(if $(GPU),--gpu '$(GPU)') $(if $(GPUS),--gpus '$(GPUS)') $(if $(PRICE),--gpu-hour-usd '$(PRICE)') \
		$(if $(ROWS),--rows '$(ROWS)') $(if $(CALIBRATE),--calibrate) $(if $(JSON),--plan-json '$(JSON)')

serve: $(VENV) ## one model behind OpenAI's interface, on this computer: the last local run's, or SUBJECT=train stage or folder; PORT=8000
	@$(PY) -m jobs.serve $(if $(SUBJECT),--subject '$(SUBJECT)') $(if $(PORT),--port '$(PORT)')

# Of a run on this computer, or with RUN_URI of any run in the storage of the AWS_* variables.
tensorboard: $(VENV) ## the curves of a training in TensorBoard: RUN_ID=first of a local run, or RUN_URI=s3://bucket/runs/name; PORT=6006
	@$(if $(RUN_URI)$(SERVICE),,$(PY) -m tools.s3server --serve .local/s3 -- )$(PY) -m tools.tensorboard \
		--run-uri '$(or $(RUN_URI),s3://vcot/runs/$(RUN_ID))' $(if $(PORT),--port '$(PORT)') $(THROUGH)

local-compare: $(VENV) ## evaluations of runs on this computer side by side, in .local/comparison: RUNS='first second'
	@test -n '$(RUNS)' || { echo "Which? make local-compare RUNS='first second'"; exit 64; }
	@$(PY) -m tools.s3server --serve .local/s3 -- $(PY) -m jobs.evaluate --run-uri .local --compare $(RUNS:%=s3://vcot/runs/%)

reason-demo: $(VENV) ## one small base tuned three ways, direct, in words, with boxes: answers right by steps, and a page; BASE=folder WORLDS=following,permuting
	$(PY) -m benchmarks.reason $(if $(filter command,$(firstword $(origin BASE))),--base '$(BASE)') --out '$(or $(OUT),build/reason)' $(if $(WORLDS),--worlds '$(WORLDS)') $(if $(MODELS),--models '$(MODELS)')

s3: $(VENV) ## the S3 server of local-train alone, until Ctrl-C, to look at what runs have stored
	@$(PY) -m tools.s3server --serve .local/s3

minio: ## where MinIO is; builds it first if need be (about two minutes, once)
	@'$(PYTHON)' -m tools.s3server --print-binary

local-clean: ## forget all runs on this computer and what they stored
	rm -rf .local

help: ## this list
	@awk -F ':.*## ' '/^\#\#@ / { printf "\n%s\n", substr($$0, 5) } /^[a-z0-9-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  Settings of a stage go on the same line, as make local-train RUN_ID=other TRAIN_NUM_TRAIN_EPOCHS=3. So do"
	@echo "    EXAMPLE=folder   data to tune on, with its settings/<stage>.env ($(EXAMPLE))"
	@echo "    BASE=folder      the model to tune ($(BASE))"
	@echo "    MINIO=program    the S3 server; without it the one on PATH, or one that is built"

##@ Use your own storage and cluster

s3-doctor: $(VENV) ## does the storage of the AWS_* variables keep what vcot builds on? URI=s3://vcot/runs/_probe
	@$(PY) -m jobs.probe --uri '$(URI)'

push-base: $(VENV) ## put a downloaded base into the bucket: BASE=<folder> TO=s3://vcot/models/<name>; goes on where cut off
	@test '$(origin BASE)' != file || { echo 'Which? make push-base BASE=<folder of a downloaded model> [TO=s3://…]'; exit 64; }
	@$(PY) -m tools.push --base '$(BASE)' $(if $(TO),--to '$(TO)') $(THROUGH)

push-example: $(VENV) ## put an example and its base into the bucket: EXAMPLE= BASE= TO=s3://vcot/examples; SERVICE=minio in a cluster
	@$(PY) -m tools.push --example '$(EXAMPLE)' --base '$(BASE)' $(if $(TO),--to '$(TO)') $(THROUGH)

pages: $(VENV) ## bring the reports of a run out of the bucket into .local/runs: RUN_ID=smoke; SERVICE=minio in a cluster
	@$(PY) -m tools.storage --run-id '$(RUN_ID)' $(if $(RUNS_URI),--runs-uri '$(RUNS_URI)') \
		$(if $(LOCAL),--local-folder '$(LOCAL)') $(THROUGH)

images: ## build vcot-data and vcot-gpu with docker, podman or buildah; REGISTRY=registry/path/ TAG=v1 BASE_IMAGE= IMAGES=data
	@test -n '$(ENGINE)' || { echo 'Images are built with docker, podman or buildah, and none of them answers `info`:' \
	'install one, start its service, or name it: make images ENGINE="sudo docker"'; exit 1; }
	@for image in $(IMAGES); do \
		DOCKER_BUILDKIT=1 BUILDAH_LAYERS=true $(ENGINE) build $(BUILD_FLAGS) $(BASE_IMAGE:%=--build-arg BASE=%) \
		--build-arg VERSION='$(TAG)' --build-arg REVISION='$(shell git rev-parse HEAD 2>/dev/null)' \
		--target $$image --tag '$(REGISTRY)'vcot-$$image:'$(TAG)' . || exit; done

k8s-doctor: $(VENV) ## what a cluster lacks for an overlay, and the fix; OVERLAY=gpu or RENDERED=file EMPTY_POOLS=1 NO_TRIALS=1
	@$(PY) -m tools.doctor --overlay '$(OVERLAY)' $(if $(EMPTY_POOLS),--empty-pools) \
		$(if $(RENDERED),--rendered '$(RENDERED)') $(if $(NO_TRIALS),--no-trials) \
		$(if $(TIMEOUT),--timeout '$(TIMEOUT)')

k8s-run: $(VENV) ## start an overlay's chain under a fresh RUN_ID; OVERLAY=gpu WAIT=900 (seconds to begin); DRY_RUN=1 only renders
	@$(PY) -m tools.submit --overlay '$(OVERLAY)' $(if $(DRY_RUN),--dry-run) $(if $(WAIT),--wait '$(WAIT)') \
		$(if $(filter command,$(firstword $(origin RUN_ID))),--run-id '$(RUN_ID)')

##@ Develop vcot

venv: $(VENV) ## the Python environment in .venv; the other targets make it when they need it

lint: $(VENV) ## ruff, mypy (strict), import-linter
	.venv/bin/ruff check .
	.venv/bin/ruff format --check --quiet .
	.venv/bin/mypy
	.venv/bin/lint-imports

requirements: | $(UV) ## pin the requirements again, with hashes, after a change of pyproject.toml
	'$(UV)' pip compile --quiet pyproject.toml --extra dev --python-version 3.11 --generate-hashes --no-header \
		--no-emit-index-url --output-file requirements/dev.txt
	@# What the images hold is what was tested: the same versions, without what only developers need.
	for image in data:data gpu:train; do \
		'$(UV)' pip compile --quiet pyproject.toml --extra "$${image#*:}" --constraint requirements/dev.txt \
		--python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url \
		--output-file "requirements/$${image%:*}.txt" || exit; done
	echo uv | '$(UV)' pip compile --quiet - --generate-hashes --no-header --no-annotate \
		--no-emit-index-url --output-file requirements/uv.txt
	echo checkov | '$(UV)' pip compile --quiet - --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--no-emit-index-url --output-file requirements/checkov.txt

schemas: $(VENV) ## write schemas/*.json again, after a change of a record
	$(PY) -m tools.schemas

golden: $(VENV) ## render the manifests into tests/k8s/golden again, after a change of k8s/
	$(PY) -m tests.k8s.golden

rehearsal-base: $(VENV) ## train the small base model of the rehearsal from nothing
	$(PY) examples/rehearsal/make_base.py --out build/rehearsal

reasoning-base: $(VENV) ## train the small base model that reads boards from nothing: the rehearsal's first, then on from it
	$(PY) examples/rehearsal/make_base.py --out build/rehearsal
	$(PY) examples/reasoning/make_base.py --out build/reasoning --base build/rehearsal/snapshot

node-up: $(VENV) ## a real Kubernetes node on this machine (root), in namespaces of its own, with MinIO and a teacher
	@$(FIND_MINIO) $(PY) -m tests.cluster.node up $(if $(NODE_IMAGES),--images $(NODE_IMAGES))

node-down: $(VENV) ## end that node and put everything back
	@$(PY) -m tests.cluster.node down

LEFTOVERS = tests/cluster/test_leftovers.py
ON_CLUSTER = $(PY) -m pytest $(or $(TESTS),tests/cluster --ignore=$(LEFTOVERS)) --durations=10

cluster-test: $(VENV) ## the chain in real containers on that node; CONTEXT=kind-kind for a cluster of yours; TESTS=
ifdef CONTEXT
	CLUSTER_CONTEXT='$(CONTEXT)' $(ON_CLUSTER) -n 0
else
	$(if $(TESTS),,NODE_INSTALL=1 $(PY) -m pytest -n 0 $(LEFTOVERS))
	@# Three at once: a test mostly waits for the cluster.
	$(FIND_MINIO) $(PY) -m tests.cluster.node with --images data gpu -- $(ON_CLUSTER) -n 3 --maxschedchunk=1
endif

CI_PART := $(addprefix tests/cluster/test_,chain.py admission.py containers.py)

cluster-test-ci: $(VENV) ## of cluster-test what CI runs: the chain, admission, exit codes, one eviction
	@$(MAKE) --no-print-directory cluster-test TESTS='$(CI_PART)'

##@ Measure

bench-kill: $(VENV) ## kill stages at random moments and compare what comes out; KILLS=60 SEED=1
	$(FIND_MINIO) $(PY) -m tests.chain.kill --kills $(or $(KILLS),60) --seed $(or $(SEED),1)

bench-ranks: $(VENV) ## one training by 1, 2 and 4 ranks, DDP and FSDP2, killed and stopped: the same losses; STEPS=20 KILLS=2
	$(PY) -m tests.chain.ranks --steps $(or $(STEPS),20) --kills $(or $(KILLS),2) --seed $(or $(SEED),1) --ranks $(or $(RANKS),2 4)

bench-convert: $(VENV) ## rows a second and memory of convert on VisCoT's rows beside the checkout; ROWS=400000 PROCESSES=2
	$(PY) -m benchmarks.convert --rows $(or $(ROWS),400000) --processes $(or $(PROCESSES),2)

comma := ,

bench-distill: $(VENV) ## requests a second and CPU of distill, beside the bare client; CONCURRENCY=5,10,20,50 WAIT=0.2
	$(PY) -m benchmarks.distill --concurrency '$(or $(CONCURRENCY),5$(comma)10$(comma)20$(comma)50)' --wait $(or $(WAIT),0.2)

bench-tokenize: $(VENV) ## tokenize beside the bare tokenizer and image processor; ROWS=60000 IMAGES_READ=600 ROUNDS=5 PROCESSES= TOKENIZER=examples/rehearsal
	$(PY) -m benchmarks.tokenize --rows $(or $(ROWS),60000) --images $(or $(IMAGES_READ),600) --rounds $(or $(ROUNDS),5) \
		$(if $(PROCESSES),--processes $(PROCESSES)) $(if $(TOKENIZER),--base '$(TOKENIZER)')

bench-storm: $(VENV) ## distill with faults, an empty budget and kill -9, against a calm run; ROWS=5000 CONCURRENCY=10,50,200
	$(PY) -m tests.distill.storm --rows $(or $(ROWS),5000) --concurrency '$(or $(CONCURRENCY),10$(comma)50$(comma)200)'

bench-evaluate: $(VENV) ## replies a second of evaluate beside a loop of one row, and of an endpoint beside the bare client; ROWS=192 ROUNDS=5
	$(PY) -m benchmarks.evaluate --rows $(or $(ROWS),192) --rounds $(or $(ROUNDS),5)
	$(PY) -m benchmarks.endpoint --rounds $(or $(ROUNDS),5) --wait $(or $(WAIT),0.5)

bench-serve: $(VENV) ## first token, tokens a second and stopping of make serve, for one client and several; CLIENTS=1,8 ROUNDS=5
	$(PY) -m benchmarks.serve --clients '$(or $(CLIENTS),1$(comma)8)' --rounds $(or $(ROUNDS),5) $(if $(BASE),--base '$(BASE)')

bench-train: $(VENV) ## rows a second of training on this CPU, beside TRL's trainer; BASE=folder ROUNDS=3 ROWS=96 SETS='scenes cells long'
	$(PY) -m benchmarks.train --base '$(BASE)' --rounds $(or $(ROUNDS),3) --rows $(or $(ROWS),96) $(if $(SETS),--sets $(SETS))

bench-grpo: $(VENV) ## learning from rewards beside TRL's trainer: the same losses and gradients, replies a second; BASE=folder ROUNDS=2 STEPS=6 SETS='scenes cells'
	$(PY) -m benchmarks.grpo --base '$(or $(BASE),examples/rehearsal)' --rounds $(or $(ROUNDS),2) --steps $(or $(STEPS),6) $(if $(SETS),--sets $(SETS))

bench-gfn: $(VENV) ## a step of a GFlowNet of rationales beside the published way: seconds, memory, the same loss; QUESTIONS=8 TOKENS=256 STRIDES=8,16
	$(PY) -m benchmarks.gfn --base '$(or $(BASE),examples/rehearsal)' --questions $(or $(QUESTIONS),8) --tokens $(or $(TOKENS),256) \
		--strides '$(or $(STRIDES),8$(comma)16)'

bench-routes: $(VENV) ## how many of a question's known ways to the answer are found after imitation, GRPO and a GFlowNet; OUT=folder STEPS=120 SCENES=700
	$(PY) -m benchmarks.routes --out '$(or $(OUT),build/routes)' --steps $(or $(STEPS),120) --scenes $(or $(SCENES),700)

bench-gpu: $(VENV) ## MFU, memory, waiting and stalls of training a 7B on this GPU, beside TRL; without one at toy size (TOY=1); OUT=file
	$(PY) -m benchmarks.gpu --out '$(or $(OUT),build/gpu.json)' $(if $(TOY),--toy)

bench-probe: $(VENV) ## does evaluate --probe tell a model that uses its boxes from one that does not? Trains both (CPU); OUT=folder
	$(PY) -m benchmarks.probe --out '$(or $(OUT),build/probe)'

bench-plan: $(VENV) ## memory of trainings as planned and as measured here (CPU or GPU), a process each; BASE=folder OUT=file
	$(PY) -m benchmarks.plan $(if $(filter command,$(firstword $(origin BASE))),--base '$(BASE)') --out '$(or $(OUT),build/plan.json)'

# TRAIN_NUM_TRAIN_EPOCHS=3 on make's command line is VCOT_TRAIN_NUM_TRAIN_EPOCHS=3 for the stages, and a typing error is told.
STAGES := CONVERT_% DISTILL_% TOKENIZE_% TRAIN_% EVALUATE_% PIPELINE_%
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
$(foreach name,$(filter $(STAGES),$(GIVEN)),$(eval export VCOT_$(name) := $$($(name))))
UNKNOWN := $(filter-out $(STAGES) VCOT_% AWS_% RUN_ID EXAMPLE BASE OVERLAY GPU GPUS PRICE ROWS CALIBRATE JSON PYTHON PY MINIO TESTS KILLS SEED -% MAKE%,$(GIVEN))

.PHONY: settings-are-known
settings-are-known:
	@test -z '$(UNKNOWN)' || { echo 'Unknown: $(UNKNOWN). Settings are RUN_ID, EXAMPLE, BASE and <STAGE>_<NAME>, with a stage of' \
	'$(subst _%,,$(STAGES)); see $(PY) -m jobs.train --help'; exit 64; }
