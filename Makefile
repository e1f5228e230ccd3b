# What a person types. The steps themselves are in scripts/, so that each can be run and read alone.
# Variables: PROMPT="…" (answer it and exit), MODEL=file.gguf (instead of the default model), PORT=n (of the server),
# JOBS=n, FUZZ_SECONDS=n, SOAK_SECONDS=n.

MODEL ?=
FUZZ_SECONDS ?= 300
SOAK_SECONDS ?= 3600
export MODEL PROMPT PORT JOBS FUZZ_SECONDS

.DEFAULT_GOAL := help
.PHONY: help run chat build cuda test test-gpu test-clients soak fuzz format lint clean packages packages-test model data

help:
	@echo 'make run      install what is needed, fetch the default model, build, and serve it: a page'
	@echo '              with a chat on http://127.0.0.1:8080, and OpenAI'"'"'s API'
	@echo '              PROMPT="…" make run answers and exits; MODEL=file.gguf make run uses that model'
	@echo 'make chat     the same, but chat on the terminal'
	@echo 'make build    build/release/tinyserve alone'
	@echo 'make cuda     build/cuda/tinyserve, with kernels for NVIDIA GPUs; fetches the compiler where there is none'
	@echo 'make test     every test, and the fast ones again under AddressSanitizer and UBSan'
	@echo 'make test-gpu the CUDA kernels on a GPU against the plain loops; skipped where there is none'
	@echo 'make test-clients  the server with what users have: openai, LangChain, lm-eval, guidellm, a browser'
	@echo 'make soak     the server under clients of every kind for SOAK_SECONDS (now $(SOAK_SECONDS)) seconds'
	@echo 'make fuzz     fuzz each parser of outside bytes for FUZZ_SECONDS (now $(FUZZ_SECONDS)) seconds'
	@echo 'make format   clang-format every C++ file'
	@echo 'make lint     include table, sizes, banned calls, formatting'
	@echo 'make data     fetch the book that published figures are measured on into data/'
	@echo 'make clean    delete build/ (models/ and data/ stay)'

run: build model
	@scripts/run.sh

chat: build model
	@scripts/run.sh chat

build: packages
	@scripts/build.sh release tinyserve

cuda: packages
	@scripts/build.sh cuda tinyserve kernels_device_test

test-gpu: packages-test
	@scripts/test-gpu.sh

test: packages-test model
	@scripts/test.sh

test-clients: build model
	@scripts/install-packages.sh clients
	@scripts/test_clients.sh

soak: build model
	@python3 tools/serve_soak.py build/release/tinyserve tests/golden/tiny/llama.gguf --seconds $(SOAK_SECONDS) --clients 32

fuzz: packages
	@scripts/install-packages.sh fuzz
	@scripts/fuzz.sh

format: packages-test
	@scripts/format.sh

lint: packages-test
	@python3 tests/lint/lint.py

clean:
	rm -rf build

packages:
	@scripts/install-packages.sh build rust

packages-test:
	@scripts/install-packages.sh build rust test

# Python and pip come with the packages, so those go first.
model: | packages
	@if [ -z "$$MODEL" ]; then python3 scripts/fetch_model.py; fi

data:
	@scripts/fetch_data.sh
