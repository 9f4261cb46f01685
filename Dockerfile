# One image for Airflow, MLflow and the demo's trainer. Needs BuildKit, the default since Docker 23.
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
# Package index for PyTorch only. Empty: PyPI, whose Linux wheels include CUDA.
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
ARG AIRFLOW_UID=50000
# For uv during the build: install into this Python and compile, because the user cannot write there later.
ARG UV_SYSTEM_PYTHON=1 UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1

ENV AIRFLOW_HOME=/opt/airflow \
    PYTHONPATH=/opt/airflow/include \
    PYTHONUNBUFFERED=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    ORT_DISABLE_TELEMETRY=1 \
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR=false

# Group 0 owns the writable folders: OpenShift runs containers with a random user id of that group.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libgomp1 tini \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid "${AIRFLOW_UID}" --gid 0 --no-create-home --home-dir "${AIRFLOW_HOME}" airflow \
 && install --directory --owner airflow --group 0 --mode 775 "${AIRFLOW_HOME}" "${AIRFLOW_HOME}/logs"

# The largest layer first: it changes only with PyTorch. All packages are wheels, so no compiler is needed. uv comes from a
# stage above, and its cache stays in the builder.
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

# Set last: during the build, root keeps its own home.
ENV HOME=/opt/airflow
WORKDIR /opt/airflow
USER ${AIRFLOW_UID}:0
ENTRYPOINT ["tini", "--"]
CMD ["airflow", "version"]
