# Two images: `train` runs every step of the pipeline, on GPUs and without; `serve` answers requests and holds no torch.
# `make image` builds both. No `# syntax=` line: the frontend that comes with the engine is enough, and nothing more is pulled.
#
# Python packages come by the hashed lock files. Where pip finds them is said by its own settings and a CA bundle, given as
# the build secrets `pip` and `ca` when this machine needs any; neither ends up in a layer.
ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS base
# Any uid may come, with no passwd entry and no right to write outside /tmp: what asks for a home or a name gets one.
# OpenMP's threads do not spin while they wait: the cores they wait for are others', too.
ENV PATH=/opt/gkd/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    USER=gkd \
    LOGNAME=gkd \
    XDG_CACHE_HOME=/tmp/.cache \
    XDG_CONFIG_HOME=/tmp/.config \
    MPLCONFIGDIR=/tmp/matplotlib \
    GIT_PYTHON_REFRESH=quiet \
    OMP_WAIT_POLICY=passive \
    MLFLOW_DISABLE_TELEMETRY=true
RUN useradd --uid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin gkd

# pip, the builder of our own wheel, and the tool that writes the bill of materials: used below, in neither image.
FROM base AS tools
RUN --mount=type=cache,target=/var/cache/pip \
    --mount=type=secret,id=pip,target=/run/secrets/pip.conf \
    --mount=type=secret,id=ca,target=/run/secrets/ca.crt \
    --mount=type=bind,source=requirements-build.lock,target=/requirements.lock \
    export PIP_CACHE_DIR=/var/cache/pip PIP_CONFIG_FILE=/run/secrets/pip.conf PIP_DISABLE_PIP_VERSION_CHECK=1; \
    if [ -f /run/secrets/ca.crt ]; then export PIP_CERT=/run/secrets/ca.crt; fi; \
    python3 -m venv /opt/tools && /opt/tools/bin/pip install --require-hashes --no-deps --requirement /requirements.lock

FROM tools AS wheel
COPY LICENSE README.md pyproject.toml /source/
COPY gkd_core /source/gkd_core
COPY components /source/components
COPY pipelines /source/pipelines
RUN /opt/tools/bin/pip wheel --no-deps --no-index --no-build-isolation --wheel-dir /wheel /source

# The environments are root's and are read-only to everybody; pip is not in them. Byte code is made here, since the user
# who runs the image cannot keep any. Two of the packages come as source: setuptools, locked too, builds them.
FROM base AS train-environment
RUN --mount=type=cache,target=/var/cache/pip \
    --mount=type=secret,id=pip,target=/run/secrets/pip.conf \
    --mount=type=secret,id=ca,target=/run/secrets/ca.crt \
    --mount=type=bind,source=requirements-train.lock,target=/requirements.lock \
    --mount=type=bind,from=tools,source=/opt/tools,target=/opt/tools \
    export PIP_CACHE_DIR=/var/cache/pip PIP_CONFIG_FILE=/run/secrets/pip.conf PIP_DISABLE_PIP_VERSION_CHECK=1; \
    if [ -f /run/secrets/ca.crt ]; then export PIP_CERT=/run/secrets/ca.crt; fi; \
    install="/opt/tools/bin/pip --python /opt/gkd/bin/python install --require-hashes --no-deps --no-compile --no-build-isolation"; \
    sed -n '/^setuptools==/,/[^\\]$/p' /requirements.lock > /tmp/setuptools.lock \
    && python3 -m venv --without-pip /opt/gkd \
    && $install --requirement /tmp/setuptools.lock \
    && $install --requirement /requirements.lock \
    && rm /tmp/setuptools.lock
# Some files are for another Python and do not compile.
RUN /opt/gkd/bin/python -m compileall -qq -j 0 -x '/tests?/' --invalidation-mode unchecked-hash /opt/gkd/lib || true

FROM base AS serve-environment
RUN --mount=type=cache,target=/var/cache/pip \
    --mount=type=secret,id=pip,target=/run/secrets/pip.conf \
    --mount=type=secret,id=ca,target=/run/secrets/ca.crt \
    --mount=type=bind,source=requirements-serve.lock,target=/requirements.lock \
    --mount=type=bind,from=tools,source=/opt/tools,target=/opt/tools \
    export PIP_CACHE_DIR=/var/cache/pip PIP_CONFIG_FILE=/run/secrets/pip.conf PIP_DISABLE_PIP_VERSION_CHECK=1; \
    if [ -f /run/secrets/ca.crt ]; then export PIP_CERT=/run/secrets/ca.crt; fi; \
    python3 -m venv --without-pip /opt/gkd \
    && /opt/tools/bin/pip --python /opt/gkd/bin/python install --require-hashes --no-deps --no-compile --requirement /requirements.lock
RUN /opt/gkd/bin/python -m compileall -qq -j 0 -x '/tests?/' --invalidation-mode unchecked-hash /opt/gkd/lib || true

# The bills of materials, read from what is really installed.
FROM tools AS train-materials
RUN --mount=type=bind,from=train-environment,source=/opt/gkd,target=/opt/gkd \
    --mount=type=bind,source=pyproject.toml,target=/pyproject.toml \
    /opt/tools/bin/cyclonedx-py environment --pyproject /pyproject.toml --output-reproducible --output-format JSON \
        --output-file /sbom.cdx.json /opt/gkd/bin/python

FROM tools AS serve-materials
RUN --mount=type=bind,from=serve-environment,source=/opt/gkd,target=/opt/gkd \
    --mount=type=bind,source=pyproject.toml,target=/pyproject.toml \
    /opt/tools/bin/cyclonedx-py environment --pyproject /pyproject.toml --output-reproducible --output-format JSON \
        --output-file /sbom.cdx.json /opt/gkd/bin/python

FROM serve-environment AS serve
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    --mount=type=bind,from=tools,source=/opt/tools,target=/opt/tools \
    /opt/tools/bin/pip --python /opt/gkd/bin/python install --no-cache-dir --no-index --no-deps /wheel/*.whl
COPY --from=serve-materials /sbom.cdx.json /usr/share/sbom/gkd-serve.cdx.json
ARG VERSION
ARG REVISION
ARG BASE_IMAGE
LABEL org.opencontainers.image.title="gkd-serve" \
      org.opencontainers.image.description="Serves a distilled image classifier over the Open Inference Protocol v2 by onnxruntime." \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 10001:10001
WORKDIR /work
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/v2/health/ready', timeout=4)"]
ENTRYPOINT ["gkd", "serve", "--host", "0.0.0.0", "--port", "8080"]
CMD ["/work"]

# Last, so that a plain `docker build .` makes it. No entry point: Kubeflow brings its own command.
FROM train-environment AS train
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    --mount=type=bind,from=tools,source=/opt/tools,target=/opt/tools \
    /opt/tools/bin/pip --python /opt/gkd/bin/python install --no-cache-dir --no-index --no-deps /wheel/*.whl \
    && install --directory --mode 1777 /work
COPY --from=train-materials /sbom.cdx.json /usr/share/sbom/gkd.cdx.json
ENV TORCH_HOME=/tmp/torch \
    HF_HOME=/tmp/huggingface \
    DVC_NO_ANALYTICS=1 \
    DVC_SITE_CACHE_DIR=/tmp/dvc \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
ARG VERSION
ARG REVISION
ARG BASE_IMAGE
LABEL org.opencontainers.image.title="gkd" \
      org.opencontainers.image.description="Distils a large image classifier into a small one; every step of the pipeline, on GPU or CPU." \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 10001:10001
WORKDIR /work
CMD ["gkd", "--help"]
