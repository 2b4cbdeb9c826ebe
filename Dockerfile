# syntax=docker/dockerfile:1
# One image for every part of a cluster: Ray's nodes and the command that trains.
#   docker build --tag local-loss-pipeline .
# The wheels of torch carry CUDA; the driver comes from the machine (NVIDIA's container toolkit).
FROM python:3.12-slim

# g++: runtime.compile compiles kernels. wget: the probes that KubeRay puts into its pods
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ wget \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /work
# torch alone is 5 GB: kept between builds, so that a change of the code does not fetch it again
COPY . /tmp/source
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --root-user-action=ignore "/tmp/source[ray,stream,figures,onnx,tensorboard]" \
    && cp -r /tmp/source/configs /tmp/source/examples . \
    && rm -rf /tmp/source \
    && mkdir -p runs data \
    && chmod 1777 /work runs data

# any user may be given on the command line, one without a home, too
ENV HOME=/work PYTHONUNBUFFERED=1
RUN useradd --no-create-home --home-dir /work pipeline
USER pipeline
CMD ["pipeline-launch", "--help"]
