# One image for Airflow, MLflow and the demo's trainer. Needs BuildKit, which Docker 23 and newer use by themselves.
#
#   docker build -t airflow-onnx-release .                                            PyTorch for the CPU
#   docker build --build-arg TORCH_INDEX_URL=https://download.pytorch.org/whl/cu128 . PyTorch for CUDA
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS tools
RUN --mount=type=cache,target=/root/.cache/pip pip install uv==0.13.9

FROM tools AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY include/onnx_release include/onnx_release
COPY plugins/airflow_onnx plugins/airflow_onnx
RUN --mount=type=cache,target=/root/.cache/uv uv build --wheel --out-dir /wheels .

FROM ${PYTHON_IMAGE}
# Where PyTorch alone comes from; empty: from PyPI, whose wheels for Linux bring CUDA along.
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
ARG AIRFLOW_UID=50000
# For uv, while it is built: into this Python, compiled, as the user may not write there later.
ARG UV_SYSTEM_PYTHON=1 UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1

ENV AIRFLOW_HOME=/opt/airflow \
    PYTHONPATH=/opt/airflow/include \
    PYTHONUNBUFFERED=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR=false

# Group 0 owns what is written to, so that any user id of that group may run it (OpenShift gives one by chance).
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libgomp1 tini \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid "${AIRFLOW_UID}" --gid 0 --no-create-home --home-dir "${AIRFLOW_HOME}" airflow \
 && install --directory --owner airflow --group 0 --mode 775 "${AIRFLOW_HOME}" "${AIRFLOW_HOME}/logs"

# The largest layer first: it changes with PyTorch alone. All packages are wheels, so no compiler is needed; uv is lent by
# a stage above, and its cache stays with the builder.
COPY requirements.txt requirements-distributed.txt constraints.txt /tmp/
RUN --mount=type=bind,from=tools,source=/usr/local/bin/uv,target=/usr/local/bin/uv \
    --mount=type=cache,target=/root/.cache/uv \
    uv pip install --no-deps ${TORCH_INDEX_URL:+--index-url "${TORCH_INDEX_URL}"} \
      "$(grep '^torch==' /tmp/requirements.txt)"
RUN --mount=type=bind,from=tools,source=/usr/local/bin/uv,target=/usr/local/bin/uv \
    --mount=type=cache,target=/root/.cache/uv \
    uv pip install -r /tmp/requirements.txt -r /tmp/requirements-distributed.txt -c /tmp/constraints.txt \
 && uv pip check
RUN --mount=type=bind,from=tools,source=/usr/local/bin/uv,target=/usr/local/bin/uv \
    --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    uv pip install --no-cache --no-deps /wheels/*.whl

COPY deploy/container /opt/airflow/deploy
COPY include/examples /opt/airflow/include/examples
COPY dags /opt/airflow/dags

# Not earlier: while it is built, root's home is its own.
ENV HOME=/opt/airflow
WORKDIR /opt/airflow
USER ${AIRFLOW_UID}:0
ENTRYPOINT ["tini", "--"]
CMD ["airflow", "version"]
