# docker build -t cryoeq .
# docker run --rm --gpus all --user "$(id -u):$(id -g)" -e HOME=/tmp -v "$PWD:/data" cryoeq demo -o cryoeq_demo
#
# BASE_IMAGE: any Debian or Ubuntu with Python 3.11 or later and its venv module, for example a mirror's. It needs no
# CUDA: torch brings the CUDA runtime that it was built for, and the driver is the host's.
# TORCH_INDEX: https://download.pytorch.org/whl/cpu for a smaller image without CUDA.
ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS build
ARG TORCH_INDEX=https://pypi.org/simple
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH VIRTUAL_ENV=/opt/venv
# torch first: it is large and changes seldom.
RUN pip install --no-cache-dir uv && pip install --no-cache-dir --index-url "${TORCH_INDEX}" torch==2.13.0
COPY . /opt/cryoeq
RUN cd /opt/cryoeq && uv pip install --no-cache --compile-bytecode . && pip uninstall --yes uv

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="cryoeq" \
      org.opencontainers.image.description="From cryo-EM particle images to a 3D map without known poses" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /opt/venv /opt/venv
# NVIDIA_*: what the container toolkit asks for where the base is not NVIDIA's.
ENV PATH=/opt/venv/bin:$PATH \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1
RUN useradd --create-home --uid 10001 cryoeq && mkdir /data && chown cryoeq /data
USER cryoeq
WORKDIR /data
HEALTHCHECK --interval=5m --timeout=1m CMD ["cryoeq", "doctor"]
ENTRYPOINT ["cryoeq"]
CMD ["--help"]
