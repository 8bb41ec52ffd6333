# The service, its partner and the traffic in one image: `outlive serve` (the default), `outlive partner`, `outlive traffic URL`.

FROM python:3.13.14-slim-trixie AS builder
# Wheels only: what would have to be compiled fails here, so that no compiler is needed in any stage.
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ONLY_BINARY=:all:
WORKDIR /build
RUN python -m venv /opt/build && python -m venv --without-pip /opt/outlive
COPY requirements/build.txt requirements/service.txt requirements/
RUN /opt/build/bin/pip install --require-hashes -r requirements/build.txt \
    && /opt/build/bin/pip --python /opt/outlive/bin/python install --require-hashes -r requirements/service.txt
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN /opt/build/bin/hatchling build -t wheel -d dist \
    && /opt/build/bin/pip --python /opt/outlive/bin/python install --no-deps --no-index dist/*.whl

FROM python:3.13.14-slim-trixie
LABEL org.opencontainers.image.title="outlive" \
      org.opencontainers.image.description="Async work that must outlive its connection: finished, bounded and visible." \
      org.opencontainers.image.licenses="MIT"
RUN groupadd --gid 10001 outlive \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/outlive --create-home --shell /usr/sbin/nologin outlive
# Root's, so that the process can't change its own code.
COPY --from=builder --chown=root:root /opt/outlive /opt/outlive
# Loopback is the default elsewhere; in a container nobody could reach it. Python's own allocator keeps most of what a storm of
# connections took; that of the C library gives it back.
ENV PATH=/opt/outlive/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONFAULTHANDLER=1 \
    PYTHONMALLOC=malloc \
    MALLOC_ARENA_MAX=2 \
    LOG_FORMAT=json \
    HOST=0.0.0.0 \
    PORT=8000 \
    PAGES_HOST=0.0.0.0 \
    PARTNER_HOST=0.0.0.0 \
    PARTNER_PORT=8001
USER 10001:10001
# Where the SQLite file is unless DATABASE_URL says otherwise; mount a volume here to keep it.
WORKDIR /var/lib/outlive
EXPOSE 8000 8001
# Of the service; `outlive partner` has the same page on PARTNER_PORT. It stays green in a drain: a restart would only lose
# what is being finished, and with 401 it is as alive as with 200. The image has neither curl nor wget.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('PAGES_PORT') or os.environ['PORT']), timeout=2); c.request('GET', '/healthz'); sys.exit(c.getresponse().status not in (200, 401))"]
# The exec form: signals reach the process itself, and a stop drains.
ENTRYPOINT ["outlive"]
CMD ["serve"]
