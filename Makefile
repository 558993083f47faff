# People and CI run the same commands. `make serve` and `make test` are all that a newcomer needs.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable

PROTO := proto/genserve/v1/generation_service.proto proto/inference/inference_service.proto
# The virtual path makes the stubs import each other as service.rpc.pb.
PROTOC := .venv-proto/bin/python -m grpc_tools.protoc \
    -I service/rpc/pb=proto/genserve/v1 -I service/rpc/pb=proto/inference

# One thread for each of torch's and numpy's pools in tests: the workers are the parallelism.
export OMP_NUM_THREADS ?= 1

.PHONY: serve test test-full check fix train export bench proto schema dashboards pictures anomaly

serve: .venv/serving
	$(BIN)/genserve serve

test: .venv/developing
	$(BIN)/pytest -m "not slow"

test-full: .venv/developing
	$(BIN)/pytest

check: .venv/developing .venv-proto/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	mkdir -p build/proto
	$(PROTOC) --python_out=build/proto --pyi_out=build/proto --grpc_python_out=build/proto $(PROTO)
	diff --recursive --exclude=__init__.py --exclude=__pycache__ build/proto/service/rpc/pb service/rpc/pb
	$(BIN)/python -m service.core.manifest | diff - docs/manifest.schema.json
	$(BIN)/python -m service.core.scoring.calibration | diff - docs/calibration.schema.json

fix: .venv/developing
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Resumes where it stopped; `make train MODEL=mnist-vae` trains one. All cores belong to torch.
train: .venv/developing
	OMP_NUM_THREADS=$$(nproc) $(BIN)/python -m model_zoo $(MODEL)

export: .venv/developing
	$(BIN)/python -m export $(MODEL)
	$(BIN)/genserve verify artifacts/*/[0-9]*
	$(BIN)/python -m docs.zoo

# TARGET is sample (unless set), likelihood, overload, coldstart, soak, pixelcnn or studio; each writes
# benchmarks/results/<target>.md. wrk loads the server: apt install wrk.
bench: .venv/developing
	$(BIN)/python -m benchmarks $(TARGET)

proto: .venv-proto/ready
	$(PROTOC) --python_out=. --pyi_out=. --grpc_python_out=. $(PROTO)

schema: .venv/developing
	$(BIN)/python -m service.core.manifest > docs/manifest.schema.json
	$(BIN)/python -m service.core.scoring.calibration > docs/calibration.schema.json

dashboards: .venv/developing
	$(BIN)/python deploy/grafana/generate.py

# The pictures in docs/, made by the service itself: start it first.
pictures: .venv/developing
	$(BIN)/python -m docs.pictures
	$(BIN)/python -m docs.studio_pictures

# docs/anomaly.md, in about a minute and a half a model. Those that have not seen a class are asked
# here only, so they are exported to a folder of their own.
anomaly: .venv/developing
	$(BIN)/python -m export --repository build/anomaly model_zoo/recipes/anomaly/*.toml
	$(BIN)/python -m benchmarks.anomaly

.venv/serving: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) '.[cpu]'
	touch $@

.venv/developing: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) '.[dev]'
	touch $@

# A generator of its own: stubs made by protobuf 6 run under 6 and 7.
.venv-proto/ready: Makefile
	$(PYTHON) -m venv .venv-proto
	.venv-proto/bin/python -m pip install --quiet \
	    'grpcio-tools==1.76.0' 'protobuf>=6.31.1,<7' 'setuptools<81'
	touch $@
