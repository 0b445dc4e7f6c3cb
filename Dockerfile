# SPDX-License-Identifier: Apache-2.0
# The agent's image. `make image` builds it with buildah; `docker build .` does, too. Targets:
#   agent  the agent, for every backend that needs no compiler (the default, at the end)
#   bcc    the same with BCC's Python bindings and the LLVM that they bring, 240 MB more
ARG BASE=debian:bookworm-slim

# --- what compiles --------------------------------------------------------------------------
FROM ${BASE} AS build
RUN apt-get update \
	&& DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
		clang libbpf-dev libc6-dev make python3 python3-pip python3-venv
WORKDIR /src
COPY Makefile pyproject.toml README.md LICENSE ./
COPY bpf bpf
COPY agent agent
# Where a proxy signs for the package index, `--secret id=ca,src=FILE` says whom to trust.
RUN --mount=type=secret,id=ca,target=/run/ca.pem \
	if [ -s /run/ca.pem ]; then export PIP_CERT=/run/ca.pem; fi; \
	export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore \
	&& make bpf \
	&& python3 -m pip wheel --quiet --no-deps --wheel-dir /wheel . \
	# pip itself does not go along.
	&& python3 -m venv --without-pip /opt/kmodgate \
	&& python3 -m pip --python /opt/kmodgate/bin/python install --quiet --only-binary=:all: --no-compile /wheel/*.whl \
	# The root is read-only: what is not compiled now is compiled at each start.
	&& /opt/kmodgate/bin/python -m compileall -q --invalidation-mode=unchecked-hash /opt/kmodgate/lib

# --- what runs ------------------------------------------------------------------------------
FROM ${BASE} AS runtime
RUN apt-get update \
	&& DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends libbpf1 python3 \
	# The package lists, logs and caches of this step, and another Python's byte code.
	&& rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/cache/ldconfig/aux-cache \
		/var/log/apt /var/log/dpkg.log /var/log/alternatives.log
COPY --from=build /opt/kmodgate /opt/kmodgate
COPY image/healthcheck /usr/local/bin/healthcheck
RUN ln -s /opt/kmodgate/bin/kmodgate /usr/local/bin/kmodgate \
	&& mkdir -p /etc/kmodgate /run/kmodgate

# --- what is in it --------------------------------------------------------------------------
FROM build AS sbom
COPY --from=runtime /var/lib/dpkg /rootfs/var/lib/dpkg
COPY image/sbom /usr/local/bin/sbom
RUN --mount=type=secret,id=ca,target=/run/ca.pem \
	if [ -s /run/ca.pem ]; then export PIP_CERT=/run/ca.pem; fi; \
	export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore \
	&& python3 -m venv /opt/sbom && /opt/sbom/bin/pip install --quiet cyclonedx-bom debsbom \
	&& sbom /rootfs /opt/kmodgate /sbom

# --- targets --------------------------------------------------------------------------------
FROM runtime AS agent
ARG VERSION=unknown
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
COPY --from=sbom /sbom/kmodgate.cdx.json /usr/share/doc/kmodgate/sbom.cdx.json
COPY LICENSE /usr/share/doc/kmodgate/copyright
LABEL org.opencontainers.image.title="kmodgate" \
	org.opencontainers.image.description="Lets a Linux node load only the kernel modules its policy trusts" \
	org.opencontainers.image.licenses="Apache-2.0 AND (GPL-2.0-only OR BSD-2-Clause)" \
	org.opencontainers.image.version="${VERSION}" \
	org.opencontainers.image.revision="${REVISION}" \
	org.opencontainers.image.created="${CREATED}"
ENV PATH=/opt/kmodgate/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
	PYTHONDONTWRITEBYTECODE=1 \
	PYTHONUNBUFFERED=1 \
	LANG=C.UTF-8
# Every command but `run` and `detach` works so. Those two need root: BPF, and the node's /proc/1.
USER 65532:65532
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 CMD ["healthcheck"]
ENTRYPOINT ["kmodgate"]
CMD ["--help"]

FROM agent AS bcc
USER 0:0
RUN apt-get update \
	&& DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3-bpfcc \
	&& rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/cache/ldconfig/aux-cache \
		/var/log/apt /var/log/dpkg.log /var/log/alternatives.log \
	# Debian's bindings, for an environment of its own.
	&& echo /usr/lib/python3/dist-packages > "$(/opt/kmodgate/bin/python -c 'import site; print(site.getsitepackages()[0])')/debian.pth"
USER 65532:65532

# What `docker build` makes when no target is named.
FROM agent
