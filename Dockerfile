# The toolbox in a container, for CPU and CUDA.
#
#   docker build -t mmlop .
#   docker run --rm -it --gpus all --shm-size 2g -v mmlop-cache:/cache \
#     -v "$PWD/data:/toolbox/data" -v "$PWD/output:/toolbox/output" \
#     mmlop bash scripts/mmlop/fewshot.sh digits 4 1
#
# Without --gpus it computes on the CPU. Build arguments:
#
#   PYTHON         version of Python
#   TORCH_INDEX    address of PyTorch's wheels for another CUDA version, or for the CPU alone (a much
#                  smaller image), as pytorch.org names it for pip; default: pip's own index, whose
#                  wheels for Linux bring CUDA
#   REQUIREMENTS   requirements files that are installed, with blanks between them
ARG PYTHON=3.11
FROM python:${PYTHON}-slim

ARG TORCH_INDEX=""
ARG REQUIREMENTS="requirements.txt requirements-deploy.txt"

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

WORKDIR /toolbox

# Packages first: they stay when the code changes.
COPY requirements*.txt ./
RUN set -eu; \
    if [ -n "$TORCH_INDEX" ]; then \
        grep -E '^torch(vision)?[<>=]' requirements.txt > /tmp/torch.txt; \
        pip install --index-url "$TORCH_INDEX" -r /tmp/torch.txt; \
    fi; \
    for file in $REQUIREMENTS; do pip install -r "$file"; done

COPY . .

# The interpreter of the scripts, and the caches. All users may write, so that --user works.
ENV PYTHON=python HOME=/cache CLIP_CACHE=/cache/clip DASSL_CACHE=/cache/dassl
RUN mkdir -p data output /cache && chmod 1777 data output /cache

# of serve.py, which is reached from outside with --host 0.0.0.0
EXPOSE 8000

CMD ["python", "train.py", "--help"]
