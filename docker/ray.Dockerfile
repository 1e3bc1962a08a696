# Ray's nodes: where stages run, so everything a stage needs, torch included. No Airflow.
FROM python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

ENV HOME=/tmp \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0

RUN useradd --no-create-home --uid 50000 bliss

WORKDIR /opt/bliss
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY bliss_ops ./bliss_ops
# Builds of torch without CUDA are gigabytes smaller: give the address of an index that has them; docker/gpu.yml empties it.
ARG TORCH_INDEX_URL=""
RUN pip install ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} -c constraints.txt ".[ray,train,evaluate]"

ARG BLISS_GIT_COMMIT=""
ENV BLISS_GIT_COMMIT=${BLISS_GIT_COMMIT}

USER 50000
CMD ["ray", "--version"]
