# Airflow's parts: our package with its DAGs, the Postgres driver. No torch, no Ray: its Jobs API is plain HTTP.
FROM python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

ENV AIRFLOW_HOME=/opt/airflow \
    HOME=/tmp \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1

# The volumes take their owner from these directories.
RUN useradd --no-create-home --uid 50000 bliss \
    && mkdir -p /opt/airflow/logs /opt/airflow/users /opt/bliss \
    && chown -R bliss:bliss /opt/airflow

WORKDIR /opt/bliss
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY bliss_ops ./bliss_ops
RUN pip install -c constraints.txt ".[airflow,postgres,explore]"
COPY dags ./dags

ARG BLISS_GIT_COMMIT=""
ENV BLISS_GIT_COMMIT=${BLISS_GIT_COMMIT}

USER 50000
CMD ["airflow", "version"]
