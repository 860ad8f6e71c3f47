# docker build -t cryoeq .
# docker run --rm --user "$(id -u):$(id -g)" -e HOME=/tmp -v "$PWD:/data" cryoeq demo -o /data/cryoeq_demo
#
# BASE_IMAGE: any Debian with Python 3.11 or later, for example a mirror's.
# TORCH_INDEX: https://download.pytorch.org/whl/cpu for a smaller image without CUDA.
ARG BASE_IMAGE=python:3.11-slim
FROM ${BASE_IMAGE}

ARG TORCH_INDEX=https://pypi.org/simple
WORKDIR /opt/cryoeq
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH VIRTUAL_ENV=/opt/venv

# torch first: it is large and changes seldom.
RUN pip install --no-cache-dir uv && pip install --no-cache-dir --index-url "${TORCH_INDEX}" torch==2.13.0

COPY . .
RUN uv pip install --no-cache -e '.[test]'

RUN useradd --create-home --uid 1000 cryoeq && mkdir /data && chown cryoeq /data
USER cryoeq
WORKDIR /data
ENTRYPOINT ["cryoeq"]
CMD ["--help"]
