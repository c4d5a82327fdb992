# A server for one run: docker build -f docker/serve.Dockerfile -t anyres-serve .
#   docker run --rm -p 8000:8000 -v "$PWD/runs/mine:/run:ro" -e ANYRES_TOKEN=... --memory 4g --read-only --tmpfs /tmp anyres-serve
FROM python:3.12-slim

WORKDIR /app
COPY pyproject.toml requirements.lock README.md LICENSE NOTICE ./
COPY src ./src
# the lock pins, with hashes
# hadolint ignore=DL3013
RUN pip install --no-cache-dir uv \
    && uv pip install --system --no-cache -c requirements.lock '.[serve,deploy]' \
    && useradd --system --no-create-home --uid 10001 anyres

ENV ANYRES_CACHE=/tmp/anyres \
    ANYRES_OFFLINE=1 \
    MALLOC_ARENA_MAX=2 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001
EXPOSE 8000
# alive is not ready: an orchestrator that can tell them apart asks /readyz as well
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
# SIGTERM reaches the server itself; what was accepted is answered before it ends
ENTRYPOINT ["anyres", "serve"]
CMD ["/run", "--host", "0.0.0.0", "--port", "8000"]
