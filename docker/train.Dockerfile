# Every verb, for training: docker build -f docker/train.Dockerfile -t anyres .
#   docker run --rm --gpus all --shm-size 2g -v "$PWD/images:/data:ro" -v "$PWD/runs:/runs" anyres \
#     train restv2_nano --data /data --out /runs/mine
# The same command resumes. Without --gpus it trains on the processors.
FROM python:3.12-slim

WORKDIR /app
COPY pyproject.toml requirements.lock README.md LICENSE NOTICE ./
COPY src ./src
# the lock pins, with hashes
# hadolint ignore=DL3013
RUN pip install --no-cache-dir uv \
    && uv pip install --system --no-cache -c requirements.lock '.[data,tasks]' \
    && useradd --system --no-create-home --uid 10001 anyres \
    && mkdir /runs /cache && chown 10001 /runs /cache

ENV ANYRES_CACHE=/cache \
    HOME=/tmp \
    PYTHONUNBUFFERED=1
USER 10001
VOLUME ["/runs", "/cache"]
# SIGTERM reaches training itself, which saves the step
ENTRYPOINT ["anyres"]
CMD ["doctor"]
