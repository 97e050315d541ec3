# `make demo` and `make test` do all their own set-up, in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint gpu clean

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

demo: .venv/ready  ## train the tiny model on synthetic shapes, evaluate, draw, and verify it against NumPy
	$(BIN)/maskrcnn demo --output runs/demo

test: .venv/ready  ## everything that needs no GPU; where there is one, it is hidden
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

gpu:  ## every GPU test, then the benchmark; in the Python at hand, which needs torch, triton, pytest, hypothesis, pillow, pycocotools
	REQUIRE_GPU=1 $(PYTHON) -m pytest -m gpu $(shell grep -lE "pytest.mark.gpu|def test_.*\bdevice\b" tests/test_*.py)
	$(PYTHON) -m accelerated.experiments.benchmark --output benchmarks/results

clean:
	rm -rf .venv build dist *.egg-info runs
