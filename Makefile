# `make demo` and `make test` do all their own set-up, in .venv.
PYTHON ?= python3
PYTHON_OLDEST ?= python3.11
PYTHON_NEWEST ?= python3.13
BIN := .venv/bin

.PHONY: demo test fuzz kills test-oldest test-newest notebooks lab lint map gpu clean

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

demo: .venv/ready  ## train the tiny model on synthetic shapes, evaluate, draw, verify
	$(BIN)/maskrcnn demo --output runs/demo

test: .venv/ready  ## everything that needs no GPU; where there is one, it is hidden
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

FUZZ_INPUTS ?= 10000
fuzz: .venv/ready  ## damaged files of every kind that is read: what is not refused in a line fails
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 PYTHONPATH=tests \
		$(BIN)/python -m fuzz --inputs $(FUZZ_INPUTS)

KILLS ?= 100
kills: .venv/ready  ## trainings, killed at random moments, that must go on bit for bit
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 PYTHONPATH=.:tests \
		$(BIN)/python -m support.kills $(KILLS)

notebooks: .venv/ready  ## run the notebooks, offline, and write the .ipynb files
	$(BIN)/python notebooks/playground/build.py
	$(BIN)/python notebooks/build.py

lab: .venv/ready  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

# The suite with the oldest and the newest supported versions, in .venv-oldest and .venv-newest.
test-oldest: PYTHON = $(PYTHON_OLDEST)
test-newest: PYTHON = $(PYTHON_NEWEST)
test-oldest test-newest: test-%: .venv-%/ready
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 .venv-$*/bin/python -m pytest -n auto

.venv-oldest/ready .venv-newest/ready: .venv-%/ready: pyproject.toml tests/constraints/%.txt
	$(PYTHON) -m venv --clear .venv-$*
	.venv-$*/bin/python -m pip install --quiet --constraint tests/constraints/$*.txt \
		--editable ".[test]"
	touch $@

lint: .venv/ready  ## rules, format and annotations
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

map:  ## write docs/papers.md and README's overview of it: from the papers to the code
	$(PYTHON) docs/papers.py

# In the Python at hand, which needs torch, triton, pytest, hypothesis and pillow. With pytest-xdist
# the tests run in eight processes, which would otherwise take more threads than there are cores.
GPU_TESTS = $(shell grep -lE "pytest.mark.gpu|def test_.*\bdevice\b" tests/test_*.py)
GPU_JOBS = $(shell $(PYTHON) -c "import xdist" 2>/dev/null && echo "-n 8")
GPU_BUDGET = 210
gpu:  ## every GPU test, then the benchmark: within eight minutes on an H200
	OMP_NUM_THREADS=2 REQUIRE_GPU=1 $(PYTHON) -m pytest -m gpu $(GPU_JOBS) $(GPU_TESTS)
	$(PYTHON) -m accelerated.experiments.benchmark --output benchmarks/results \
		--seconds 0.3 --budget $(GPU_BUDGET)

clean:
	rm -rf .venv .venv-oldest .venv-newest build dist *.egg-info runs
