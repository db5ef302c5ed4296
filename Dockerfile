# The image of the agent: the program alone, on a base without a shell.
#
#     docker buildx build --platform linux/amd64,linux/arm64 --tag REPOSITORY:TAG --push .
#
# Each platform compiles natively, on a machine of its own or emulated. A release compiles nothing here: packaging/image puts
# the binary of packaging/build in the place of the stage `build`, for all platforms in seconds.

# Both bases are named in full, so that update bots move tag and digest together, and so that `--build-context NAME=…` can
# replace each by a mirror's. The runtime's glibc must not be older than the compiler's: both are Debian 12.
FROM docker.io/library/rust:1.95-slim-bookworm@sha256:d7482085ff5b415f84dba5647ae71606650bdef00db7aeb69f4b3d170c3e4082 AS build
WORKDIR /src

# First the dependencies, from the manifests alone, so that a change in src reuses this layer. Cargo needs a source file in
# every package and target of the workspace. No cache mounts: a builder can store a layer elsewhere, but not such a mount.
COPY Cargo.toml Cargo.lock ./
COPY benches/floor/Cargo.toml benches/floor/
COPY tests/ecr-emulator/Cargo.toml tests/ecr-emulator/
COPY stubs stubs
RUN mkdir -p src benches/floor/src examples tests/ecr-emulator/src \
    && echo '//! Empty.' >src/lib.rs \
    && echo '//! Empty.' >benches/floor/src/lib.rs \
    && echo '//! Empty.' >tests/ecr-emulator/src/lib.rs \
    && printf '//! Empty.\nfn main() {}\n' >src/main.rs \
    && sed -n '/^\[\[bench\]\]$/{n;s/^name = "\(.*\)"$/benches\/\1.rs/p};/^\[\[example\]\]$/{n;s/^name = "\(.*\)"$/examples\/\1.rs/p}' \
        Cargo.toml | xargs -n 1 cp src/main.rs \
    && cargo build --package ecr-node-agent --bin ecr-node-agent --release --locked

COPY src src
# COPY keeps the files' times. Cargo considers a source that is older than the last build unchanged, so without `touch` the
# image could get the empty program of the step before.
RUN touch src/lib.rs src/main.rs \
    && cargo build --package ecr-node-agent --bin ecr-node-agent --release --locked

FROM gcr.io/distroless/cc-debian12:latest@sha256:e5d81ddde149641e2a9ba55be4545bc125c67de07508b03ba4c22e6eb0ded5aa

# The address of the sources, for tools that show it.
ARG SOURCE=
LABEL org.opencontainers.image.title="ecr-node-agent" \
      org.opencontainers.image.description="Keeps a Kubernetes node's Amazon ECR credentials fresh in the file that the kubelet reads" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="${SOURCE}"

# On the PATH, so that `kubectl exec POD -- ecr-node-agent status` works. Read-only for everybody.
COPY --from=build --chmod=0555 /src/target/release/ecr-node-agent /usr/bin/ecr-node-agent

# As in the systemd unit: glibc then returns the memory of a refresh to the system.
ENV GLIBC_TUNABLES=glibc.malloc.arena_max=1:glibc.malloc.trim_threshold=32768:glibc.malloc.top_pad=16384

# Root, because the auth file and its directory belong to root, and a replaced file keeps its owner. Set here so that another
# default in the base does not change it.
# hadolint ignore=DL3002
USER 0:0

# The program is process 1, without a shell, so it receives the kubelet's SIGTERM.
ENTRYPOINT ["/usr/bin/ecr-node-agent"]
