# Ray's nodes: where stages run, so everything a stage needs, torch included.
FROM python:3.11-slim-bookworm

ARG BLISS_GIT_COMMIT=""
ENV BLISS_GIT_COMMIT=${BLISS_GIT_COMMIT} \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0

# A tokenizer may have to be built from source where no wheel fits.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential=12.9 \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 50000 bliss \
    && mkdir -p /opt/bliss \
    && chown -R bliss /opt/bliss

WORKDIR /opt/bliss
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY bliss_ops ./bliss_ops
RUN pip install -c constraints.txt ".[ray,train]"

USER 50000
ENTRYPOINT ["ray"]
CMD ["--version"]
