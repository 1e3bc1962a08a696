# Airflow's parts: our package with its DAGs, the Jobs API's client, the Postgres driver. No torch.
FROM python:3.11-slim-bookworm

ARG BLISS_GIT_COMMIT=""
ENV BLISS_GIT_COMMIT=${BLISS_GIT_COMMIT} \
    AIRFLOW_HOME=/opt/airflow \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1

RUN useradd --create-home --uid 50000 bliss \
    && mkdir -p /opt/airflow/logs /opt/bliss \
    && chown -R bliss /opt/airflow /opt/bliss

WORKDIR /opt/bliss
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY bliss_ops ./bliss_ops
RUN pip install -c constraints.txt ".[airflow,ray,explore]" apache-airflow-providers-postgres asyncpg psycopg2-binary
COPY dags ./dags

USER 50000
ENTRYPOINT ["airflow"]
CMD ["version"]
