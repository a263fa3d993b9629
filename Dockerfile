# The demo on a CPU: `docker compose run --rm demo`, or docker build -t peft-matrix . && docker run --rm peft-matrix
# The whole program: docker run --rm -v "$PWD/work:/work" peft-matrix peft-matrix run mine.yaml
FROM python:3.11-slim-bookworm

# git: records say which commit made them. gcc: some quantizers compile their kernels when they run.
RUN apt-get update \
    && apt-get install -y --no-install-recommends git make gcc g++ \
    && rm -rf /var/lib/apt/lists/*

# The CPU build of torch, a tenth of the CUDA one; for a GPU build with --build-arg TORCH_INDEX=https://pypi.org/simple
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

RUN useradd --create-home --uid 1000 matrix && install -d -o matrix /opt/peft-matrix /work /cache
USER matrix
WORKDIR /opt/peft-matrix
ENV VIRTUAL_ENV=/opt/peft-matrix/.venv PATH=/opt/peft-matrix/.venv/bin:$PATH \
    PEFT_MATRIX_CACHE=/cache PEFT_MATRIX_RESULTS=/work/results HF_HUB_OFFLINE=1

# packages before sources, so that a change of the program does not install them again
COPY --chown=matrix pyproject.toml constraints.txt README.md LICENSE ./
RUN python -m venv .venv \
    && .venv/bin/pip install --no-cache-dir "uv==0.13.8" \
    && .venv/bin/uv pip install --no-cache -c constraints.txt --index-url "$TORCH_INDEX" torch \
    && .venv/bin/uv pip install --no-cache -c constraints.txt -r pyproject.toml --extra quant --extra methods --extra query

COPY --chown=matrix peft_matrix peft_matrix
COPY --chown=matrix harness harness
COPY --chown=matrix tasks tasks
COPY --chown=matrix runners runners
COPY --chown=matrix reports reports
RUN .venv/bin/uv pip install --no-cache --no-deps -e .

VOLUME ["/work", "/cache"]
WORKDIR /work
CMD ["sh", "-c", "peft-matrix run quickstart && peft-matrix board quickstart"]
