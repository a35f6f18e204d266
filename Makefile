# Names for the scripts; `make` alone lists them.
.PHONY: help fast test slow bench compare tables site wheels gpu mutants

help:
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*## /\t/'
fast: ## the tests to run while writing
	bash scripts/test.sh --fast
test: ## style, types, and all tests but slow ones
	bash scripts/test.sh
slow: ## tests of more than ten seconds
	bash scripts/test.sh --slow
bench: ## every benchmark of times, into bench.json
	.venv/bin/python -m pytest benchmarks --benchmark-json=bench.json
compare: ## what got slower than the committed results
	.venv/bin/python -m pytest benchmarks -m "not slow" --benchmark-compare=benchmarks/results/cpu.json
tables: ## README's and docs' tables from the results
	.venv/bin/python benchmarks/render.py
site: ## the documentation, into build/site
	.venv/bin/mkdocs build --strict
wheels: ## the sdist and wheels, into dist
	bash scripts/build_wheels.sh
gpu: ## checks and times on a GPU, into gpu.json
	bash scripts/gpu_suite.sh gpu.json
mutants: ## break the code and see whether tests notice, in a clean clone
	.venv/bin/python scripts/mutants.py --json mutants.json
