# pip wheel --no-deps -w dist .            (in the checkout: the wheel, which says its commit)
# docker build -t cryoeq .                 (--build-arg LOCK=cpu: smaller, without CUDA)
# docker run --rm --gpus all --user "$(id -u):$(id -g)" -e HOME=/tmp -v "$PWD:/data" cryoeq demo -o cryoeq_demo
#
# BASE_IMAGE: any Debian or Ubuntu with Python 3.11 or later and its venv module, for example a mirror's; Python 3.11 for
# LOCK=cpu. It needs no CUDA: torch brings the CUDA runtime that it was built for, and the driver is the host's.
ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS build
ARG LOCK=cuda
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
# Before the wheel: these are large and change seldom. Each file has its hash in the lock.
COPY configs/cluster/${LOCK}.lock /opt/requirements.lock
RUN pip install --no-cache-dir --only-binary :all: --require-hashes -r /opt/requirements.lock
COPY dist/cryoeq-*.whl /opt/
RUN pip install --no-cache-dir --no-index --no-deps /opt/cryoeq-*.whl && pip check

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
